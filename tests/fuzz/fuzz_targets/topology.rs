#![no_main]
//! Topology and configuration files: any text is read or refused at a place inside it; what is read is written and read
//! again the same, differs from nothing, and can be told to the bridge.

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use vswitch_control::config::Config;
use vswitch_control::model::{Topology, TopologyError, diff, from_toml, to_toml};
use vswitch_core::bridge::NetworkId;

/// The place is one a person finds.
fn pointed_at(text: &str, error: &TopologyError) {
    let line = text.split('\n').nth(error.line - 1);
    let line =
        line.unwrap_or_else(|| panic!("{error} in a text of {} lines", text.lines().count()));
    assert!(
        (1..=line.chars().count() + 1).contains(&error.column),
        "{error}"
    );
    assert!(!error.reason.is_empty() && !error.remedy.is_empty());
}

fuzz_target!(|text: &str| {
    let file = Path::new("t.toml");
    if let Err(error) = Config::from_toml(file, text) {
        pointed_at(text, &error);
    }
    let topology = match from_toml(file, text) {
        Ok(t) => t,
        Err(error) => return pointed_at(text, &error),
    };
    let written = to_toml(&topology);
    assert_eq!(
        from_toml(file, &written).as_ref(),
        Ok(&topology),
        "{written}"
    );
    assert_eq!(diff(&topology, &topology), []);
    let sections = topology.networks.len()
        + topology.ports.len()
        + topology.mirrors.len()
        + topology.publish.len()
        + topology.policies.len();
    let all = sections + usize::from(topology.conntrack != Topology::default().conntrack);
    assert_eq!(diff(&Topology::default(), &topology).len(), all);
    assert_eq!(diff(&topology, &Topology::default()).len(), all);
    let _ = topology.to_gateway(|_| Some(NetworkId(0)));
    let _ = topology.to_services(|_| Some(NetworkId(0)), |_| None);
    for network in topology.networks.values() {
        let _ = network.to_bridge();
    }
    for port in topology.ports.values() {
        let _ = port.to_bridge(NetworkId(0));
    }
});
