//! The two control messages of UDP offload, as bytes: `UDP_SEGMENT` to write, `UDP_GRO` to read.
//!
//! The layout is the kernel's own (`struct cmsghdr`, include/linux/socket.h): a length of the machine's word,
//! level, type, then data, each message padded to a word.

/// Bytes of the word to which control messages are aligned.
const WORD: usize = size_of::<usize>();
/// Length of a message's header: length, level, type.
const HEADER_LEN: usize = WORD + 8;
/// Length of a `UDP_SEGMENT` message with its padding: what `msg_controllen` is to say.
pub const SEGMENT_CONTROL_LEN: usize = HEADER_LEN + WORD;
/// Room to offer for a received datagram's control messages: the `UDP_GRO` one takes at most 24 bytes, and what
/// remains is for messages that nobody asked for.
pub(super) const CONTROL_LEN: usize = 64;

const _: () = assert!(HEADER_LEN == size_of::<libc::cmsghdr>());
const _: () = assert!(CONTROL_LEN >= 2 * SEGMENT_CONTROL_LEN && CONTROL_LEN.is_multiple_of(WORD));

/// A `UDP_SEGMENT` control message, aligned as the kernel wants it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub struct SegmentControl {
    bytes: [u8; SEGMENT_CONTROL_LEN],
}

impl SegmentControl {
    /// The message that cuts a send into datagrams of `segment_size` bytes (1 or more).
    pub fn new(segment_size: u16) -> Self {
        let mut bytes = [0; SEGMENT_CONTROL_LEN];
        bytes[..WORD].copy_from_slice(&(HEADER_LEN + size_of::<u16>()).to_ne_bytes());
        bytes[WORD..WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        bytes[WORD + 4..HEADER_LEN].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        let mut control = Self { bytes };
        control.set(segment_size);
        control
    }

    /// Changes the segment size.
    pub fn set(&mut self, segment_size: u16) {
        debug_assert!(segment_size > 0, "the kernel takes 0 for no segmentation");
        self.bytes[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&segment_size.to_ne_bytes());
    }

    /// The message, for `msg_control` and `msg_controllen`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

const _: () = assert!(align_of::<SegmentControl>() >= align_of::<libc::cmsghdr>());
const _: () = assert!(align_of::<ControlBuffer>() >= align_of::<libc::cmsghdr>());

/// Room for a received datagram's control messages, aligned as the kernel wants it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct ControlBuffer {
    /// What the kernel writes into.
    pub(super) bytes: [u8; CONTROL_LEN],
}

impl ControlBuffer {
    /// Room that holds no message yet.
    pub(super) const fn new() -> Self {
        Self { bytes: [0; CONTROL_LEN] }
    }
}

/// The stride that a `UDP_GRO` message in `control` tells: every datagram but the last has that many bytes.
///
/// `control` is what the kernel filled (`msg_controllen` bytes), of any alignment. The walk passes
/// over other messages and ends at a length that does not fit; a value outside 1 ..= 65535 counts as no message.
pub fn stride(control: &[u8]) -> Option<u16> {
    let mut unread = control;
    loop {
        let (length, after) = unread.split_first_chunk::<WORD>()?;
        let (level, after) = after.split_first_chunk::<4>()?;
        let (kind, _) = after.split_first_chunk::<4>()?;
        let length = usize::from_ne_bytes(*length);
        let data = unread.get(HEADER_LEN..length)?;
        if (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind)) == (libc::SOL_UDP, libc::UDP_GRO) {
            let value = i32::from_ne_bytes(*data.first_chunk::<4>()?);
            return u16::try_from(value).ok().filter(|&stride| stride > 0);
        }
        unread = unread.get(length.next_multiple_of(WORD)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER_LEN + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    fn gro(value: i32) -> Vec<u8> {
        message(libc::SOL_UDP, libc::UDP_GRO, &value.to_ne_bytes())
    }

    #[test]
    fn segment_message_is_what_the_kernel_reads() {
        let expected = message(libc::SOL_UDP, libc::UDP_SEGMENT, &1472u16.to_ne_bytes());
        let mut control = SegmentControl::new(9);
        control.set(1472);
        assert_eq!(control.as_bytes(), expected);
        assert!(control.as_bytes().as_ptr().cast::<libc::cmsghdr>().is_aligned());
    }

    #[test]
    fn stride_is_found_alone_and_after_foreign_messages() {
        assert_eq!(stride(&gro(1472)), Some(1472));
        let foreign = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMP, &[7; 13]);
        assert_eq!(stride(&[foreign.clone(), gro(28)].concat()), Some(28));
        assert_eq!(stride(&[message(libc::SOL_UDP, 1, &[]), gro(65535), foreign].concat()), Some(65535));
    }

    #[test]
    fn lies_are_no_stride() {
        assert_eq!(stride(&[]), None);
        for value in [0, -1, 65536, i32::MIN, i32::MAX] {
            assert_eq!(stride(&gro(value)), None, "{value}");
        }
        for length in [0, 1, HEADER_LEN - 1, HEADER_LEN + 3, 1000, usize::MAX] {
            let mut bytes = gro(1472);
            bytes[..WORD].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(stride(&bytes), None, "{length}");
        }
        for cut in 0..HEADER_LEN + 4 {
            assert_eq!(stride(&gro(1472)[..cut]), None, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            prop_assert_ne!(stride(&bytes), Some(0));
        }

        #[test]
        fn any_neighbours_are_passed(
            before in proptest::collection::vec((0i32..300, 105i32..200, proptest::collection::vec(any::<u8>(), 0..20)), 0..4),
            value in 1u16..,
        ) {
            let mut bytes: Vec<u8> = before.iter().flat_map(|(level, kind, data)| message(*level, *kind, data)).collect();
            bytes.extend(gro(i32::from(value)));
            prop_assert_eq!(stride(&bytes), Some(value));
        }
    }
}
