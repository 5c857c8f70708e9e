//! Tracing: what would become of a frame, asked of the data path itself.
//!
//! The frame is given as it is, or made from fields; what isn't named is taken from what the switch knows: the port's addresses, the
//! gateway's or the neighbour's MAC. Worker 0 is asked: it has the gateways, and every worker's tables.

mod craft;

use super::Plane;
use crate::refusal::{Kind, Refusal};
use crate::units::{IcmpTypes, Mac, Protocols};
use craft::Fields;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_core::bridge::fdb::FdbCursor;
use vswitch_core::frame::{Frame, gso};
use vswitch_core::port::PortId;
use vswitch_core::wire::MacAddr;
use vswitch_core::worker::{Leaving, Origin, Outcome, Step, Trace, Worker};
use vswitch_nat::Pipeline;
use vswitch_nat::gateway::contains;

/// Buckets of an FDB read in one turn.
const FDB_CHUNK: usize = 4096;

/// A frame to be traced: its bytes, or fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TraceRequest {
    /// The port that receives it.
    pub from: String,
    /// The whole frame in hexadecimal digits, Ethernet header included, FCS not; no other field then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Source MAC: by default the one learned at the port, or the one configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_mac: Option<Mac>,
    /// Destination MAC: by default the next hop's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_mac: Option<Mac>,
    /// VLAN of its tag; no tag by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Source address: by default the port's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub src_ip: Option<IpAddr>,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dst_ip: Option<IpAddr>,
    /// Protocol, by name or number: by default tcp, or icmp if an ICMP type is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Source port, or identifier of an ICMP query; 49152 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// ICMP type; echo-request by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// TCP flags by their letters; S by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<String>,
    /// TTL or hop limit; 64 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Whether IPv4 mustn't fragment it; yes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dont_fragment: Option<bool>,
    /// Bytes of payload behind the headers; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<u16>,
    /// Bytes of payload of the segments that the sender's offloads leave to be made (TSO, USO). By default a given frame of TCP
    /// that is over the port's MTU has segments of the MTU, and others have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gso_size: Option<u16>,
}

/// A decision on the frame's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Who decides: `receive`, `loop guard`, `ingress`, `learn`, `fdb`, `group`, `policy`, `gateway`, `conntrack`, `publish`, `route`,
    /// `nat`, `fragments`, `neighbour`, `egress`.
    pub stage: String,
    /// What.
    pub decision: String,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The port that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The network that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// A frame at a port where it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeavingView {
    /// The port.
    pub port: String,
    /// How many frames it becomes: more than one if it is divided for the port.
    pub frames: usize,
    /// The frame as it leaves, or the first one that it becomes, in hexadecimal digits.
    pub frame: String,
    /// Why it doesn't leave there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<String>,
}

/// A frame that the switch would send besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentView {
    /// The port that it would leave by.
    pub port: String,
    /// `copy` for a mirror session, or `made`: an answer, or a request for an address.
    pub kind: String,
    /// The frame in hexadecimal digits.
    pub frame: String,
}

/// What would become of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceView {
    /// `sent`, `held` or `dropped`; what the switch answers itself is dropped as `consumed`.
    pub verdict: String,
    /// Why it is dropped, as counted in statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The port that receives it.
    pub from: String,
    /// The frame in hexadecimal digits.
    pub frame: String,
    /// The decisions in order.
    pub steps: Vec<StepView>,
    /// Where it leaves.
    pub sent: Vec<LeavingView>,
    /// What the switch would send besides.
    pub besides: Vec<SentView>,
}

/// What the data path knows that fields can be filled with.
#[derive(Debug, Default)]
struct Known {
    /// VLAN and MAC of the gateway in the port's network.
    gateway: Option<MacAddr>,
    /// MACs learned at ports of the network.
    learned: Vec<(PortId, MacAddr)>,
    /// Neighbours in the network.
    neighbours: Vec<(IpAddr, MacAddr)>,
}

fn wrong(thing: impl Into<String>, reason: impl Into<String>, remedy: &str) -> Refusal {
    Refusal::new(Kind::Invalid, "tracing", thing, reason, remedy)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect();
    let digits = digits?;
    digits.len().is_multiple_of(2).then(|| {
        let pairs = digits.chunks_exact(2);
        pairs.map(|p| p[0] << 4 | p[1]).collect()
    })
}

impl Plane {
    /// What would become of a frame, at this moment; nothing changes by it.
    pub fn trace(&self, q: &TraceRequest) -> Result<TraceView, Refusal> {
        let Some(port) = self.desired.ports.get(&q.from) else {
            let known = self.desired.ports.keys();
            return Err(Refusal::missing("tracing", "port", &q.from, known));
        };
        let thing = || format!("a frame from `{}`", q.from);
        let (id, network) = match (self.ports.get(&q.from), self.networks.get(&port.network)) {
            (Some(live), Some(network)) if live.open => (live.id, *network),
            _ => {
                let remedy = "see `vswitchctl port show` for the reason";
                return Err(wrong(thing(), "the port isn't open", remedy));
            }
        };
        let bytes = match &q.frame {
            Some(text) => {
                let alone = TraceRequest {
                    from: q.from.clone(),
                    frame: q.frame.clone(),
                    gso_size: q.gso_size,
                    ..TraceRequest::default()
                };
                if *q != alone {
                    let reason = "the frame is given, and fields as well";
                    return Err(wrong(thing(), reason, "leave one of them out"));
                }
                let remedy = "write two hexadecimal digits for each byte";
                unhex(text).ok_or_else(|| wrong(thing(), "it isn't hexadecimal", remedy))?
            }
            None => self.craft(q, id, network)?,
        };
        let mut frame = Frame::from_bytes(&bytes).ok_or_else(|| {
            let remedy = "trace one that a port could receive";
            wrong(thing(), "it is longer than a frame can be", remedy)
        })?;
        let joined = q.frame.as_ref();
        let joined = joined.and_then(|_| gso::segment_size(&frame, port.mtu));
        if let Some(size) = q.gso_size.or(joined)
            && !gso::offload(&mut frame, size)
        {
            let reason = "only TCP and UDP packets have segments, of at least one byte";
            return Err(wrong(thing(), reason, "leave the size of segments out"));
        }
        let worker = self.workers.first();
        let trace = worker.and_then(|w| w.call(move |w| w.trace(id, frame)).ok());
        let trace = trace.ok_or_else(|| {
            let reason = "the data path doesn't answer";
            Refusal::new(Kind::Failed, "tracing", thing(), reason, "restart vswitchd")
        })?;
        Ok(self.trace_view(trace, &q.from, &bytes))
    }

    fn trace_view(&self, trace: Trace, from: &str, frame: &[u8]) -> TraceView {
        let (verdict, reason) = match trace.outcome {
            Outcome::Sent => ("sent", None),
            Outcome::Held => ("held", None),
            Outcome::Dropped(why) => ("dropped", Some(why.as_str().to_owned())),
        };
        let step = |s: Step| StepView {
            stage: s.stage.into(),
            decision: s.decision.into(),
            detail: s.detail,
            port: s.port.map(|p| self.port_name(p)),
            network: s.network.map(|n| self.network_name(n.0)),
        };
        let leaving = |l: Leaving| LeavingView {
            port: self.port_name(l.port),
            frames: l.frames,
            frame: hex(&l.frame),
            drop: l.drop.map(|d| d.as_str().to_owned()),
        };
        let besides = |(port, frame, origin): (PortId, Vec<u8>, Origin)| SentView {
            port: self.port_name(port),
            kind: match origin {
                Origin::Copy => "copy",
                Origin::Switch | Origin::Held => "made",
            }
            .into(),
            frame: hex(&frame),
        };
        TraceView {
            verdict: verdict.into(),
            reason,
            from: from.into(),
            frame: hex(frame),
            steps: trace.steps.into_iter().map(step).collect(),
            sent: trace.sent.into_iter().map(leaving).collect(),
            besides: trace.emitted.into_iter().map(besides).collect(),
        }
    }

    /// What the data path knows of a network. Taken in pieces, so that no turn is long.
    fn known(&self, network: NetworkId) -> Known {
        let mut known = Known::default();
        let Some(worker) = self.workers.first() else {
            return known;
        };
        let neighbours = |w: &mut Worker<Pipeline>| w.stage.gateway.neighbours(w.cx.now);
        let neighbours = worker.call(neighbours).unwrap_or_default();
        let here = neighbours.into_iter().filter(|n| n.network == network);
        known.neighbours = here.filter_map(|n| Some((n.ip, n.mac?))).collect();
        let mut next = Some(FdbCursor::default());
        while let Some(from) = next {
            let part = worker.call(move |w| w.stage.bridge.dump(network, from, FDB_CHUNK));
            let Ok((some, then)) = part else { break };
            next = then;
            for e in some {
                match e.port {
                    PortId::GATEWAY => known.gateway = Some(e.mac()),
                    port => known.learned.push((port, e.mac())),
                }
            }
        }
        known
    }

    /// Makes a frame from fields.
    fn craft(&self, q: &TraceRequest, id: PortId, network: NetworkId) -> Result<Vec<u8>, Refusal> {
        let thing = || format!("a frame from `{}`", q.from);
        let Some(dst) = q.dst_ip else {
            let remedy = "name it, or give the whole frame";
            return Err(wrong(thing(), "it has no destination address", remedy));
        };
        let known = self.known(network);
        let macs_at = |port| {
            let here = known.learned.iter().filter(move |(p, _)| *p == port);
            here.map(|(_, mac)| *mac)
        };
        let port = self.desired.ports.get(&q.from);
        let configured = port.and_then(|p| p.mac.as_ref().or(p.allowed_macs.first()));
        let src_mac = q.src_mac.as_ref().or(configured).map(|m| m.0);
        let src_mac = src_mac.or_else(|| macs_at(id).next()).ok_or_else(|| {
            let reason = "no MAC was learned at the port";
            wrong(thing(), reason, "name the source MAC (--src-mac)")
        })?;
        let of_family = |ip: &IpAddr| ip.is_ipv4() == dst.is_ipv4();
        let own = port.into_iter().flat_map(|p| &p.addresses).map(|c| c.0.0);
        let guarded = port.into_iter().flat_map(|p| &p.allowed_ips);
        let guarded = guarded.map(|c| c.0.0);
        let heard = known.neighbours.iter().filter(|(_, mac)| *mac == src_mac);
        let heard = heard
            .map(|(ip, _)| *ip)
            .filter(|ip| !matches!(ip, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80));
        let src = q
            .src_ip
            .or_else(|| own.chain(heard).chain(guarded).find(of_family));
        let src = src.ok_or_else(|| {
            let reason = "the port's address isn't known";
            wrong(thing(), reason, "name the source address (--src-ip)")
        })?;
        if src.is_ipv4() != dst.is_ipv4() {
            let reason = format!("{src} and {dst} are of different families");
            return Err(wrong(thing(), reason, "name addresses of one family"));
        }
        let dst_mac = match &q.dst_mac {
            Some(mac) => mac.0,
            None => self.next_mac(q, dst, &known)?,
        };
        let (proto, icmp) = protocol(q, dst.is_ipv4())?;
        let flags = q.tcp_flags.as_deref().unwrap_or("S");
        let flags = craft::flags(flags).ok_or_else(|| {
            let thing = format!("TCP flags `{flags}`");
            wrong(thing, "unknown letters", "use those of F, S, R, P, A, U")
        })?;
        if let Some(vlan) = q.vlan
            && !(1..4095).contains(&vlan)
        {
            let thing = format!("VLAN {vlan}");
            return Err(wrong(thing, "there is no such VLAN", "use 1 to 4094"));
        }
        let fields = Fields {
            macs: (src_mac, dst_mac),
            vlan: q.vlan,
            ends: (src, dst),
            proto,
            ports: (q.sport.unwrap_or(49_152), q.dport.unwrap_or(0)),
            icmp,
            flags,
            ttl: q.ttl.unwrap_or(64),
            dont_fragment: q.dont_fragment.unwrap_or(true),
            payload: q.payload.unwrap_or(0).into(),
        };
        craft::frame(&fields).ok_or_else(|| {
            let reason = "it is longer than a packet can be";
            wrong(thing(), reason, "make its payload shorter")
        })
    }

    /// The MAC of who is next on the way to an address.
    fn next_mac(&self, q: &TraceRequest, dst: IpAddr, known: &Known) -> Result<MacAddr, Refusal> {
        match dst {
            IpAddr::V4(a) if a.is_broadcast() => return Ok(MacAddr([0xff; 6])),
            IpAddr::V4(a) if a.is_multicast() => {
                let [_, b, c, d] = a.octets();
                return Ok(MacAddr([1, 0, 0x5e, b & 0x7f, c, d]));
            }
            IpAddr::V6(a) if a.is_multicast() => {
                let [.., a, b, c, d] = a.octets();
                return Ok(MacAddr([0x33, 0x33, a, b, c, d]));
            }
            _ => {}
        }
        let port = self.desired.ports.get(&q.from);
        let network = port.and_then(|p| self.desired.networks.get(&p.network));
        let gateway = network.and_then(|n| n.gateway.as_ref());
        let own = gateway.into_iter().flat_map(|g| &g.addresses);
        let mut on_link = own.clone().map(|a| a.0);
        let routed = gateway.is_some() && !on_link.any(|p| contains(p, dst));
        let for_gateway = routed || own.clone().any(|a| a.0.0 == dst);
        if let Some(mac) = known.gateway.filter(|_| for_gateway) {
            return Ok(mac);
        }
        if let Some((_, mac)) = known.neighbours.iter().find(|(ip, _)| *ip == dst) {
            return Ok(*mac);
        }
        let here = |p: &crate::model::Port| port.is_some_and(|from| from.network == p.network);
        let has = |p: &crate::model::Port| here(p) && p.addresses.iter().any(|c| c.0.0 == dst);
        let at = self.desired.ports.iter().find(|(_, p)| has(p));
        let configured = at.and_then(|(_, p)| p.mac.as_ref()).map(|m| m.0);
        let at = at.and_then(|(name, _)| self.ports.get(name)).map(|l| l.id);
        let learned = known.learned.iter().find(|(p, _)| Some(*p) == at);
        configured.or(learned.map(|(_, m)| *m)).ok_or_else(|| {
            let thing = format!("a frame from `{}`", q.from);
            let reason = format!("the MAC of {dst} isn't known");
            wrong(thing, reason, "name the destination MAC (--dst-mac)")
        })
    }
}

/// Protocol, and type and code of an ICMP message.
fn protocol(q: &TraceRequest, v4: bool) -> Result<(u8, (u8, u8)), Refusal> {
    let several =
        |what: &str, text: &str| wrong(format!("{what} `{text}`"), "it is several", "name one");
    let read = |e: crate::units::UnitError, what: &str, text: &str| {
        wrong(format!("{what} `{text}`"), e.to_string(), "correct it")
    };
    let icmp_number = if v4 { 1 } else { 58 };
    let proto = match &q.proto {
        Some(text) => {
            let list: Protocols = text.parse().map_err(|e| read(e, "protocol", text))?;
            match list.0[..] {
                // Whichever is said, that of the family is meant.
                [1 | 58] => icmp_number,
                [one] => one,
                _ => return Err(several("protocol", text)),
            }
        }
        None if q.icmp.is_some() => icmp_number,
        None => 6,
    };
    let echo = if v4 { (8, 0) } else { (128, 0) };
    let icmp = match &q.icmp {
        Some(text) => {
            let list: IcmpTypes = text.parse().map_err(|e| read(e, "ICMP type", text))?;
            let [one] = list.0[..] else {
                return Err(several("ICMP type", text));
            };
            let numbers = one.numbers();
            let of_family = numbers.get(usize::from(!v4)).or(numbers.first());
            of_family.map_or(echo, |(kind, code)| (*kind, code.unwrap_or(0)))
        }
        None => echo,
    };
    Ok((proto, icmp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_as_people_paste_it() {
        assert_eq!(unhex("00ff 10:ab\n"), Some(vec![0, 0xff, 0x10, 0xab]));
        assert_eq!((unhex("0"), unhex("0g")), (None, None));
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
