//! The end of a ring: no request may outlive the memory that it points at, nor the turn of its descriptors.

use super::Ring;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use std::io;
use std::mem::ManuallyDrop;

impl Ring {
    /// Cancels the standing requests and sees them end. A cancelled request holds its file until its completion
    /// has run, which happens in an `enter` only: without that, device and port would outlive the ring for a while.
    fn end_standing(&mut self) -> io::Result<()> {
        let second = Timespec::new().sec(1);
        // What is armed but not yet submitted must not start after the cancellation.
        self.io.submit()?;
        match self.io.submitter().register_sync_cancel(Some(second), CancelBuilder::any()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
        while !(self.disarmed.frames && self.disarmed.datagrams && self.disarmed.wake) {
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
        // Closing the ring lets go of the files only some time later; a successor wants the port and the device now.
        let _ = self.io.submitter().unregister_files();
        // SAFETY: not used again; closing the ring comes first, so that no request outlives its memory.
        unsafe { ManuallyDrop::drop(&mut self.io) };
        if !quiet {
            // A request may still write into the buffers: leak them rather than free memory in use.
            return;
        }
        // SAFETY: not used again, and no request is left that could use it.
        unsafe { ManuallyDrop::drop(&mut self.frames) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.datagrams) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.store) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.receive) };
    }
}
