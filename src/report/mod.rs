//! The state of the daemon as plain values.
//!
//! Theory of operation. Whoever counts or knows something says so with a [`Sample`] of a [`Metric`], which has a
//! name, a kind, a unit and a help text. The control loop gathers the samples of one network in a [`State`]. What
//! people and monitors see are renderings of it: the lines on SIGUSR1 ([`Lines`]), `/metrics`, `/healthz` and
//! `/readyz` (the room `status`). Nothing is ever read back from a rendering.
//!
//! A new counter is a row of the table in `metric.rs` and a sample where it is counted; for one of the engine's that is
//! a variant in `engine/counters.rs`, and the compiler asks for the rest. The lines and
//! `/metrics` take a state apart field by field, so a field that they do not know fails to compile.
//!
//! | file | |
//! |---|---|
//! | [`metric`] | every metric: name, kind, unit, help |
//! | `state` | one network at one moment |
//! | `lines` | the lines on SIGUSR1, and the one line of a stop in the journal |

mod lines;
pub mod metric;
mod state;

pub use lines::{Lines, Summary};
pub use metric::{Kind, Metric};
pub use state::{DataPath, Lease, Sample, State, Worker};
