//! What many scenarios stand on: a daemon as the host with a network for containers, and a machine outside that knows the host only.

use crate::daemon::Daemon;
use crate::lab::{Lab, Mtu};
use crate::node::Node;

/// The machine outside.
pub const FAR: [&str; 2] = ["198.51.100.254", "2001:db8:2::254"];
/// The host, as it is known outside.
pub const HOST: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
/// The gateway of network `lan`, in 192.0.2.0/24 and 2001:db8:1::/64.
const GATEWAY: &str = "192.0.2.1,2001:db8:1::1";

/// The host, with network `lan` and a host uplink, and the machine outside. `first` is done to the daemon before; `set` is what the gateway
/// is set to besides.
pub fn ground(lab: &Lab, set: &[&str], first: impl FnOnce(&Daemon)) -> (Daemon, Node) {
    let outside = lab.host("outside");
    let d = lab.daemon();
    first(&d);
    lab.link(d.host(), "out0", &outside, "eth0", Mtu(1500));
    for (node, interface, at) in [(d.host(), "out0", HOST), (&outside, "eth0", FAR)] {
        node.addr(interface, &format!("{}/24", at[0]));
        node.addr(interface, &format!("{}/64", at[1]));
    }
    d.ctl(&["network", "add", "lan"]);
    let common = ["gateway", "set", "lan", "--host-uplink", "on"];
    let addresses = ["--addresses", "192.0.2.1/24,2001:db8:1::1/64"];
    d.ctl(&[&common[..], &addresses, set].concat());
    (d, outside)
}

/// Container `a` in network `lan`, as .10 and ::10, with the gateway's addresses as its default routes; attached with these options besides.
#[track_caller]
pub fn attached(lab: &Lab, d: &Daemon, options: &[&str]) -> Node {
    let a = lab.container("a");
    let ip = "192.0.2.10/24,2001:db8:1::10/64";
    d.attach(&a, "lan", ip, &[&["--gw", GATEWAY], options].concat());
    a
}
