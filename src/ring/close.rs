//! The end of a ring. No request outlives the memory that it points at, and none holds a descriptor after the drop.

use super::Ring;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use std::io;
use std::mem::ManuallyDrop;

impl Ring {
    /// Cancels the standing requests and waits until they have ended. A cancelled request holds its file until its
    /// completion has run, and that happens in an `enter` only. Otherwise device and port would outlive the ring.
    fn end_standing(&mut self) -> io::Result<()> {
        let second = Timespec::new().sec(1);
        // A request that is armed but not yet submitted must not start after the cancellation.
        self.io.submit()?;
        match self.io.submitter().register_sync_cancel(Some(second), CancelBuilder::any()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
        while !self.disarmed.all() {
            let patience = SubmitArgs::new().timespec(&second);
            self.io.submitter().submit_with_args(1, &patience)?;
            let finished = self.harvest();
            debug_assert_eq!(finished, 0, "a staged operation outlived its turn");
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let quiet = self.end_standing().is_ok();
        // When the ring is closed, the kernel lets go of its files only some time later. A successor wants the port
        // and the device now.
        let _ = self.io.submitter().unregister_files();
        // SAFETY: `io` is not used again. It is closed first, so that no request outlives its memory.
        unsafe { ManuallyDrop::drop(&mut self.io) };
        if !quiet {
            // A request may still write into the buffers. They are leaked, since memory in use must not be freed.
            return;
        }
        // SAFETY: `frames` is not used again, and no request is left that could use it.
        unsafe { ManuallyDrop::drop(&mut self.frames) };
        // SAFETY: the same holds for `datagrams`.
        unsafe { ManuallyDrop::drop(&mut self.datagrams) };
        // SAFETY: the same holds for `store`.
        unsafe { ManuallyDrop::drop(&mut self.store) };
        // SAFETY: the same holds for `receive`.
        unsafe { ManuallyDrop::drop(&mut self.receive) };
    }
}
