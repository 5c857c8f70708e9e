//! `vswitchctl publish`: ports of the gateways that stand for containers'.

use super::{Done, Session, show};
use crate::client::escape;
use crate::model::{Protocol, PublishedPort};
use crate::plane::PublishedView;
use crate::units::{BackendAddress, Ports};
use clap::Subcommand;
use std::net::IpAddr;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Publish {
    /// Publish a port or a range of ports.
    Add {
        /// A name for it.
        name: String,
        /// Ports of the gateway, or of the host where the gateway has a host uplink, such as 8080 or 8000-8010; 0 is one of the
        /// host's that is free, and is told.
        #[arg(long, required_unless_present = "auto")]
        ports: Option<Ports>,
        /// Where they lead, such as 192.0.2.10:80; of several one is chosen per connection, with a weight as in 192.0.2.10:80*3.
        #[arg(
            long,
            value_delimiter = ',',
            required = true,
            value_name = "ADDRESS[:PORT][*WEIGHT]"
        )]
        to: Vec<BackendAddress>,
        /// The gateway's address, or one of the host, such as 127.0.0.1 [default: every one].
        #[arg(long)]
        address: Option<IpAddr>,
        /// The interface of the host that clients come by [default: every one]; takes Linux 5.7, or CAP_NET_RAW.
        #[arg(long, value_name = "NAME")]
        interface: Option<String>,
        /// The network it is reached from [default: every one].
        #[arg(long)]
        network: Option<String>,
        /// Protocol.
        #[arg(long, value_enum, default_value = "tcp")]
        protocol: Protocol,
        /// Of the ports (all, if none are named) only those that the container listens on, looked for once a second.
        #[arg(long)]
        auto: bool,
        /// TCP connections from the host's loopback go straight into the container's namespace, without crossing its network, where
        /// policy accepts them; takes that the daemon may enter it.
        #[arg(long)]
        splice: bool,
        /// The container's namespace, for these two: a path, a name under /run/netns, or pid:NUMBER [default: that of its port].
        #[arg(long)]
        netns: Option<String>,
    },
    /// Publish a port no longer; connections that exist go on.
    Del {
        /// Its name.
        name: String,
    },
    /// Show published ports.
    Show,
}

pub(super) async fn run(s: &Session, command: Publish) -> Done {
    match command {
        Publish::Add {
            name,
            ports,
            to,
            address,
            interface,
            network,
            protocol,
            auto,
            splice,
            netns,
        } => {
            let port = PublishedPort {
                ports: ports.unwrap_or(Ports((1, u16::MAX))),
                protocol,
                to,
                address,
                interface,
                network,
                auto,
                splice,
                netns,
            };
            let body = serde_json::to_value(&port).unwrap_or_default();
            let path = format!("/v1/publish/{}", escape(&name));
            let picks = port.ports.0.0 == 0;
            let made: PublishedView = s.client.send("POST", &path, &body).await?;
            show::warn(&made.warnings);
            if s.json {
                return show::json(&made);
            }
            if picks {
                return show::print(&format!("{}\n", made.config.ports));
            }
            Ok(())
        }
        Publish::Del { name } => {
            let path = format!("/v1/publish/{}", escape(&name));
            s.client.call("DELETE", &path, None).await?;
            Ok(())
        }
        Publish::Show => {
            let all: Vec<PublishedView> = s.client.get("/v1/publish").await?;
            if s.json {
                return show::json(&all);
            }
            for p in &all {
                let named = |w: &String| format!("published port `{}`: {w}", p.name);
                show::warn(&p.warnings.iter().map(named).collect::<Vec<_>>());
            }
            let rows = all.iter().map(row).collect();
            let head = [
                "NAME",
                "PROTO",
                "ADDRESS",
                "PORTS",
                "TO",
                "FROM NETWORK",
                "HOST",
                "CAME",
                "FAILED",
            ];
            show::table(&head, rows, "no published ports")
        }
    }
}

fn row(p: &PublishedView) -> Vec<String> {
    let c = &p.config;
    let found: Vec<String> = p.found.iter().map(ToString::to_string).collect();
    let host: Vec<String> = p.host.iter().map(ToString::to_string).collect();
    let to: Vec<String> = c.to.iter().map(ToString::to_string).collect();
    vec![
        p.name.clone(),
        format!("{:?}", c.protocol).to_lowercase(),
        match (c.address, &c.interface) {
            (None, None) => "any".to_owned(),
            (Some(a), None) => a.to_string(),
            (a, Some(interface)) => {
                format!("{}%{interface}", a.map_or("any".into(), |a| a.to_string()))
            }
        },
        match c.auto {
            true if p.found.is_empty() => format!("none of {}", c.ports),
            true => found.join(","),
            false => c.ports.to_string(),
        },
        to.join(","),
        c.network.clone().unwrap_or_else(|| "any".into()),
        match &p.fault {
            Some(fault) => fault.clone(),
            None if p.host.is_empty() => "-".into(),
            None => host.join(","),
        },
        match p.spliced {
            0 => p.accepted.to_string(),
            n => format!("{} ({n} spliced)", p.accepted),
        },
        p.failed.to_string(),
    ]
}
