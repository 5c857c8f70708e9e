//! `vswitchctl fdb`.

use super::{Done, Session, show};
use crate::client::escape;
use crate::plane::FdbView;
use crate::units::Mac;
use clap::Subcommand;
use serde_json::json;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Fdb {
    /// Pin a MAC to a port.
    Add {
        /// Network.
        network: String,
        /// The address.
        mac: Mac,
        /// The port it is at.
        port: String,
        /// Its VLAN, in a VLAN-aware network.
        #[arg(long, default_value_t = 0)]
        vlan: u16,
    },
    /// Remove a MAC, static or learned.
    Del {
        /// Network.
        network: String,
        /// The address.
        mac: Mac,
        /// Only in this VLAN.
        #[arg(long)]
        vlan: Option<u16>,
    },
    /// Forget what was learned.
    Flush {
        /// Network.
        network: String,
        /// Only at this port.
        #[arg(long)]
        port: Option<String>,
        /// Only in this VLAN.
        #[arg(long)]
        vlan: Option<u16>,
    },
    /// Show the FDB of a network.
    Show {
        /// Network.
        network: String,
        /// Only at this port.
        #[arg(long)]
        port: Option<String>,
        /// Only in this VLAN.
        #[arg(long)]
        vlan: Option<u16>,
    },
}

pub(super) async fn run(s: &Session, command: Fdb) -> Done {
    let path = |network: &str| format!("/v1/networks/{}/fdb", escape(network));
    match command {
        Fdb::Add {
            network,
            mac,
            port,
            vlan,
        } => {
            let body = json!({"mac": mac, "vlan": vlan, "port": port});
            s.client.call("POST", &path(&network), Some(&body)).await?;
            Ok(())
        }
        Fdb::Del { network, mac, vlan } => {
            let vlan = vlan.map(|v| format!("?vlan={v}")).unwrap_or_default();
            let path = format!("{}/{mac}{vlan}", path(&network));
            s.client.call("DELETE", &path, None).await?;
            Ok(())
        }
        Fdb::Flush {
            network,
            port,
            vlan,
        } => {
            let mut query = Vec::new();
            query.extend(port.map(|p| format!("port={}", escape(&p))));
            query.extend(vlan.map(|v| format!("vlan={v}")));
            let path = format!("{}?{}", path(&network), query.join("&"));
            let removed = s.client.call("DELETE", &path, None).await?;
            if s.json {
                return show::json(&removed);
            }
            let n = removed["removed"].as_u64().unwrap_or(0);
            let entries = if n == 1 { "entry" } else { "entries" };
            show::print(&format!("{n} {entries} removed\n"))
        }
        Fdb::Show {
            network,
            port,
            vlan,
        } => {
            let mut entries: Vec<FdbView> = s.client.get(&path(&network)).await?;
            entries.retain(|e| {
                port.as_ref().is_none_or(|p| *p == e.port) && vlan.is_none_or(|v| v == e.vlan)
            });
            if s.json {
                return show::json(&entries);
            }
            let rows = entries.iter().map(FdbView::row).collect();
            show::table(&FdbView::HEAD, rows, "nothing learned yet")
        }
    }
}

impl FdbView {
    /// The head of [`FdbView::row`]s.
    pub(crate) const HEAD: [&str; 4] = ["MAC", "VLAN", "PORT", "AGE"];

    /// As a row of a table.
    pub(crate) fn row(&self) -> Vec<String> {
        vec![
            self.mac.clone(),
            if self.vlan == 0 {
                "-".into()
            } else {
                self.vlan.to_string()
            },
            self.port.clone(),
            self.age
                .map_or_else(|| "static".into(), |a| format!("{a}s")),
        ]
    }
}
