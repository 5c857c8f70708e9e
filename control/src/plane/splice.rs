//! Straight ways from the host's loopback into containers: entering their namespaces to open sockets there.

use super::Plane;
use crate::model::Topology;
use crate::netns;
use crate::refusal::{Kind, Refusal};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vswitch_core::sys::sock;
use vswitch_nat::{SpliceOpen, SplicePath, Splicer};

/// Which namespace it is: device and inode.
type Identity = (u64, u64);

/// The thread that relays, once there is something for it, and how sockets are opened in each namespace.
#[derive(Default)]
pub(super) struct Splicing {
    splicer: Option<Splicer>,
    ways: BTreeMap<String, Arc<SpliceOpen>>,
}

impl std::fmt::Debug for Splicing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ways.keys()).finish()
    }
}

/// The namespace that this thread is in.
fn here() -> io::Result<Identity> {
    let m = std::fs::metadata("/proc/thread-self/ns/net")?;
    Ok((m.dev(), m.ino()))
}

/// Opens streams in a namespace. Of one that is named by a process the identity is known: the number may be another's since.
fn way(namespace: String, known: Option<Identity>) -> Arc<SpliceOpen> {
    Arc::new(move |to: &[SocketAddr]| {
        let open = || -> Vec<io::Result<OwnedFd>> {
            if known.is_some_and(|k| here().ok() != Some(k)) {
                return Vec::new();
            }
            let open = |to: &SocketAddr| sock::open(sock::Kind::Tcp, *to, None);
            to.iter().map(open).collect()
        };
        netns::within(&namespace, open).unwrap_or_default()
    })
}

impl Splicing {
    /// The way to an address in a namespace that was prepared.
    pub(super) fn path(&self, to: SocketAddr, namespace: &str) -> Option<SplicePath> {
        let open = self.ways.get(namespace)?.clone();
        Some(self.splicer.as_ref()?.path(to, open))
    }

    /// Ends the thread.
    pub(super) fn end(&mut self) {
        self.splicer = None;
    }
}

impl Plane {
    /// Sees to it that the namespaces of spliced ports can be entered. Nothing is changed by it but what is known of them.
    pub(super) fn prepare_splices(
        &mut self,
        wanted: &Topology,
        lenient: bool,
    ) -> Result<(), Refusal> {
        let spliced = wanted.publish.iter().filter(|(_, p)| p.splice);
        let mut names = BTreeMap::new();
        for (name, p) in spliced {
            if let Some(namespace) = wanted.namespace_of(p) {
                names.insert(namespace, name);
            }
        }
        let splicing = &mut self.host_ports.splicing;
        splicing.ways.retain(|n, _| names.contains_key(n.as_str()));
        for (namespace, name) in names {
            if splicing.ways.contains_key(namespace) {
                continue;
            }
            let failed = |reason: String| {
                let thing = format!("port `{name}`");
                let remedy = "leave out splice, or give the daemon the right (CAP_SYS_ADMIN)";
                Refusal::new(Kind::Denied, "splicing", thing, reason, remedy)
            };
            let entered = netns::within(namespace, here).map_err(|e| failed(e.to_string()));
            let entered = entered.and_then(|r| r.map_err(|e| failed(e.to_string())));
            let identity = match entered {
                Ok(identity) => identity,
                // A container that has gone since is no hindrance to other changes.
                Err(_) if self.desired.publish.get(name) == wanted.publish.get(name) => continue,
                Err(refusal) if lenient => {
                    tracing::warn!("{refusal}");
                    continue;
                }
                Err(refusal) => return Err(refusal),
            };
            if splicing.splicer.is_none() {
                let started = Splicer::start().map_err(|e| failed(e.to_string()))?;
                splicing.splicer = Some(started);
            }
            let known = netns::pid_of(namespace).map(|_| identity);
            let namespace = namespace.to_owned();
            splicing
                .ways
                .insert(namespace.clone(), way(namespace, known));
        }
        Ok(())
    }
}
