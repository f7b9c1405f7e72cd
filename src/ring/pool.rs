//! Provided buffers: memory that the kernel picks from when a frame or a datagram arrives.
//!
//! ```text
//! memory  │ buffer 0 │ buffer 1 │ buffer 2 │ …                     `count` buffers of BUFFER_BYTES
//! lent    │ ours     │ kernel's │ kernel's │ …                     who may touch each of them
//! entries │ address, length, number │ address, length, number │ …  which buffers the kernel got, oldest first
//! ```
//!
//! There are `slots` entries, which are used in turn. The last two bytes of the first one are the tail: it says how
//! many entries were written so far, and the kernel takes no entry beyond it.

use super::{CONTROL_BYTES, NAME_BYTES};
use crate::packet::vnet::VNET_LEN;
use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Bytes of one buffer. The largest frame fits (10 bytes of vnet header and 65 535 of packet), and so does the largest
/// datagram (65 507) behind the 64 bytes that multishot `recvmsg` puts in front. The sum is rounded up to whole pages.
pub const BUFFER_BYTES: usize = 17 * PAGE;
const PAGE: usize = 4096;
/// What multishot `recvmsg` puts in front of a payload: `struct io_uring_recvmsg_out`, a name, control messages.
const PREFIX: usize = 16 + NAME_BYTES as usize + CONTROL_BYTES;
const _: () = assert!(BUFFER_BYTES >= VNET_LEN + 65_535 && BUFFER_BYTES >= PREFIX + 65_507);
// The kernel counts a buffer's bytes in 32 bits, and an entry is what `struct io_uring_buf` says.
const _: () = assert!(BUFFER_BYTES <= u32::MAX as usize && size_of::<BufRingEntry>() == 16);

/// A buffer that the kernel has filled and lent to us. It is neither `Clone` nor `Copy`: giving it back
/// consumes it, so nobody can look at a buffer that the kernel may be writing.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) index: u16,
    pub(super) len: usize,
}

/// A group of equal buffers, and the ring of entries that tells the kernel which of them are free.
pub(super) struct Pool {
    memory: NonNull<u8>,
    entries: NonNull<BufRingEntry>,
    slots: u16,
    count: u16,
    /// How many entries were written, as the kernel counts them: modulo 2^16.
    tail: u16,
    group: u16,
    /// For each buffer: whether it is ours and not the kernel's.
    lent: Vec<bool>,
}

impl Pool {
    /// Allocates `count` buffers. The kernel knows nothing of them before [`Pool::register`].
    pub(super) fn new(group: u16, count: u16) -> Pool {
        let slots = count.next_power_of_two();
        let pool = Pool {
            memory: allocate(memory_layout(count)),
            entries: allocate(entries_layout(slots)).cast(),
            slots,
            count,
            tail: 0,
            group,
            lent: vec![true; usize::from(count)],
        };
        debug_assert!(pool.entries.is_aligned());
        pool
    }

    /// Registers the ring of entries and hands every buffer to the kernel.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the entries live in this pool's own allocation of `slots` entries, page-aligned. `Ring` closes its
        // io_uring before it drops the pool, or leaks the pool (`close`).
        unsafe {
            submitter.register_buf_ring_with_flags(
                self.entries.as_ptr() as u64,
                self.slots,
                self.group,
                0,
            )?;
        }
        for index in 0..self.count {
            self.give(index);
        }
        Ok(())
    }

    /// Takes buffer `index`, which the kernel has filled with `len` bytes. It is ours until [`Pool::release`].
    /// `None` if the kernel does not hold that buffer, which would be its mistake.
    pub(super) fn take(&mut self, index: u16, len: usize) -> Option<Filled> {
        let lent = self.lent.get_mut(usize::from(index))?;
        if *lent || len > BUFFER_BYTES {
            return None;
        }
        *lent = true;
        Some(Filled { index, len })
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn release(&mut self, filled: Filled) {
        self.give(filled.index);
    }

    /// How many buffers the kernel holds.
    pub(super) fn free(&self) -> usize {
        self.lent.iter().filter(|lent| !**lent).count()
    }

    /// How many buffers are lent to us.
    pub(super) fn lent(&self) -> usize {
        self.lent.len() - self.free()
    }

    /// The bytes that the kernel wrote.
    pub(super) fn bytes(&self, filled: &Filled) -> &[u8] {
        debug_assert!(self.lent[usize::from(filled.index)], "the kernel may be writing there");
        let start = self.start(filled.index);
        // SAFETY: `start` is the first of BUFFER_BYTES initialised bytes (zeroed at allocation), `take` has checked
        // `len`, and a `Filled` exists only while the kernel does not hold the buffer.
        unsafe { std::slice::from_raw_parts(start, filled.len) }
    }

    /// The bytes that the kernel wrote, to change them.
    pub(super) fn bytes_mut(&mut self, filled: &Filled) -> &mut [u8] {
        let start = self.start(filled.index);
        // SAFETY: the same holds as in `bytes`, and `&mut self` excludes every other reference into the pool.
        unsafe { std::slice::from_raw_parts_mut(start, filled.len) }
    }

    /// The address of `len` bytes at `offset` in a buffer that is lent to us. `None` if the buffer is the kernel's, or
    /// if the range is not inside it.
    pub(super) fn piece(&self, index: u16, offset: usize, len: usize) -> Option<*const u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= BUFFER_BYTES);
        let lent = self.lent.get(usize::from(index)).copied().unwrap_or(false);
        if !(inside && lent) {
            return None;
        }
        Some(self.start(index).wrapping_add(offset))
    }

    fn start(&self, index: u16) -> *mut u8 {
        debug_assert!(index < self.count);
        self.memory.as_ptr().wrapping_add(usize::from(index) * BUFFER_BYTES)
    }

    /// Writes an entry that hands the buffer to the kernel.
    fn give(&mut self, index: u16) {
        debug_assert!(self.lent[usize::from(index)], "the kernel has this buffer already");
        self.lent[usize::from(index)] = false;
        let slot = usize::from(self.tail & (self.slots - 1));
        let entry = self.entries.as_ptr().wrapping_add(slot);
        // SAFETY: `slot < slots`, so the entry lies in the allocation, which is initialised since it was zeroed. The
        // kernel reads an entry only after the tail below has passed it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.start(index) as u64);
        // BUFFER_BYTES is far below 4 GiB.
        #[allow(clippy::cast_possible_truncation)]
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry is valid and initialised, and its `resv` field is the ring's tail.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the field is aligned (offset 14 of a page) and lives as long as the pool. Only this thread writes
        // it, and the kernel reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this very layout, and it is freed once.
        unsafe { dealloc(self.memory.as_ptr(), memory_layout(self.count)) };
        // SAFETY: the same holds for the entries.
        unsafe { dealloc(self.entries.as_ptr().cast(), entries_layout(self.slots)) };
    }
}

fn memory_layout(count: u16) -> Layout {
    layout(BUFFER_BYTES, count)
}

fn entries_layout(slots: u16) -> Layout {
    layout(size_of::<BufRingEntry>(), slots)
}

/// The layout of whole pages for `count` things of `size` bytes. `Ring::new` has checked the count, so that they fit
/// any address space. If they did not, the process ends here, since somebody would write past a smaller allocation.
fn layout(size: usize, count: u16) -> Layout {
    let bytes = size.checked_mul(usize::from(count)).filter(|bytes| *bytes > 0);
    match bytes.map(|bytes| Layout::from_size_align(bytes, PAGE)) {
        Some(Ok(layout)) => layout,
        _ => std::process::abort(),
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    debug_assert!(layout.size() > 0);
    // SAFETY: the layout's size is not zero, since callers ask for at least one buffer or entry.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}
