//! `vswitchctl policy`: the firewall.

use super::options::changes;
use super::{CtlError, Done, Session, show};
use crate::client::escape;
use crate::model::{PolicyAction, PolicyRule};
use crate::plane::{ExplainView, PlaceView, PolicyView, RuleCounts};
use crate::units::Peers;
use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use std::str::FromStr;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Policy {
    /// Add a policy.
    Add(Box<Set>),
    /// Delete a policy.
    Del {
        /// Its name.
        name: String,
    },
    /// Tell which rule decides about a connection, and why.
    Explain(Explain),
    /// Change a policy; its rules are replaced if any are given.
    Set(Box<Set>),
    /// Show policies, their rules and what these have counted.
    Show {
        /// Only this one.
        name: Option<String>,
    },
}

/// A policy's settings.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// Its name.
    name: String,
    /// What is done with what it is about when no rule matches [default: the next policy is asked].
    #[arg(long, value_enum)]
    default: Option<PolicyAction>,
    /// Who begins the connections that it is about, such as label:web [default: any].
    #[arg(long, value_name = "ENDS")]
    from: Option<Peers>,
    /// Policies with a lower number are asked first [default: 100].
    #[arg(long, value_name = "NUMBER")]
    order: Option<u32>,
    /// A rule: an action, then fields and their values; may be repeated, such as 'accept from label:web proto tcp ports 5432'.
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<RuleText>,
    /// Whom the connections that it is about are for [default: any].
    #[arg(long, value_name = "ENDS")]
    to: Option<Peers>,
}

/// What is to be explained.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Destination port.
    #[arg(long)]
    dport: Option<u16>,
    /// Who begins: a port's name, an address, or PORT=ADDRESS.
    #[arg(long)]
    from: String,
    /// ICMP type [default: echo-request].
    #[arg(long, value_name = "TYPE")]
    icmp: Option<String>,
    /// Protocol [default: tcp].
    #[arg(long)]
    proto: Option<String>,
    /// Source port.
    #[arg(long)]
    sport: Option<u16>,
    /// State [default: new].
    #[arg(long)]
    state: Option<String>,
    /// For whom: a port's name, an address, or PORT=ADDRESS.
    #[arg(long)]
    to: String,
}

/// A rule as it is written on the command line.
#[derive(Clone, Debug)]
struct RuleText(PolicyRule);

impl FromStr for RuleText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let action = words
            .next()
            .ok_or("it is empty: begin with accept, drop or reject")?;
        let mut rule = Map::new();
        rule.insert("action".into(), action.into());
        while let Some(field) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| format!("`{field}` has no value"))?;
            let value = match value.parse::<u32>() {
                Ok(n) if field == "log" || field == "limit" => n.into(),
                _ => Value::from(value),
            };
            if rule.insert(field.replace('-', "_"), value).is_some() {
                return Err(format!("`{field}` is there twice"));
            }
        }
        let rule = serde_json::from_value(rule.into());
        rule.map(RuleText).map_err(|e| e.to_string())
    }
}

fn path(name: &str) -> String {
    format!("/v1/policies/{}", escape(name))
}

impl Set {
    fn patch(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            map.extend(value.map(|v| (key.to_owned(), v)));
        };
        let text = |p: &Peers| Value::from(p.to_string());
        put("order", self.order.map(Value::from));
        put("from", self.from.as_ref().map(text));
        put("to", self.to.as_ref().map(text));
        let json = |d: PolicyAction| serde_json::to_value(d).unwrap_or_default();
        put("default", self.default.map(json));
        let rules: Vec<&PolicyRule> = self.rules.iter().map(|r| &r.0).collect();
        let rules = serde_json::to_value(&rules).ok();
        put("rules", rules.filter(|_| !self.rules.is_empty()));
        map
    }
}

pub(super) async fn run(s: &Session, command: Policy) -> Done {
    match command {
        Policy::Add(set) => {
            let body = Value::Object(set.patch());
            if set.rules.is_empty() && set.default.is_none() {
                return Err(CtlError::Usage {
                    act: "adding",
                    thing: format!("policy `{}`", set.name),
                    reason: "it would decide nothing".into(),
                    remedy: "add --rule or --default",
                });
            }
            let made = s.client.call("POST", &path(&set.name), Some(&body)).await?;
            if s.json { show::json(&made) } else { Ok(()) }
        }
        Policy::Del { name } => {
            s.client.call("DELETE", &path(&name), None).await?;
            Ok(())
        }
        Policy::Set(set) => {
            let body = changes("policy", &set.name, set.patch())?;
            let now = s
                .client
                .call("PATCH", &path(&set.name), Some(&body))
                .await?;
            if s.json { show::json(&now) } else { Ok(()) }
        }
        Policy::Show { name } => {
            let all: Vec<PolicyView> = match name {
                Some(n) => vec![s.client.get(&path(&n)).await?],
                None => s.client.get("/v1/policies").await?,
            };
            if s.json {
                return show::json(&all);
            }
            let rows = all.iter().flat_map(rows).collect();
            let head = [
                "RULE", "FROM", "TO", "PROTO", "PORTS", "ACTION", "JUDGED", "PACKETS", "BYTES",
            ];
            show::table(&head, rows, "no policies: everything is accepted")
        }
        Policy::Explain(e) => explain(s, &e).await,
    }
}

async fn explain(s: &Session, e: &Explain) -> Done {
    let mut query = format!("from={}&to={}", escape(&e.from), escape(&e.to));
    let numbers = [("dport", e.dport), ("sport", e.sport)];
    for (key, value) in numbers.into_iter().filter_map(|(k, v)| Some((k, v?))) {
        query += &format!("&{key}={value}");
    }
    let texts = [("proto", &e.proto), ("icmp", &e.icmp), ("state", &e.state)];
    for (key, value) in texts {
        if let Some(value) = value {
            query += &format!("&{key}={}", escape(value));
        }
    }
    let why: ExplainView = s.client.get(&format!("/v1/policy/explain?{query}")).await?;
    if s.json {
        return show::json(&why);
    }
    let place = |p: &PlaceView| {
        let mut text = p.address.to_string();
        if let Some(port) = &p.port {
            text += &format!(" at port {port}");
        }
        if !p.labels.is_empty() {
            text += &format!(" ({})", p.labels.join(", "));
        }
        if let Some(network) = &p.network {
            text += &format!(" in {network}");
        }
        text
    };
    let mut text = format!(
        "{}: {}\n  from {}\n  to   {}\n",
        why.action,
        why.reason,
        place(&why.from),
        place(&why.to)
    );
    for c in &why.considered {
        let why = match &c.mismatch {
            Some(field) => format!("`{field}` doesn't match"),
            None => "matches".into(),
        };
        text += &format!("  {}: {why}\n", c.rule);
    }
    show::print(&text)
}

/// The values of a rule's fields that have no column of their own, and its ports.
fn details(r: &PolicyRule) -> String {
    let mut parts = Vec::new();
    let mut put = |name: &str, value: Option<String>| {
        parts.extend(value.map(|v| {
            if name.is_empty() {
                v
            } else {
                format!("{name} {v}")
            }
        }));
    };
    put("", r.ports.as_ref().map(ToString::to_string));
    put("", r.icmp.as_ref().map(ToString::to_string));
    put("source", r.source_ports.as_ref().map(ToString::to_string));
    put("state", r.state.as_ref().map(ToString::to_string));
    if parts.is_empty() {
        return "any".into();
    }
    parts.join(" ")
}

fn rows(p: &PolicyView) -> Vec<Vec<String>> {
    let mut counts = p.counts.iter();
    let none = RuleCounts::default();
    let both = |scope: &Peers, own: &Peers| match (scope.is_any(), own.is_any()) {
        (false, false) => format!("{scope} & {own}"),
        (false, true) => scope.to_string(),
        _ => own.to_string(),
    };
    let any = Peers::default();
    let mut row = |name: String, from: &Peers, to: &Peers, middle: [String; 3]| {
        let c = counts.next().unwrap_or(&none);
        let [proto, ports, action] = middle;
        let numbers = [c.judged, c.packets, c.bytes].map(|n| n.to_string());
        let mut row = vec![name, both(&p.config.from, from), both(&p.config.to, to)];
        row.extend([proto, ports, action]);
        row.extend(numbers);
        row
    };
    let action = |a: PolicyAction| format!("{a:?}").to_lowercase();
    let mut rows = Vec::new();
    for (i, r) in p.config.rules.iter().enumerate() {
        let name = crate::model::rule_name(&p.name, i, r);
        let proto = r.proto.as_ref().map_or("any".into(), ToString::to_string);
        rows.push(row(
            name,
            &r.from,
            &r.to,
            [proto, details(r), action(r.action)],
        ));
    }
    if let Some(default) = p.config.default {
        let name = format!("{}/default", p.name);
        let middle = ["any".into(), "any".into(), action(default)];
        rows.push(row(name, &any, &any, middle));
    }
    rows
}
