//! The host that the daemon runs on, as it changes: its network by rtnetlink, its resolvers by inotify.
//!
//! # Theory of operation
//!
//! Two tasks of the control thread wait for changes and have the plane take them up: sockets of the host uplink that have to move do,
//! and questions go to the resolvers that the host has now. What comes at once is taken together ([`PAUSE`]). Nothing hangs on
//! being told at once: a socket that is opened later goes by the routes there are then, and the list of resolvers is read every few seconds
//! where DNS is served, which also finds what inotify doesn't tell of (a file mounted over it).

mod file;
mod network;

pub(crate) use network::Changes;

use crate::api::{Shared, lock};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the host's resolvers are named.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Bytes of it that are read.
const LONGEST: u64 = 64 << 10;
/// How long further changes are waited for once some were taken up.
const PAUSE: Duration = Duration::from_millis(50);

/// The list of resolvers as it is, up to a length that none has.
pub(crate) fn resolv_conf() -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(RESOLV_CONF)?
        .take(LONGEST)
        .read_to_end(&mut bytes)?;
    // A comment may be in any encoding.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The directories that the list of resolvers is in, and the symbolic links that lead to it.
pub(crate) fn resolver_directories() -> Vec<PathBuf> {
    file::directories(Path::new(RESOLV_CONF))
}

/// Follows the host's network until it can't be followed.
pub(crate) async fn network(plane: Shared) {
    let why = match network::Follower::open() {
        Ok(mut follower) => loop {
            match follower.changed().await {
                Ok(changes) => lock(&plane).host_changed(changes),
                Err(e) => break e,
            }
            tokio::time::sleep(PAUSE).await;
        },
        Err(e) => e,
    };
    tracing::warn!("changes of the host's network can't be followed (rtnetlink): {why}");
}

/// Follows the list of resolvers until it can't be followed.
pub(crate) async fn resolvers(plane: Shared) {
    let why = match file::Follower::open(Path::new(RESOLV_CONF)) {
        Ok(mut follower) => loop {
            match follower.changed().await {
                Ok(()) => lock(&plane).follow_resolvers(),
                Err(e) => break e,
            }
            tokio::time::sleep(PAUSE).await;
        },
        Err(e) => e,
    };
    tracing::warn!("{RESOLV_CONF} is only read every few seconds (inotify): {why}");
}
