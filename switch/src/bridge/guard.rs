//! Source guard and ARP/ND inspection: a port says nothing under another's name.
//!
//! MAC guard: the Ethernet source is one of `allowed_macs`. IP guard: the packet's source is in `allowed_ips`, except
//! - IPv4 0.0.0.0, from a DHCP client (UDP 68 to 67, RFC 2131 4.1) or in IGMP (RFC 4541 2.1.1 5);
//! - IPv6 `::`, in duplicate address detection, router solicitation (RFC 4861 4.1, 4.3) and MLD reports (RFC 3590);
//! - IPv6 link-local addresses made of an allowed MAC by EUI-64 (RFC 4291 appendix A), or of the frame's source
//!   if no MACs are listed. A host with other link-local addresses has to have them listed.
//!
//! Inspection, of ARP (RFC 826) and ND (RFC 4861): the sender's hardware address and the link-layer address options are the
//! Ethernet source; sender addresses and the targets of advertisements and of duplicate address detection are the port's
//! (ARP's sender may be 0.0.0.0, a probe, RFC 5227). Router advertisements and redirects are refused (RFC 6105):
//! hosts don't send them.
//!
//! What can't be judged is refused: damaged IP or ARP, and what is under three or more VLAN tags.

use super::PortConfig;
use crate::frame::DropReason;
use crate::wire::{EtherType, L3, L4, MacAddr, Meta};
use std::net::{IpAddr, Ipv6Addr};

/// What a port may claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guard {
    /// Sorted.
    macs: Vec<MacAddr>,
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    guards_ip: bool,
    inspects: bool,
}

const RS: u8 = 133;
const RA: u8 = 134;
const NS: u8 = 135;
const NA: u8 = 136;
const REDIRECT: u8 = 137;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD2_REPORT: u8 = 143;

impl Guard {
    /// `None` if the port is free to send what it likes.
    pub(super) fn new(config: &PortConfig) -> Option<Guard> {
        if config.allowed_macs.is_empty() && config.allowed_ips.is_empty() && !config.arp_inspection
        {
            return None;
        }
        let mut guard = Guard {
            macs: config.allowed_macs.clone(),
            guards_ip: !config.allowed_ips.is_empty(),
            inspects: config.arp_inspection,
            ..Guard::default()
        };
        guard.macs.sort_unstable();
        for (ip, len) in &config.allowed_ips {
            match ip {
                IpAddr::V4(a) => {
                    let mask = u32::MAX
                        .checked_shl(32 - u32::from(*len).min(32))
                        .unwrap_or(0);
                    guard.v4.push((a.to_bits() & mask, mask));
                }
                IpAddr::V6(a) => {
                    let mask = u128::MAX
                        .checked_shl(128 - u32::from(*len).min(128))
                        .unwrap_or(0);
                    guard.v6.push((a.to_bits() & mask, mask));
                }
            }
        }
        Some(guard)
    }

    /// Judges a frame that the port sent.
    pub(super) fn judge(&self, head: &[u8], m: &Meta) -> Result<(), DropReason> {
        if !self.macs.is_empty() && self.macs.binary_search(&m.src).is_err() {
            return Err(DropReason::MacGuard);
        }
        if !self.guards_ip && !self.inspects {
            return Ok(());
        }
        let pass = match (m.l3, m.ethertype) {
            (L3::V4, _) => self.ipv4(head, m),
            (L3::V6, _) => self.ipv6(head, m)?,
            (L3::Arp, _) => return self.arp(head, m).ok_or(DropReason::ArpInspection),
            (L3::Other, EtherType::ARP) if self.inspects => return Err(DropReason::ArpInspection),
            (L3::Other, EtherType::IPV4 | EtherType::IPV6 | EtherType::VLAN | EtherType::QINQ) => {
                None
            }
            _ => Some(()),
        };
        pass.ok_or(DropReason::IpGuard)
    }

    fn owns_v4(&self, ip: u32) -> bool {
        !self.guards_ip || self.v4.iter().any(|(net, mask)| ip & mask == *net)
    }

    fn owns_v6(&self, ip: u128, src: MacAddr) -> bool {
        !self.guards_ip
            || self.v6.iter().any(|(net, mask)| ip & mask == *net)
            || if self.macs.is_empty() {
                link_local(src) == ip
            } else {
                self.macs.iter().any(|m| link_local(*m) == ip)
            }
    }

    fn ipv4(&self, head: &[u8], m: &Meta) -> Option<()> {
        let src = u32::from_be_bytes(array(head, m.l3_off, 12)?);
        if src == 0 && self.guards_ip {
            const IGMP: u8 = 2;
            let dhcp = m.l4 == L4::Udp && array(head, m.l4_off, 0) == Some([0, 68, 0, 67]);
            return (dhcp || m.proto == IGMP).then_some(());
        }
        self.owns_v4(src).then_some(())
    }

    fn ipv6(&self, head: &[u8], m: &Meta) -> Result<Option<()>, DropReason> {
        let Some(src) = array(head, m.l3_off, 8).map(u128::from_be_bytes) else {
            return Ok(None);
        };
        let kind = (m.l4 == L4::Icmp6)
            .then(|| array::<1>(head, m.l4_off, 0))
            .flatten()
            .map_or(0, |[k]| k);
        if src == 0 && self.guards_ip {
            let known = matches!(kind, NS | RS | MLD_REPORT | MLD_DONE | MLD2_REPORT);
            if !known {
                return Ok(None);
            }
        } else if !self.owns_v6(src, m.src) {
            return Ok(None);
        }
        if self.inspects {
            self.nd(head, m, kind, src)
                .ok_or(DropReason::ArpInspection)?;
        }
        Ok(Some(()))
    }

    fn arp(&self, head: &[u8], m: &Meta) -> Option<()> {
        if !self.inspects && !self.guards_ip {
            return Some(());
        }
        let sender: [u8; 6] = array(head, m.l3_off, 8)?;
        let ip = u32::from_be_bytes(array(head, m.l3_off, 14)?);
        if self.inspects && MacAddr(sender) != m.src {
            return None;
        }
        // The IP guard alone doesn't look into ARP.
        (!self.inspects || ip == 0 || self.owns_v4(ip)).then_some(())
    }

    fn nd(&self, head: &[u8], m: &Meta, kind: u8, src: u128) -> Option<()> {
        let (options, option) = match kind {
            RA | REDIRECT => return None,
            RS => (8, 1),
            NS => (24, 1),
            NA => (24, 2),
            _ => return Some(()),
        };
        // A fragmented ND message is no ND message (RFC 6980).
        if m.fragment {
            return None;
        }
        if kind == NA || (kind == NS && src == 0) {
            let target = u128::from_be_bytes(array(head, m.l4_off, 8)?);
            if !self.owns_v6(target, m.src) {
                return None;
            }
        }
        let end = (m.l3_end as usize).min(head.len());
        let mut rest = head.get(usize::from(m.l4_off) + options..end)?;
        while !rest.is_empty() {
            // Type and length, in units of 8 bytes (RFC 4861 4.6).
            let (&[ty, units], _) = rest.split_first_chunk::<2>()?;
            let (this, next) = rest.split_at_checked(usize::from(units) * 8)?;
            if this.is_empty() {
                return None;
            }
            if ty == option && this.get(2..8) != Some(&m.src.0[..]) {
                return None;
            }
            rest = next;
        }
        Some(())
    }
}

fn array<const N: usize>(head: &[u8], off: u16, at: usize) -> Option<[u8; N]> {
    head.get(usize::from(off) + at..)?.first_chunk().copied()
}

/// The link-local address of an interface identifier made of a MAC (modified EUI-64).
fn link_local(mac: MacAddr) -> u128 {
    let [a, b, c, d, e, f] = mac.0;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).to_bits() | u128::from(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::NetworkId;
    use crate::wire;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const LL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 1];
    const GLOBAL: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn guard() -> Guard {
        let mut c = PortConfig::new(NetworkId(0));
        c.allowed_macs = vec![MacAddr(MAC)];
        c.allowed_ips = vec![
            ("192.0.2.1".parse().expect("address"), 32),
            ("2001:db8::1".parse().expect("address"), 128),
        ];
        c.arp_inspection = true;
        Guard::new(&c).expect("guards")
    }

    fn judge(src: [u8; 6], ty: u16, l3: &[u8]) -> Result<(), DropReason> {
        let mut f = vec![0xff; 6];
        f.extend(src);
        f.extend(ty.to_be_bytes());
        f.extend(l3);
        let m = wire::parse(&f, f.len()).expect("long enough");
        guard().judge(&f, &m)
    }

    fn v4(src: [u8; 4], proto: u8, l4: &[u8]) -> Vec<u8> {
        let mut p = vec![0x45, 0, 0, 20 + l4.len() as u8, 0, 0, 0, 0, 64, proto, 0, 0];
        p.extend(src);
        p.extend([255; 4]);
        p.extend(l4);
        p
    }

    fn v6(src: [u8; 16], icmp: &[u8]) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255];
        p.extend(src);
        p.extend([0xff; 16]);
        p.extend(icmp);
        p
    }

    fn nd(kind: u8, target: [u8; 16], option: u8, mac: [u8; 6]) -> Vec<u8> {
        let mut p = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        p.extend(target);
        p.extend([option, 1]);
        p.extend(mac);
        p
    }

    fn arp(mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
        let mut p = vec![0, 1, 8, 0, 6, 4, 0, 2];
        p.extend(mac);
        p.extend(ip);
        p.extend([0; 10]);
        p
    }

    #[test]
    fn own_names_pass() {
        assert_eq!(judge(MAC, 0x0800, &v4([192, 0, 2, 1], 1, &[8; 8])), Ok(()));
        assert_eq!(judge(MAC, 0x86dd, &v6(GLOBAL, &[128; 8])), Ok(()));
        assert_eq!(
            judge(MAC, 0x86dd, &v6(LL, &nd(135, OTHER_V6, 1, MAC))),
            Ok(())
        );
        assert_eq!(
            judge(MAC, 0x86dd, &v6(GLOBAL, &nd(136, GLOBAL, 2, MAC))),
            Ok(())
        );
        assert_eq!(judge(MAC, 0x0806, &arp(MAC, [192, 0, 2, 1])), Ok(()));
        assert_eq!(judge(MAC, 0x0806, &arp(MAC, [0; 4])), Ok(()));
        let dhcp = [0, 68, 0, 67, 0, 8, 0, 0];
        assert_eq!(judge(MAC, 0x0800, &v4([0; 4], 17, &dhcp)), Ok(()));
        // Duplicate address detection of its own address.
        let mut dad = vec![135, 0, 0, 0, 0, 0, 0, 0];
        dad.extend(GLOBAL);
        assert_eq!(judge(MAC, 0x86dd, &v6([0; 16], &dad)), Ok(()));
        assert_eq!(judge(MAC, 0x88cc, &[0; 40]), Ok(()));
    }

    const OTHER_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    #[test]
    fn others_names_are_refused() {
        let (mac, ip, arpi) = (
            Err(DropReason::MacGuard),
            Err(DropReason::IpGuard),
            Err(DropReason::ArpInspection),
        );
        assert_eq!(judge(OTHER, 0x0800, &v4([192, 0, 2, 1], 1, &[8; 8])), mac);
        assert_eq!(judge(MAC, 0x0800, &v4([192, 0, 2, 2], 1, &[8; 8])), ip);
        assert_eq!(
            judge(MAC, 0x0800, &v4([0; 4], 17, &[0, 53, 0, 67, 0, 8, 0, 0])),
            ip
        );
        assert_eq!(judge(MAC, 0x0800, &[0x45, 0, 0, 99]), ip, "damaged");
        assert_eq!(
            judge(MAC, 0x8100, &[0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 8, 0]),
            ip
        );
        assert_eq!(judge(MAC, 0x86dd, &v6(OTHER_V6, &[128; 8])), ip);
        assert_eq!(judge(MAC, 0x86dd, &v6([0; 16], &[128; 8])), ip);
        assert_eq!(judge(MAC, 0x0806, &arp(OTHER, [192, 0, 2, 1])), arpi);
        assert_eq!(judge(MAC, 0x0806, &arp(MAC, [192, 0, 2, 2])), arpi);
        assert_eq!(judge(MAC, 0x0806, &[0; 8]), arpi);
        assert_eq!(
            judge(MAC, 0x86dd, &v6(GLOBAL, &nd(136, OTHER_V6, 2, MAC))),
            arpi
        );
        assert_eq!(
            judge(MAC, 0x86dd, &v6(GLOBAL, &nd(136, GLOBAL, 2, OTHER))),
            arpi
        );
        assert_eq!(
            judge(MAC, 0x86dd, &v6(LL, &nd(135, OTHER_V6, 1, OTHER))),
            arpi
        );
        assert_eq!(
            judge(MAC, 0x86dd, &v6(LL, &nd(134, OTHER_V6, 3, MAC))),
            arpi
        );
        let mut zero_option = nd(135, OTHER_V6, 1, MAC);
        zero_option[25] = 0;
        assert_eq!(judge(MAC, 0x86dd, &v6(LL, &zero_option)), arpi);
    }

    #[test]
    fn truncations_never_panic_or_pass_ip() {
        let whole = v6(GLOBAL, &nd(136, GLOBAL, 2, MAC));
        for n in 0..whole.len() {
            assert!(judge(MAC, 0x86dd, &whole[..n]).is_err(), "{n}");
        }
    }
}
