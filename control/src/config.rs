//! The daemon's configuration file (TOML) and default places.

use crate::logging::LogFormat;
use crate::model::TopologyError;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What carries frames between veth ports besides the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerate {
    /// Nothing.
    #[default]
    None,
    /// Programs of ours in the kernel (eBPF), for what the switch has approved.
    Ebpf,
}

/// The file; everything may be left out, options of the command line win.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Control socket.
    pub socket: Option<PathBuf>,
    /// Group that may use the control socket besides root and the daemon's user.
    pub group: Option<String>,
    /// What carries frames between veth ports besides the workers.
    pub accelerate: Option<Accelerate>,
    /// Workers, 1 to 64.
    pub workers: Option<u16>,
    /// Microseconds a worker looks for more work before it sleeps, where small frames come in quick succession; 60 by default,
    /// 0 never.
    pub spin_us: Option<u32>,
    /// Where state is kept.
    pub state: Option<PathBuf>,
    /// Whether state is kept at all; true by default.
    pub keep_state: Option<bool>,
    /// Topology to apply at start; then state isn't restored.
    pub topology: Option<PathBuf>,
    /// Loopback address for `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// How logs are written.
    pub log_format: Option<LogFormat>,
}

impl Config {
    /// Reads a file's text; the error has line and column.
    pub fn from_toml(file: &Path, text: &str) -> Result<Config, TopologyError> {
        let config: Config =
            toml::from_str(text).map_err(|e| TopologyError::of_toml(file, text, &e))?;
        if let Some(w) = config.workers
            && !(1..=64).contains(&w)
        {
            return Err(point(
                file,
                text,
                "workers",
                "it is out of range",
                "use 1 to 64",
            ));
        }
        if let Some(m) = config.metrics
            && !m.ip().is_loopback()
        {
            let remedy = "use 127.0.0.1:PORT or [::1]:PORT";
            return Err(point(
                file,
                text,
                "metrics",
                "it isn't a loopback address",
                remedy,
            ));
        }
        Ok(config)
    }
}

fn point(file: &Path, text: &str, key: &str, reason: &str, remedy: &str) -> TopologyError {
    let line = text
        .lines()
        .position(|l| l.trim_start().starts_with(key))
        .map_or(1, |i| i + 1);
    TopologyError {
        file: file.to_owned(),
        line,
        column: 1,
        reason: format!("`{key}`: {reason}"),
        remedy: remedy.into(),
    }
}

/// The default control socket: below XDG_RUNTIME_DIR for a user, below /run for root.
#[must_use]
pub fn default_socket() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
    match own {
        Some(dir) if !nix::unistd::geteuid().is_root() => PathBuf::from(dir).join("vswitch.sock"),
        _ if nix::unistd::geteuid().is_root() => PathBuf::from("/run/vswitch/vswitch.sock"),
        _ => PathBuf::from(format!("/tmp/vswitch-{}.sock", nix::unistd::geteuid())),
    }
}

/// The default state file: below XDG_STATE_HOME for a user, below /var/lib for root.
#[must_use]
pub fn default_state() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/vswitch/state.json");
    }
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    let dir = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let dir = dir.or_else(home).unwrap_or_else(|| PathBuf::from("/tmp"));
    dir.join("vswitch/state.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_pointed_at() {
        let read = |text: &str| Config::from_toml(Path::new("c.toml"), text);
        let c = read("workers = 2\nmetrics = \"127.0.0.1:9100\"\n").unwrap();
        assert_eq!(c.workers, Some(2));
        let e = read("workers = 2\nsoket = \"x\"\n").unwrap_err();
        assert_eq!((e.line, e.column), (2, 1), "{e}");
        let e = read("\nworkers = 65\n").unwrap_err();
        assert_eq!(e.line, 2, "{e}");
        let e = read("metrics = \"192.0.2.1:9100\"\n").unwrap_err();
        assert!(e.to_string().contains("loopback"), "{e}");
    }
}
