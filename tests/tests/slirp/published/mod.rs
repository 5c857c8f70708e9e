//! Published ports at sockets of the host: who comes by them, and what becomes of him.

mod clients;
mod ends;
mod sockets;

use serde_json::Value;
use vswitch_tests::Daemon;

/// Publishes a port of the host for the container of [`crate::rig::site`], in both families.
fn publish(d: &Daemon, name: &str, more: &[&str]) -> String {
    let to = "192.0.2.10:7000,[2001:db8:1::10]:7000";
    let base = ["publish", "add", name, "--to", to];
    d.ctl(&[&base[..], more].concat())
}

/// What is shown of a published port.
fn shown(d: &Daemon, name: &str) -> Value {
    let all = d.ctl_json(&["publish", "show"]);
    let all = all.as_array().expect("a list");
    all.iter()
        .find(|p| p["name"] == name)
        .cloned()
        .unwrap_or_default()
}
