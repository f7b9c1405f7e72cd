//! What may be said in the log, and how often.
//!
//! Theory of operation. People and their alerts read a log line, and it may repeat what others wrote: the error of a
//! server, a key of the store, a field of the network config. So every text of others is [`quote`]d where it enters
//! a message, and [`LogLines`] checks each line once more on its way out. A trouble that goes on is a [`Complaint`]:
//! it is logged when it is new, and then once a minute.
//!
//! | file | |
//! |---|---|
//! | `quote` | a text of others, made fit to stand in a line |
//! | `complaint` | a trouble that goes on is logged once, then once a minute; the time is an argument |
//! | `few` | the first of many, and the number of the rest |
//! | `lines` | the part of a line that may be printed |
//! | `output` | where the log goes, with which priorities and how much of it |
//! | [`phrases`] | flannel's words, on which people alert |

mod complaint;
mod few;
mod lines;
mod output;
pub mod phrases;
mod quote;

pub use complaint::{Complaint, Time};
pub use few::few;
pub use lines::LogLines;
pub use output::{is_journal, say_error, set_verbosity, start};
pub use quote::quote;
