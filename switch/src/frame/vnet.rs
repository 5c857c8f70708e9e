//! The virtio-net header: what a sender left to be done on a frame.
//!
//! TAP (IFF_VNET_HDR) and AF_PACKET (PACKET_VNET_HDR) put these 10 bytes in front of a frame
//! (include/uapi/linux/virtio_net.h, `struct virtio_net_hdr`, legacy layout without `num_buffers`). Multi-byte fields
//! are in host byte order. Offsets count from the first byte of the Ethernet frame.
//! The header is as hostile as the frame: [`VnetHdr::checked`] is the one door.

/// Length of the header in bytes.
pub const VNET_HDR_LEN: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Kind of segmentation a frame needs before it can be on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GsoType {
    /// None: the frame is one packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one flow (USO), IPv4 or IPv6.
    UdpL4,
}

/// Offload state of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// The L4 checksum field holds only the pseudo-header sum: sum from `csum_start` to the end, store at
    /// `csum_start + csum_offset`.
    pub needs_csum: bool,
    /// The checksums were verified by whoever received the frame.
    pub data_valid: bool,
    /// TCP segments carry ECN CWR on the first only (VIRTIO_NET_HDR_GSO_ECN).
    pub ecn: bool,
    /// Segmentation needed.
    pub gso: GsoType,
    /// Length of all headers (Ethernet to L4), a hint.
    pub hdr_len: u16,
    /// L4 payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksummed bytes begin (the L4 header).
    pub csum_start: u16,
    /// Where the checksum is, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Reads a header and checks it against a frame of `frame_len` bytes; `None` if it contradicts itself or the frame.
    #[must_use]
    pub fn checked(bytes: &[u8], frame_len: usize) -> Option<VnetHdr> {
        let &[flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = bytes.first_chunk::<VNET_HDR_LEN>()?;
        if flags == 0 && gso == 0 {
            return Some(VnetHdr::default());
        }
        let v = VnetHdr {
            needs_csum: flags & F_NEEDS_CSUM != 0,
            data_valid: flags & F_DATA_VALID != 0,
            ecn: gso & GSO_ECN != 0,
            gso: match gso & !GSO_ECN {
                0 => GsoType::None,
                GSO_TCPV4 => GsoType::Tcp4,
                GSO_TCPV6 => GsoType::Tcp6,
                GSO_UDP_L4 => GsoType::UdpL4,
                _ => return None,
            },
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([s0, s1]),
            csum_start: u16::from_ne_bytes([c0, c1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        };
        let csum_end = v.csum_start as usize + v.csum_offset as usize + 2;
        if v.needs_csum && (csum_end > frame_len || v.csum_start < 14) {
            return None;
        }
        // A segment needs a size, and its checksum has to be summed anew.
        if v.gso != GsoType::None && (v.gso_size == 0 || !v.needs_csum) {
            return None;
        }
        Some(v)
    }

    /// The header as bytes for the kernel.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HDR_LEN] {
        let flags = u8::from(self.needs_csum) * F_NEEDS_CSUM
            + u8::from(self.data_valid && !self.needs_csum) * F_DATA_VALID;
        let gso = match self.gso {
            GsoType::None => 0,
            GsoType::Tcp4 => GSO_TCPV4,
            GsoType::Tcp6 => GSO_TCPV6,
            GsoType::UdpL4 => GSO_UDP_L4,
        } | if self.ecn && self.gso != GsoType::None {
            GSO_ECN
        } else {
            0
        };
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [s0, s1] = self.gso_size.to_ne_bytes();
        let [c0, c1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }

    /// Whether the frame is fit for any wire as it is.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.needs_csum && self.gso == GsoType::None
    }

    /// Follows a change of `by` bytes at the front of the frame.
    pub(crate) fn shift(&mut self, by: i32) {
        let moved = |v: u16| u16::try_from(i32::from(v) + by).unwrap_or(0);
        if self.needs_csum {
            self.csum_start = moved(self.csum_start);
        }
        if self.gso != GsoType::None {
            self.hdr_len = moved(self.hdr_len);
        }
    }
}

/// What a port can transmit without our finishing it in software.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums.
    pub csum: bool,
    /// TCP over IPv4 segmentation.
    pub tso4: bool,
    /// TCP over IPv6 segmentation.
    pub tso6: bool,
    /// UDP segmentation (IPv4 and IPv6).
    pub uso: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Offloads = Offloads {
        csum: true,
        tso4: true,
        tso6: true,
        uso: true,
    };
    /// Nothing: plain finished frames.
    pub const NONE: Offloads = Offloads {
        csum: false,
        tso4: false,
        tso6: false,
        uso: false,
    };

    /// Whether a frame with this offload state can go out as it is.
    #[must_use]
    pub fn takes(self, v: &VnetHdr) -> bool {
        let gso = match v.gso {
            GsoType::None => true,
            GsoType::Tcp4 => self.tso4,
            GsoType::Tcp6 => self.tso6,
            GsoType::UdpL4 => self.uso,
        };
        gso && (self.csum || !v.needs_csum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let v = VnetHdr {
            needs_csum: true,
            ecn: true,
            gso: GsoType::Tcp6,
            hdr_len: 74,
            gso_size: 1428,
            csum_start: 54,
            csum_offset: 16,
            ..VnetHdr::default()
        };
        assert_eq!(VnetHdr::checked(&v.to_bytes(), 60_000), Some(v));
    }

    #[test]
    fn contradictions_are_refused() {
        let v = VnetHdr {
            needs_csum: true,
            csum_start: 34,
            csum_offset: 16,
            gso: GsoType::Tcp4,
            gso_size: 1448,
            ..VnetHdr::default()
        };
        assert!(
            VnetHdr::checked(&v.to_bytes(), 51).is_none(),
            "checksum outside the frame"
        );
        assert!(VnetHdr::checked(&VnetHdr { gso_size: 0, ..v }.to_bytes(), 9000).is_none());
        assert!(
            VnetHdr::checked(
                &VnetHdr {
                    needs_csum: false,
                    ..v
                }
                .to_bytes(),
                9000
            )
            .is_none()
        );
        assert!(VnetHdr::checked(&VnetHdr { csum_start: 2, ..v }.to_bytes(), 9000).is_none());
        assert!(
            VnetHdr::checked(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0], 9000).is_none(),
            "UFO"
        );
        assert!(VnetHdr::checked(&[0; 9], 9000).is_none());
    }
}
