//! `vswitchctl mirror`.

use super::{CtlError, Done, Session, show};
use crate::client::escape;
use crate::plane::MirrorView;
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Mirror {
    /// Add a mirror session.
    Add {
        /// Its name.
        name: String,
        /// Port where copies go.
        #[arg(long)]
        target: String,
        /// Ports whose received frames are copied.
        #[arg(long, value_delimiter = ',', value_name = "PORTS")]
        ingress: Vec<String>,
        /// Ports whose sent frames are copied.
        #[arg(long, value_delimiter = ',', value_name = "PORTS")]
        egress: Vec<String>,
        /// VLANs whose received frames are copied, as NETWORK or NETWORK/VLAN.
        #[arg(long, value_delimiter = ',', value_name = "NETWORK/VLAN")]
        vlan: Vec<String>,
        /// Cut copies to this many bytes.
        #[arg(long, value_name = "BYTES")]
        truncate: Option<u16>,
        /// The target still takes part in flooding.
        #[arg(long)]
        target_floods: bool,
    },
    /// Delete a mirror session.
    Del {
        /// Its name.
        name: String,
    },
    /// Show mirror sessions.
    Show,
}

fn vlan(text: &str) -> Result<Value, CtlError> {
    let (network, vlan) = text.split_once('/').unwrap_or((text, "0"));
    let vlan: u16 = vlan.parse().map_err(|_| CtlError::Usage {
        act: "reading",
        thing: format!("--vlan {text}"),
        reason: "that isn't a VLAN".into(),
        remedy: "write it like lan/10",
    })?;
    Ok(json!({"network": network, "vlan": vlan}))
}

pub(super) async fn run(s: &Session, command: Mirror) -> Done {
    match command {
        Mirror::Add {
            name,
            target,
            ingress,
            egress,
            vlan: vlans,
            truncate,
            target_floods,
        } => {
            let vlans = vlans
                .iter()
                .map(|v| vlan(v))
                .collect::<Result<Vec<_>, _>>()?;
            let body = json!({
                "target": target, "ingress": ingress, "egress": egress, "vlans": vlans,
                "truncate": truncate, "target_floods": target_floods,
            });
            let path = format!("/v1/mirrors/{}", escape(&name));
            s.client.call("POST", &path, Some(&body)).await?;
            Ok(())
        }
        Mirror::Del { name } => {
            let path = format!("/v1/mirrors/{}", escape(&name));
            s.client.call("DELETE", &path, None).await?;
            Ok(())
        }
        Mirror::Show => {
            let mirrors: Vec<MirrorView> = s.client.get("/v1/mirrors").await?;
            if s.json {
                return show::json(&mirrors);
            }
            let rows = mirrors.iter().map(row).collect();
            let head = ["MIRROR", "TARGET", "INGRESS", "EGRESS", "VLANS", "TRUNCATE"];
            show::table(&head, rows, "no mirror sessions")
        }
    }
}

fn row(m: &MirrorView) -> Vec<String> {
    let c = &m.config;
    let vlans: Vec<String> = c
        .vlans
        .iter()
        .map(|v| format!("{}/{}", v.network, v.vlan))
        .collect();
    vec![
        m.name.clone(),
        c.target.clone(),
        c.ingress.join(","),
        c.egress.join(","),
        vlans.join(","),
        c.truncate.map(|t| t.to_string()).unwrap_or_default(),
    ]
}
