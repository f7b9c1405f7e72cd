//! Room for one frame that is read from the TUN by a plain `read`.

use crate::tun::{Queue, READ_SIZE};
use std::io;

/// Holds one frame, or none.
pub(super) struct FrameBuffer {
    bytes: Box<[u8]>,
    /// The frame's length; 0 means that there is none.
    len: usize,
}

impl FrameBuffer {
    pub(super) fn new() -> FrameBuffer {
        FrameBuffer { bytes: vec![0; READ_SIZE].into_boxed_slice(), len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads the next frame of `queue`. After an error the buffer is empty.
    pub(super) fn read(&mut self, queue: &Queue) -> io::Result<()> {
        debug_assert!(self.is_empty(), "the frame before was never handled");
        self.len = 0;
        self.len = queue.read(&mut self.bytes)?;
        Ok(())
    }

    pub(super) fn frame(&mut self) -> Option<&mut [u8]> {
        (self.len > 0).then(|| &mut self.bytes[..self.len])
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}
