//! Counters in Prometheus' text format (OpenMetrics 1.0), made when asked for.

use crate::plane::{
    AcceleratorView, Plane, PolicyView, PortStats, PublishedView, RuleCounts, SwitchingView,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A reading of all counters.
#[derive(Debug)]
struct Reading {
    /// With whether frames may pass; the gateways' virtual port has no link.
    ports: Vec<(PortStats, Option<bool>)>,
    networks: Vec<(String, usize)>,
    rules: Vec<(String, String, RuleCounts)>,
    published: Vec<PublishedView>,
    /// By port.
    switched: Vec<(String, SwitchingView)>,
    accelerator: Option<AcceleratorView>,
}

/// The text.
pub(crate) fn text(plane: &Plane) -> String {
    let states = plane.port_views();
    let up = |name: &str| {
        let port = states.iter().find(|p| p.name == name);
        port.map(|p| p.state == "up")
    };
    let stats = plane.stats();
    let ports = stats.ports;
    let reading = Reading {
        ports: ports
            .into_iter()
            .map(|p| (up(&p.name), p))
            .map(|(u, p)| (p, u))
            .collect(),
        networks: plane
            .network_views()
            .into_iter()
            .map(|n| (n.name, n.fdb_entries))
            .collect(),
        rules: plane.policy_views().into_iter().flat_map(rules).collect(),
        published: plane.published_views(),
        switched: states
            .iter()
            .filter_map(|p| Some((p.name.clone(), p.switching.clone()?)))
            .collect(),
        accelerator: stats.accelerator,
    };
    let mut registry = Registry::with_prefix("vswitch");
    registry.register_collector(Box::new(reading));
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = encode(&mut text, &registry);
    text
}

/// Counters of a policy's rules by name.
fn rules(p: PolicyView) -> impl Iterator<Item = (String, String, RuleCounts)> {
    let names = p.rule_names();
    let (policy, counts) = (p.name, p.counts);
    let all = names.into_iter().zip(counts);
    all.map(move |(rule, c)| (policy.clone(), rule, c))
}

type ReadRule = fn(&RuleCounts) -> u64;

const RULE_COUNTERS: [(&str, &str, Option<Unit>, ReadRule); 4] = [
    (
        "policy_rule_judged",
        "Connections and single packets judged by the rule",
        None,
        |c| c.judged,
    ),
    (
        "policy_rule_over_rate",
        "Of these, beyond the rule's rate",
        None,
        |c| c.over_rate,
    ),
    (
        "policy_rule_packets",
        "Packets of the rule's connections",
        None,
        |c| c.packets,
    ),
    (
        "policy_rule",
        "Bytes of the rule's connections",
        Some(Unit::Bytes),
        |c| c.bytes,
    ),
];

type ReadPublished = fn(&PublishedView) -> u64;

const PUBLISHED_COUNTERS: [(&str, &str, ReadPublished); 3] = [
    (
        "published_accepted",
        "Connections, or clients, that came to the published port at sockets of the host",
        |p| p.accepted,
    ),
    (
        "published_spliced",
        "Of these, straight into the container's namespace",
        |p| p.spliced,
    ),
    (
        "published_failed",
        "Of all, those that didn't reach the container",
        |p| p.failed,
    ),
];

type ReadSwitched = fn(&SwitchingView) -> u64;

const SWITCHED_COUNTERS: [(&str, &str, ReadSwitched); 3] = [
    (
        "port_switched",
        "Connections made, or begun, by sockets of the host in place of the container's",
        |s| s.switched,
    ),
    (
        "port_switched_failed",
        "Connections by sockets of the host that failed at once",
        |s| s.failed,
    ),
    (
        "port_switched_reset",
        "Connections by sockets of the host that were reset, for they may not be any more",
        |s| s.reset,
    ),
];

type Read = fn(&PortStats) -> u64;

const COUNTERS: [(&str, &str, Option<Unit>, Read); 12] = [
    (
        "port_rx_frames",
        "Frames received from the port",
        None,
        |p| p.rx_frames,
    ),
    (
        "port_rx",
        "Bytes received from the port",
        Some(Unit::Bytes),
        |p| p.rx_bytes,
    ),
    ("port_rx_errors", "Failed reads from the port", None, |p| {
        p.rx_errors
    }),
    ("port_tx_frames", "Frames sent to the port", None, |p| {
        p.tx_frames
    }),
    (
        "port_tx",
        "Bytes sent to the port",
        Some(Unit::Bytes),
        |p| p.tx_bytes,
    ),
    (
        "port_copied_frames",
        "Copies made for the port by flooding and mirroring",
        None,
        |p| p.copied,
    ),
    (
        "port_originated_frames",
        "Frames the switch made for the port",
        None,
        |p| p.originated,
    ),
    (
        "port_split_frames",
        "Further frames made for the port by software segmentation",
        None,
        |p| p.split,
    ),
    (
        "port_fast_rx_frames",
        "Frames received from the port by the kernel's fast path, of port_rx_frames",
        None,
        |p| p.fast_rx_frames,
    ),
    ("port_fast_rx", "Bytes of these", Some(Unit::Bytes), |p| {
        p.fast_rx_bytes
    }),
    (
        "port_fast_tx_frames",
        "Frames sent to the port by the kernel's fast path, of port_tx_frames",
        None,
        |p| p.fast_tx_frames,
    ),
    ("port_fast_tx", "Bytes of these", Some(Unit::Bytes), |p| {
        p.fast_tx_bytes
    }),
];

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, unit, read) in &COUNTERS {
            let mut family =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (p, _) in &self.ports {
                let labels = [("port", p.name.as_str()), ("network", p.network.as_str())];
                let one = family.encode_family(&labels)?;
                ConstCounter::new(read(p)).encode(one)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "port_drops",
            "Dropped frames by reason",
            None,
            MetricType::Counter,
        )?;
        for (p, _) in &self.ports {
            for (reason, n) in &p.drops {
                let labels = [
                    ("port", p.name.as_str()),
                    ("network", p.network.as_str()),
                    ("reason", reason.as_str()),
                ];
                ConstCounter::new(*n).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, unit, read) in &RULE_COUNTERS {
            let mut family =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (policy, rule, c) in &self.rules {
                let labels = [("policy", policy.as_str()), ("rule", rule.as_str())];
                ConstCounter::new(read(c)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in &PUBLISHED_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for p in &self.published {
                let labels = [("published", p.name.as_str())];
                ConstCounter::new(read(p)).encode(family.encode_family(&labels)?)?;
            }
        }
        self.switched(&mut encoder)?;
        self.gauges(&mut encoder)
    }
}

impl Reading {
    fn switched(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counter = MetricType::Counter;
        for (name, help, read) in &SWITCHED_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, counter)?;
            for (port, s) in &self.switched {
                let labels = [("port", port.as_str())];
                ConstCounter::new(read(s)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help =
            "Connections that went by the network where sockets of the host are allowed, by reason";
        let mut family = encoder.encode_descriptor("port_unswitched", help, None, counter)?;
        for (port, s) in &self.switched {
            for (reason, n) in &s.network {
                let labels = [("port", port.as_str()), ("reason", reason.as_str())];
                ConstCounter::new(*n).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Connections by sockets of the host that are under way";
        let gauge = MetricType::Gauge;
        let mut family =
            encoder.encode_descriptor("port_switched_connections", help, None, gauge)?;
        for (port, s) in &self.switched {
            let labels = [("port", port.as_str())];
            let one = family.encode_family(&labels)?;
            ConstGauge::new(s.connections as i64).encode(one)?;
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = MetricType::Gauge;
        let help = "Frames waiting in the port's transmit queue";
        let mut family = encoder.encode_descriptor("port_held_frames", help, None, gauge)?;
        for (p, _) in &self.ports {
            let labels = [("port", p.name.as_str()), ("network", p.network.as_str())];
            let one = family.encode_family(&labels)?;
            ConstGauge::new(p.held as i64).encode(one)?;
        }
        let help = "Whether frames may pass";
        let mut family = encoder.encode_descriptor("port_up", help, None, MetricType::Gauge)?;
        for (p, up) in &self.ports {
            let Some(up) = up else { continue };
            let labels = [("port", p.name.as_str()), ("network", p.network.as_str())];
            let one = family.encode_family(&labels)?;
            ConstGauge::new(i64::from(*up)).encode(one)?;
        }
        let help = "FDB entries of the network";
        let mut family = encoder.encode_descriptor("fdb_entries", help, None, MetricType::Gauge)?;
        for (name, n) in &self.networks {
            let labels = [("network", name.as_str())];
            let one = family.encode_family(&labels)?;
            ConstGauge::new(*n as i64).encode(one)?;
        }
        let Some(fast) = &self.accelerator else {
            return Ok(());
        };
        let gauges = [
            (
                "fast_path_on",
                "Whether the kernel's fast path works",
                usize::from(fast.on),
            ),
            (
                "fast_path_ports",
                "Ports on the kernel's fast path",
                fast.ports,
            ),
            (
                "fast_path_flows",
                "Pairs of addresses on the kernel's fast path",
                fast.flows,
            ),
            (
                "fast_path_connections",
                "Directions of connections that policy has allowed on the kernel's fast path",
                fast.connections,
            ),
        ];
        for (name, help, n) in gauges {
            let one = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(n as i64).encode(one)?;
        }
        Ok(())
    }
}
