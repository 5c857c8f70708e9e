//! The topology as a TOML file: read whole, with line and column of what is wrong; written without the defaults.

use super::{Mirror, Network, Policy, Port, Problem, Topology};
use serde_json::Value;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A fault of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading {}:{line}:{column}: {reason}; {remedy}", file.display())]
pub struct TopologyError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl TopologyError {
    /// From what the TOML reader says.
    pub(crate) fn of_toml(file: &Path, text: &str, error: &toml::de::Error) -> TopologyError {
        let at = error.span().map_or(0, |s| s.start);
        let (line, column) = position(text, at);
        TopologyError {
            file: file.to_owned(),
            line,
            column,
            reason: error.message().trim_end().replace('\n', ", "),
            remedy: "correct the line; nothing was changed".into(),
        }
    }
}

/// Line and column of a byte.
pub(crate) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// Reads and checks a topology.
pub fn from_toml(file: &Path, text: &str) -> Result<Topology, TopologyError> {
    let topology: Topology =
        toml::from_str(text).map_err(|e| TopologyError::of_toml(file, text, &e))?;
    topology.check().map_err(|p| located(file, text, &p))?;
    Ok(topology)
}

/// Points at the deepest part of the problem's path that the text has.
fn located(file: &Path, text: &str, problem: &Problem) -> TopologyError {
    let mut at = 0;
    if let Ok(table) = DeTable::parse(text) {
        let mut here: Option<&DeTable<'_>> = Some(table.get_ref());
        for key in &problem.path {
            let Some((k, v)) = here.and_then(|t| t.get_key_value(key.as_str())) else {
                break;
            };
            at = k.span().start;
            here = match v.get_ref() {
                DeValue::Table(t) => Some(t),
                _ => None,
            };
        }
    }
    let (line, column) = position(text, at);
    TopologyError {
        file: file.to_owned(),
        line,
        column,
        reason: format!("`{}`: {}", problem.path.join("."), problem.reason),
        remedy: problem.remedy.clone(),
    }
}

/// Writes a topology; what has its default is left out.
#[must_use]
pub fn to_toml(topology: &Topology) -> String {
    let mut value = serde_json::to_value(topology).unwrap_or_default();
    let defaults = [
        ("networks", serde_json::to_value(Network::default())),
        // No name is empty, so the network always stays.
        ("ports", serde_json::to_value(Port::new(""))),
        ("mirrors", serde_json::to_value(Mirror::new(""))),
        ("policies", serde_json::to_value(Policy::default())),
    ];
    for (section, default) in defaults {
        let (Some(Value::Object(items)), Ok(Value::Object(default))) =
            (value.get_mut(section), default)
        else {
            continue;
        };
        for item in items.values_mut().filter_map(Value::as_object_mut) {
            item.retain(|k, v| default.get(k) != Some(v));
        }
    }
    if let Some(top) = value.as_object_mut() {
        top.retain(|_, v| v.as_object().is_none_or(|o| !o.is_empty()));
    }
    toml::to_string_pretty(&value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[networks.lan]
ageing = "60s"
vlan_aware = true
fdb = [{ mac = "02:00:00:00:00:01", vlan = 10, port = "web" }]

[ports.web]
network = "lan"
tagged = "10,20-30"
egress_rate = "100mbit"
storm = { broadcast = "1000pps" }

[ports.probe]
network = "lan"
kind = "packet"
receive = "ring"
ring_kib = 4096

[mirrors.m]
target = "probe"
ingress = ["web"]
"#;

    fn fails(text: &str) -> TopologyError {
        from_toml(Path::new("t.toml"), text).unwrap_err()
    }

    #[test]
    fn a_topology_comes_back_as_it_was_written() {
        let t = from_toml(Path::new("t.toml"), GOOD).unwrap();
        let text = to_toml(&t);
        for default in ["mtu", "vlans", "target_floods", "egress ="] {
            assert!(!text.contains(default), "{default} isn't left out: {text}");
        }
        assert_eq!(from_toml(Path::new("t.toml"), &text).unwrap(), t);
    }

    #[test]
    fn faults_have_line_and_column() {
        let e = fails("[networks.lan]\nagein = \"60s\"\n");
        assert_eq!((e.line, e.column), (2, 1), "{e}");
        assert!(e.reason.contains("ageing"), "{e}");
        let e = fails("[networks.lan]\nageing = \"60 parsecs\"\n");
        assert_eq!((e.line, e.column), (2, 10), "{e}");
        assert!(e.reason.contains("300s"), "{e}");
        let e = fails("[networks.lan]\n[ports.a]\nnetwork = \"lan\"\nreceive = \"ring\"\n");
        assert_eq!((e.line, e.column), (4, 1), "{e}");
        assert!(e.remedy.contains("veth"), "{e}");
        let e = fails("[networks.lan]\n[ports.a]\nmtu = 1500\nnetwork = \"lna\"\n");
        assert_eq!((e.line, e.column), (4, 1), "{e}");
        assert!(e.remedy.contains("did you mean `lan`"), "{e}");
    }
}
