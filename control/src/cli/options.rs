//! Options that are fields of the model. Serialised they are a JSON merge patch, so `add` and `set` share them.

use super::CtlError;
use crate::model::{PortKind, Receive};
use crate::units::{BitRate, Cidr, FrameRate, Mac, Span, Vlans};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use std::net::IpAddr;

/// `on` or `off`, or another word for it.
pub(super) fn on_off(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "yes" | "true" | "1" => Ok(true),
        "off" | "no" | "false" | "0" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

/// An interface's address. One without a length would be alone in its prefix, which nobody means.
pub(super) fn with_length(text: &str) -> Result<Cidr, String> {
    let address: Cidr = text.parse().map_err(|e| format!("{e}"))?;
    if text.contains('/') {
        return Ok(address);
    }
    let len = if address.0.0.is_ipv4() { 24 } else { 64 };
    Err(format!(
        "the length of the network's prefix is missing: write it like {text}/{len}"
    ))
}

#[derive(Debug, Default, Args, Serialize)]
pub(super) struct NetworkOptions {
    /// How long a learned MAC stays without being seen; 0s is for ever [default: 300s].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ageing: Option<Span>,
    /// A leave message ends a multicast membership at once.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    fast_leave: Option<bool>,
    /// Most FDB entries [default: 65536].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    fdb_limit: Option<u32>,
    /// How long a port is shut for a loop the first time [default: 30s].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    loop_hold: Option<Span>,
    /// Time between two loop probes of a port [default: 5s].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    loop_interval: Option<Span>,
    /// Most multicast memberships [default: 4096].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mdb_limit: Option<u32>,
    /// How long a multicast membership is remembered [default: 260s].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<Span>,
    /// The switch itself asks for multicast memberships.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    querier: Option<bool>,
    /// Snoop IGMP and MLD.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    snooping: Option<bool>,
    /// 802.1Q tags select VLANs.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan_aware: Option<bool>,
}

/// What of a port can be changed while it is there.
#[derive(Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Limits, guards and VLANs")]
pub(super) struct PortOptions {
    /// Further names in the network's DNS.
    #[arg(long = "alias", value_delimiter = ',', value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    aliases: Option<Vec<String>>,
    /// IP source guard: accept only these prefixes.
    #[arg(long, value_delimiter = ',', value_name = "PREFIX")]
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_ips: Option<Vec<Cidr>>,
    /// MAC source guard: accept only these addresses.
    #[arg(long, value_delimiter = ',', value_name = "MAC")]
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_macs: Option<Vec<Mac>>,
    /// Drop ARP and ND claims of addresses that aren't allowed.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    arp_inspection: Option<bool>,
    /// Limit of broadcast frames received.
    #[arg(long, value_name = "RATE")]
    #[serde(skip)]
    broadcast_limit: Option<FrameRate>,
    /// Most bits per second sent.
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_rate: Option<BitRate>,
    /// May send a frame back where it came from.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    hairpin: Option<bool>,
    /// Most bits per second received.
    #[arg(long, value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress_rate: Option<BitRate>,
    /// Exchange no frame with other isolated ports.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated: Option<bool>,
    /// Labels, by which policies speak of it.
    #[arg(long, value_delimiter = ',', value_name = "LABEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<String>>,
    /// Learn source MACs [default: on].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    learning: Option<bool>,
    /// Send loop probes, and shut the port when one comes back [default: on].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    loop_guard: Option<bool>,
    /// Most MACs learned.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_limit: Option<u32>,
    /// Largest packet in bytes [default: 1500].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    /// Limit of multicast frames received.
    #[arg(long, value_name = "RATE")]
    #[serde(skip)]
    multicast_limit: Option<FrameRate>,
    /// A multicast router is behind the port.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    multicast_router: Option<bool>,
    /// VLAN of untagged frames received; 0 refuses them [default: 1].
    #[arg(long, value_name = "VLAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pvid: Option<u16>,
    /// VLANs received and sent with tag, such as 10,20-30.
    #[arg(long, value_name = "VLANS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tagged: Option<Vlans>,
    /// Limit of frames received for unknown destinations.
    #[arg(long, value_name = "RATE")]
    #[serde(skip)]
    unknown_limit: Option<FrameRate>,
    /// VLANs sent without tag [default: the PVID].
    #[arg(long, value_name = "VLANS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    untagged: Option<Vlans>,
    /// Whether frames may pass [default: on].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    up: Option<bool>,
}

/// Where a port's frames come from and go to.
#[derive(Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Where its frames come from and go to")]
pub(super) struct PortPlace {
    /// Addresses of the container's interface.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS/LEN", value_parser = with_length)]
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<Cidr>>,
    /// Unix socket to connect to (stream) or send to (dgram).
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<String>,
    /// Name of the device [default: the port's name].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Default gateways of the container.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<IpAddr>>,
    /// What sort of port [default: tap].
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<PortKind>,
    /// Unix socket to listen on (stream) or bind (dgram).
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// MAC address of the container's interface.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
    /// Namespace of the device: a path, a name under /run/netns, or pid:NUMBER.
    #[arg(long, value_name = "NETNS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    /// Frames that may wait to be sent [default: 1000].
    #[arg(long, value_name = "FRAMES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
    /// How frames come from the interface of a veth or packet port [default: socket].
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    receive: Option<Receive>,
    /// Memory of the receive ring, per worker [default: 16384].
    #[arg(long, value_name = "KIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ring_kib: Option<u32>,
}

/// Fields that go back to their defaults.
#[derive(Debug, Args)]
pub(super) struct Unset {
    /// Take fields back to their defaults, by name, such as egress_rate or mtu.
    #[arg(long, value_delimiter = ',', value_name = "FIELD")]
    unset: Vec<String>,
}

impl Unset {
    /// Adds them to a patch.
    pub(super) fn put(&self, body: &mut Map<String, Value>) {
        let fields = self.unset.iter().map(|f| f.replace('-', "_"));
        body.extend(fields.map(|f| (f, Value::Null)));
    }
}

/// The patch of a `set`, which must change something.
pub(super) fn changes(
    what: &str,
    name: &str,
    patch: Map<String, Value>,
) -> Result<Value, CtlError> {
    if patch.is_empty() {
        return Err(CtlError::Usage {
            act: "changing",
            thing: format!("{what} `{name}`"),
            reason: "no option says how".into(),
            remedy: "name one; --help lists them",
        });
    }
    Ok(Value::Object(patch))
}

/// As a patch.
pub(super) fn patch(options: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(m)) => m,
        _ => Map::new(),
    }
}

impl PortOptions {
    /// As a patch, flood limits included.
    pub(super) fn patch(&self) -> Map<String, Value> {
        let mut map = patch(self);
        let limits = [
            ("broadcast", &self.broadcast_limit),
            ("multicast", &self.multicast_limit),
            ("unknown", &self.unknown_limit),
        ];
        let storm: Map<String, Value> = limits
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v.as_ref()?.to_string().into())))
            .collect();
        if !storm.is_empty() {
            map.insert("storm".into(), Value::Object(storm));
        }
        map
    }
}
