//! MAC addresses that stay.
//!
//! An interface that is made anew gets a random address from the kernel, and whoever knew the old one sends into the void until
//! his ARP entry ages, most of a minute. So where a state is kept, a container's interface without an address of its own gets
//! one made of the machine, the state's file, the network and the port's name: the same after a restart, or when the
//! container comes back, and another for every other switch.

use crate::model::{Port, PortKind};
use crate::units::Mac;
use std::borrow::Cow;
use std::path::Path;
use vswitch_core::wire::MacAddr;

/// The port with the address that it keeps, if none is configured.
pub(super) fn addressed<'a>(state: Option<&Path>, name: &str, port: &'a Port) -> Cow<'a, Port> {
    // One in our own namespace without addresses is left to its user.
    let container = port.netns.is_some() || !port.addresses.is_empty();
    let ours = matches!(port.kind, PortKind::Tap | PortKind::Veth) && container;
    match state {
        Some(state) if ours && port.mac.is_none() => {
            let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
            let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
            let state = state.as_os_str().as_encoded_bytes();
            let parts = [&machine, state, port.network.as_bytes(), name.as_bytes()];
            let mut port = port.clone();
            port.mac = Some(Mac(made_of(&parts)));
            Cow::Owned(port)
        }
        _ => Cow::Borrowed(port),
    }
}

/// A unicast, locally administered address (IEEE 802 8.4): FNV-1a, mixed so that the low octets hang on all of it.
pub(super) fn made_of(parts: &[&[u8]]) -> MacAddr {
    let bytes = parts.iter().flat_map(|p| p.iter().chain(&[0xff]));
    let hash = crate::fnv::hash(bytes.copied());
    let [a, b, c, d, e, f, ..] = (hash ^ hash >> 29)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
        .to_be_bytes();
    MacAddr([a & 0xfc | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stays_and_is_nobody_elses() {
        let mut port = Port::new("lan");
        port.addresses = vec!["192.0.2.1/24".parse().unwrap()];
        let mac = |state: &str, name: &str, port: &Port| {
            let port = addressed(Some(Path::new(state)), name, port);
            port.mac.clone().unwrap()
        };
        let one = mac("/s", "a", &port);
        assert_eq!(one, mac("/s", "a", &port));
        assert!(!one.0.is_group() && one.0.0[0] & 2 != 0);
        assert_ne!(one, mac("/s", "b", &port));
        assert_ne!(one, mac("/t", "a", &port));
        port.mac = Some("02:00:00:00:00:01".parse().unwrap());
        assert_eq!(mac("/s", "a", &port), "02:00:00:00:00:01".parse().unwrap());
        // One that asks for its addresses is known by it.
        let mut asking = Port::new("lan");
        asking.netns = Some("web".into());
        assert!(addressed(Some(Path::new("/s")), "a", &asking).mac.is_some());
        assert_eq!(addressed(None, "a", &Port::new("lan")).mac, None);
    }
}
