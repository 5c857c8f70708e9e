//! `vswitchctl network`.

use super::options::{NetworkOptions, Unset, changes, patch};
use super::{Done, Session, show};
use crate::client::escape;
use crate::plane::NetworkView;
use clap::Subcommand;
use serde_json::Value;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Network {
    /// Add a network.
    Add {
        /// Its name.
        name: String,
        #[command(flatten)]
        options: NetworkOptions,
    },
    /// Delete a network.
    Del {
        /// Its name.
        name: String,
        /// Its ports as well.
        #[arg(long)]
        force: bool,
    },
    /// Change a network.
    Set {
        /// Its name.
        name: String,
        #[command(flatten)]
        unset: Unset,
        #[command(flatten)]
        options: NetworkOptions,
    },
    /// Show networks.
    Show {
        /// Only this one.
        name: Option<String>,
    },
}

pub(super) async fn run(s: &Session, command: Network) -> Done {
    let path = |name: &str| format!("/v1/networks/{}", escape(name));
    match command {
        Network::Add { name, options } => {
            let body = Value::Object(patch(&options));
            let made = s.client.call("POST", &path(&name), Some(&body)).await?;
            if s.json { show::json(&made) } else { Ok(()) }
        }
        Network::Set {
            name,
            unset,
            options,
        } => {
            let mut body = patch(&options);
            unset.put(&mut body);
            let body = changes("network", &name, body)?;
            let now = s.client.call("PATCH", &path(&name), Some(&body)).await?;
            if s.json { show::json(&now) } else { Ok(()) }
        }
        Network::Del { name, force } => {
            let path = format!("{}?force={force}", path(&name));
            s.client.call("DELETE", &path, None).await?;
            Ok(())
        }
        Network::Show { name } => {
            let networks: Vec<NetworkView> = match name {
                Some(n) => vec![s.client.get(&path(&n)).await?],
                None => s.client.get("/v1/networks").await?,
            };
            if s.json {
                return show::json(&networks);
            }
            let rows = networks.iter().map(row).collect();
            let head = ["NETWORK", "PORTS", "FDB", "LIMIT", "AGEING", "OPTIONS"];
            show::table(&head, rows, "no networks: `vswitchctl network add NAME`")
        }
    }
}

fn row(n: &NetworkView) -> Vec<String> {
    let c = &n.config;
    let options: Vec<&str> = [
        (c.vlan_aware, "vlan-aware"),
        (c.snooping, "snooping"),
        (c.querier, "querier"),
        (c.fast_leave, "fast-leave"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect();
    vec![
        n.name.clone(),
        n.ports.len().to_string(),
        n.fdb_entries.to_string(),
        c.fdb_limit.to_string(),
        c.ageing.to_string(),
        options.join(","),
    ]
}
