//! `vswitchctl port`.

use super::options::{PortOptions, PortPlace, patch};
use super::{Done, Session, show};
use crate::client::escape;
use crate::plane::PortView;
use clap::Subcommand;
use serde_json::Value;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Port {
    /// Add a port.
    Add {
        /// Its name.
        name: String,
        /// The network it belongs to.
        #[arg(long)]
        network: String,
        #[command(flatten)]
        place: Box<PortPlace>,
        #[command(flatten)]
        options: Box<PortOptions>,
    },
    /// Delete ports.
    Del {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Change a port.
    Set {
        /// Its name.
        name: String,
        /// Move it to this network.
        #[arg(long)]
        network: Option<String>,
        /// Take fields back to their defaults, by name, such as egress_rate.
        #[arg(long, value_delimiter = ',', value_name = "FIELD")]
        unset: Vec<String>,
        #[command(flatten)]
        place: Box<PortPlace>,
        #[command(flatten)]
        options: Box<PortOptions>,
    },
    /// Show ports.
    Show {
        /// Only this one.
        name: Option<String>,
    },
}

fn path(name: &str) -> String {
    format!("/v1/ports/{}", escape(name))
}

pub(super) async fn run(s: &Session, command: Port) -> Done {
    match command {
        Port::Add {
            name,
            network,
            place,
            options,
        } => {
            let mut body = patch(&*place);
            body.extend(options.patch());
            body.insert("network".into(), network.into());
            let body = Value::Object(body);
            let made = s.client.call("POST", &path(&name), Some(&body)).await?;
            if s.json { show::json(&made) } else { Ok(()) }
        }
        Port::Del { names } => {
            for name in names {
                s.client.call("DELETE", &path(&name), None).await?;
            }
            Ok(())
        }
        Port::Set {
            name,
            network,
            unset,
            place,
            options,
        } => {
            let mut body = patch(&*place);
            body.extend(options.patch());
            body.extend(network.map(|n| ("network".to_owned(), n.into())));
            body.extend(
                unset
                    .into_iter()
                    .map(|f| (f.replace('-', "_"), Value::Null)),
            );
            let body = Value::Object(body);
            let now = s.client.call("PATCH", &path(&name), Some(&body)).await?;
            if s.json { show::json(&now) } else { Ok(()) }
        }
        Port::Show { name } => {
            let ports: Vec<PortView> = match name {
                Some(n) => vec![s.client.get(&path(&n)).await?],
                None => s.client.get("/v1/ports").await?,
            };
            if s.json {
                return show::json(&ports);
            }
            let rows = ports.iter().map(row).collect();
            let head = [
                "PORT", "NETWORK", "KIND", "DEVICE", "NETNS", "MTU", "STATE", "REASON",
            ];
            show::table(
                &head,
                rows,
                "no ports: `vswitchctl port add NAME --network NETWORK`",
            )
        }
    }
}

fn row(p: &PortView) -> Vec<String> {
    vec![
        p.name.clone(),
        p.config.network.clone(),
        p.config.kind.as_str().into(),
        p.device.clone(),
        p.config.netns.clone().unwrap_or_else(|| "-".into()),
        p.config.mtu.to_string(),
        p.state.clone(),
        p.reason.clone().unwrap_or_default(),
    ]
}
