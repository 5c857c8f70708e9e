//! The machine the bench runs on: packages installed by name, programs of ours built, versions, and what /proc tells.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::time::ClockId;
use nix::unistd::Pid;

/// Names and reasons of packages.
const PACKAGES: &str = include_str!("../packages");

/// Path of this program, which is also the traffic tools.
pub(crate) fn this_program() -> anyhow::Result<String> {
    let path = std::env::current_exe().context("finding the path of this program")?;
    Ok(path.to_string_lossy().into_owned())
}

/// Where vswitchd and vswitchctl are: `VSWITCH_BIN_DIR`, else beside this program.
pub(crate) fn bin_dir() -> PathBuf {
    std::env::var_os("VSWITCH_BIN_DIR").map_or_else(
        || {
            let exe = std::env::current_exe().unwrap_or_default();
            exe.parent().map(Path::to_owned).unwrap_or_default()
        },
        PathBuf::from,
    )
}

/// Builds vswitchd and vswitchctl from the sources this program was built from, as it was: what is measured is what is
/// there to read. With `VSWITCH_BIN_DIR` nothing is built.
pub(crate) fn build() -> anyhow::Result<()> {
    if std::env::var_os("VSWITCH_BIN_DIR").is_some() {
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.filter(|r| r.join("Cargo.toml").exists());
    let root = root.context("the sources aren't there any more: set VSWITCH_BIN_DIR to a folder with vswitchd and vswitchctl")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "-p", "vswitch-control", "--bins"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    if let Some(target) = bin_dir().parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let status = cargo
        .stdin(Stdio::null())
        .status()
        .context("running cargo to build vswitchd")?;
    ensure!(
        status.success(),
        "`cargo build -p vswitch-control --bins` failed: correct that, or set VSWITCH_BIN_DIR"
    );
    Ok(())
}

/// Packages of `packages` whose reason begins with `all` or one of `peers`.
fn wanted(list: &str, peers: &[String]) -> Vec<String> {
    let lines = list.lines().filter(|l| !l.starts_with('#'));
    let named = lines.filter_map(|l| {
        let (name, why) = l.split_once('#')?;
        let whose = why.split_once(':')?.0.trim();
        (whose == "all" || peers.iter().any(|p| p == whose)).then(|| name.trim().to_owned())
    });
    named.collect()
}

/// Installs what the peers need and is missing.
pub(crate) fn install(peers: &[String]) -> anyhow::Result<()> {
    let installed = |name: &str| {
        let status = Command::new("dpkg-query")
            .args(["-W", "-f", "${db:Status-Status}", name])
            .output();
        status.map(|o| o.stdout == b"installed")
    };
    let mut missing = vec![];
    for name in wanted(PACKAGES, peers) {
        match installed(&name) {
            Ok(true) => {}
            Ok(false) => missing.push(name),
            // Not a Debian system: the peers themselves will tell what is missing.
            Err(_) => return Ok(()),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    eprintln!("vswitch-bench: installing {names}");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(args)
            .stdin(Stdio::null());
        command
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(missing.iter().map(String::as_str));
    if apt(&install) || (apt(&["update", "-q"]) && apt(&install)) {
        return Ok(());
    }
    bail!("packages are missing; run: sudo apt-get install --no-install-recommends {names}")
}

/// First line a program prints of its version.
pub(crate) fn version(argv: &[String]) -> Option<String> {
    let (program, args) = argv.split_first()?;
    let output = Command::new(program).args(args).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines()
        .find(|l| !l.trim().is_empty())
        .map(|l| l.trim().to_owned())
}

/// Kernel, processor and number of CPUs.
pub(crate) fn description() -> Vec<(&'static str, String)> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    let cpus = info.lines().filter(|l| l.starts_with("processor")).count();
    vec![
        (
            "kernel",
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        (
            "processor",
            model.map_or_else(String::new, |m| m.1.trim().to_owned()),
        ),
        ("cpus", cpus.to_string()),
    ]
}

/// Processes that ran or wanted to, over the last minute.
pub(crate) fn load() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = load.split(' ').next().and_then(|l| l.parse().ok());
    first.unwrap_or_default()
}

/// CPU seconds of processes, all their threads.
pub(crate) fn cpu_seconds(pids: &[i32]) -> f64 {
    let one = |pid: &i32| {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(*pid)).ok()?;
        let time = clock.now().ok()?;
        Some(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
    };
    pids.iter().filter_map(one).sum()
}

/// A number of /proc/PID/status, such as VmRSS (in KiB).
pub(crate) fn status(pid: i32, field: &str) -> anyhow::Result<u64> {
    number(&format!("/proc/{pid}/status"), field)
}

fn number(path: &str, field: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    let value = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("no {field} in {path}"))
}

/// Processes, and those that they have started.
pub(crate) fn with_children(pids: &[i32]) -> Vec<i32> {
    let mut all = pids.to_vec();
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        all.extend(
            text.split_whitespace()
                .filter_map(|n| n.parse::<i32>().ok()),
        );
        at += 1;
    }
    all
}

/// Memory of a process and those that it has started, KiB. Of all but the largest only what is nobody else's counts: the rest is shared.
pub(crate) fn resident(pid: i32) -> anyhow::Result<u64> {
    let mut sizes = Vec::new();
    for pid in with_children(&[pid]) {
        let of = |field| number(&format!("/proc/{pid}/smaps_rollup"), field);
        let private = of("Private_Clean")? + of("Private_Dirty")?;
        sizes.push((status(pid, "VmRSS")?, private));
    }
    sizes.sort_unstable();
    let largest = sizes.pop().map_or(0, |(rss, _)| rss);
    Ok(largest + sizes.iter().map(|(_, private)| private).sum::<u64>())
}

/// How often the threads of processes have gone to sleep.
pub(crate) fn sleeps(pids: &[i32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let dir = format!("/proc/{pid}/task");
        for task in std::fs::read_dir(&dir).with_context(|| format!("reading {dir}"))? {
            let path = task
                .with_context(|| format!("reading {dir}"))?
                .path()
                .join("status");
            match number(&path.to_string_lossy(), "voluntary_ctxt_switches") {
                Ok(n) => sum += n,
                // The thread has ended since the directory was read.
                Err(_) if !path.exists() => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(sum)
}

/// Sleeps in steps, until `end` or a signal to stop.
pub(crate) fn rest(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end && !crate::stop::asked() {
        std::thread::sleep(Duration::from_millis(20).min(time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_those_of_the_peers_and_of_all() {
        let list =
            "# head\nip # all: links\nswitch-x   # x: a peer: with colons\nswitch-y # y: another\n";
        assert_eq!(wanted(list, &["x".into()]), ["ip", "switch-x"]);
        assert_eq!(
            wanted(PACKAGES, &["ovs".into()])
                .iter()
                .filter(|n| n.contains("switch"))
                .count(),
            1
        );
    }

    #[test]
    fn proc_tells_of_this_process() {
        let pid = std::process::id() as i32;
        assert!(status(pid, "VmRSS").unwrap() > 0);
        assert!(resident(pid).unwrap() > 0);
        assert_eq!(with_children(&[pid]).first(), Some(&pid));
        assert!(sleeps(&[pid]).is_ok());
        assert!(status(pid, "NoSuchField").is_err());
        assert!(cpu_seconds(&[pid]) >= 0.0);
    }
}
