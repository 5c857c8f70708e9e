//! The difference of two topologies.

use super::Topology;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

/// One step from a topology to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// `add`, `change` or `delete`.
    pub act: String,
    /// `network`, `port`, `mirror`, `publish`, `policy` or `conntrack`.
    pub thing: String,
    /// Its name.
    pub name: String,
    /// Fields that change, as `field: old -> new`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.act.as_str() {
            "add" => '+',
            "delete" => '-',
            _ => '~',
        };
        write!(f, "{sign} {} {}", self.thing, self.name)?;
        for field in &self.fields {
            write!(f, "\n    {field}")?;
        }
        Ok(())
    }
}

/// What leads from one topology to the other, in the order of networks, ports, mirrors and by name.
#[must_use]
pub fn diff(from: &Topology, to: &Topology) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("network", &from.networks, &to.networks, &mut changes);
    compare("port", &from.ports, &to.ports, &mut changes);
    compare("mirror", &from.mirrors, &to.mirrors, &mut changes);
    compare("publish", &from.publish, &to.publish, &mut changes);
    compare("policy", &from.policies, &to.policies, &mut changes);
    if from.conntrack != to.conntrack {
        changes.push(Change {
            act: "change".into(),
            thing: "conntrack".into(),
            name: "settings".into(),
            fields: fields(&from.conntrack, &to.conntrack),
        });
    }
    changes
}

fn compare<T: PartialEq + Serialize>(
    thing: &str,
    from: &BTreeMap<String, T>,
    to: &BTreeMap<String, T>,
    changes: &mut Vec<Change>,
) {
    let change = |act: &str, name: &str, fields| Change {
        act: act.to_owned(),
        thing: thing.to_owned(),
        name: name.to_owned(),
        fields,
    };
    for name in from.keys().filter(|n| !to.contains_key(*n)) {
        changes.push(change("delete", name, Vec::new()));
    }
    for (name, new) in to {
        match from.get(name) {
            None => changes.push(change("add", name, Vec::new())),
            Some(old) if old != new => changes.push(change("change", name, fields(old, new))),
            Some(_) => {}
        }
    }
}

fn fields<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let map = |v: &T| match serde_json::to_value(v) {
        Ok(serde_json::Value::Object(m)) => m,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (map(old), map(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let show = |v: Option<&serde_json::Value>| v.map_or("none".to_owned(), ToString::to_string);
    keys.into_iter()
        .filter(|k| old.get(*k) != new.get(*k))
        .map(|k| format!("{k}: {} -> {}", show(old.get(k)), show(new.get(k))))
        .collect()
}
