//! The virtio-net header (legacy form, 10 bytes) that a TUN device with `IFF_VNET_HDR` puts before each packet.
//! Its fields are native-endian; see `include/uapi/linux/virtio_net.h`.

/// Bytes of the header: `TUNSETVNETHDRSZ`'s default.
pub const VNET_LEN: usize = 10;

const _: () = assert!(VNET_LEN == 2 * size_of::<u8>() + 4 * size_of::<u16>(), "the fields fill it");

/// Flag: the checksum at `csum_start + csum_offset` still has to be finished; its field holds the pseudo-header's sum.
pub const NEEDS_CSUM: u8 = 1;

/// Segmentation type: the packet is whole.
pub const GSO_NONE: u8 = 0;
/// Segmentation type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// Segmentation type: UDP datagrams of equal size (USO), Linux 6.2.
pub const GSO_UDP_L4: u8 = 5;
/// Bit beside the segmentation type: the TCP super-packet carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header's fields. All zeroes describe an ordinary, finished packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], or 2 (`DATA_VALID`: the checksum was verified), which nothing here looks at.
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of IP and transport header. Do not trust it on read: the kernel reports the length of its linear part.
    pub hdr_len: u16,
    /// Payload bytes in each segment but the last. The name is the kernel's.
    pub gso_size: u16,
    /// Where the sum starts, in bytes from the start of the IP packet.
    pub csum_start: u16,
    /// Where the sum is stored, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header of an ordinary packet.
    pub const PLAIN: VnetHeader =
        VnetHeader { flags: 0, gso_type: GSO_NONE, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Reads the header at the start of `bytes`; `None` if there are fewer than [`VNET_LEN`].
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<VnetHeader> {
        let b = bytes.first_chunk::<VNET_LEN>()?;
        Some(VnetHeader {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_ne_bytes([b[2], b[3]]),
            gso_size: u16::from_ne_bytes([b[4], b[5]]),
            csum_start: u16::from_ne_bytes([b[6], b[7]]),
            csum_offset: u16::from_ne_bytes([b[8], b[9]]),
        })
    }

    /// The header as bytes.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; VNET_LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// The segmentation type without the ECN bit.
    #[inline]
    #[must_use]
    pub fn gso_kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// True if the checksum still has to be finished.
    #[inline]
    #[must_use]
    pub fn needs_csum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout() {
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 52,
            gso_size: 1420,
            csum_start: 20,
            csum_offset: 16,
        };
        let mut expected = vec![1, 0x81];
        for field in [52u16, 1420, 20, 16] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(header.encode().to_vec(), expected);
        assert_eq!(header.gso_kind(), GSO_TCPV4);
        assert_eq!(VnetHeader::decode(&[0; 9]), None);
        assert_eq!(VnetHeader::decode(&[0; 10]), Some(VnetHeader::PLAIN));
    }

    proptest! {
        #[test]
        fn round_trip(bytes in any::<[u8; VNET_LEN]>()) {
            prop_assert_eq!(VnetHeader::decode(&bytes).map(|header| header.encode()), Some(bytes));
        }
    }
}
