//! What may be said in the log, and how often.
//!
//! Theory of operation. A log line is read by people and by their alerts, and it may repeat what others wrote:
//! a server's error, a key of the store, a field of the network config. So every text of others is [`quote`]d
//! where it enters a message, and [`LogLines`] sees each line once more on its way out. A trouble that goes on
//! is a [`Complaint`]: it is said when it is new, and then once a minute.
//!
//! | file | |
//! |---|---|
//! | `quote` | a text of others, made fit to stand in a line |
//! | `complaint` | once, then once a minute; the time is an argument |
//! | `lines` | what may be printed of a line |

mod complaint;
mod lines;
mod quote;

pub use complaint::{Complaint, Time};
pub use lines::LogLines;
pub use quote::quote;
