//! Many writes to one table.
//!
//! The kernel acts on one request at a time and answers each. Several requests are under way at once, so that no request
//! waits for the answer to another; they are few enough for all answers to fit into the receive buffer of the socket.
//! One refused entry does not stop the rest.

use futures_util::StreamExt;
use std::future::Future;

/// How many writes are under way at a time; each is three requests at most. An answer takes less than 1 kB of a buffer
/// of 208 kB (`net.core.rmem_default`).
const UNDER_WAY: usize = 32;
const _: () = assert!(UNDER_WAY * 3 * 1024 <= 208 * 1024 / 2, "the answers fit with room to spare");

/// Makes many writes, several at a time, and returns what has come of each, in their order.
pub async fn write_all<W: Future>(writes: impl IntoIterator<Item = W>) -> Vec<W::Output> {
    futures_util::stream::iter(writes).buffered(UNDER_WAY).collect().await
}
