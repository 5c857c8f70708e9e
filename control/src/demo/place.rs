//! Where the demo lives: a network namespace of its own, in a user namespace where it isn't root, and a directory that only it
//! can enter.

use super::{DemoError, address, address6};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::{Path, PathBuf};

/// The demo's own namespaces and directory; the directory goes when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    in_user_namespace: bool,
}

const REMEDY: &str = "run as root, or allow user namespaces (sysctl user.max_user_namespaces, \
                      kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)";

/// Room that a unix socket's path leaves for the directory.
const LONGEST_DIR: usize = 80;

impl Place {
    /// Enters new namespaces; the process must have one thread. `names` go into a hosts file.
    pub(super) fn enter(names: &[&str]) -> Result<Place, DemoError> {
        let root = nix::unistd::geteuid().is_root();
        let in_user_namespace = !(root && unshare(CloneFlags::CLONE_NEWNET).is_ok());
        if in_user_namespace {
            user_namespace()?;
        }
        let temp = std::env::temp_dir();
        let parent = if temp.as_os_str().len() <= LONGEST_DIR {
            temp
        } else {
            PathBuf::from("/tmp")
        };
        let template = parent.join("vswitch-demo-XXXXXX");
        let act = format!("making a directory in {}", parent.display());
        let remedy = "set TMPDIR to a directory that can be written";
        let dir = nix::unistd::mkdtemp(&template)
            .map_err(|e| DemoError::failed(&act, e.desc(), remedy))?;
        let place = Place {
            dir,
            in_user_namespace,
        };
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (number, name) in (1..).zip(names) {
            hosts += &format!("{} {name}\n{} {name}\n", address(number), address6(number));
        }
        fs::write(hosts_of(&place.dir), hosts).map_err(|e| DemoError::failed(&act, e, remedy))?;
        Ok(place)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("vswitch.sock")
    }

    /// Options of `nsenter` that lead into a container beside its process id.
    pub(super) fn nsenter_options(&self) -> &'static str {
        if self.in_user_namespace {
            "-U --preserve-credentials -m -n"
        } else {
            "-m -n"
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The hosts file that containers see as /etc/hosts.
pub(super) fn hosts_of(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

/// Becomes root of a user namespace (user_namespaces(7)), then enters a network namespace that belongs to it.
fn user_namespace() -> Result<(), DemoError> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let act = "making a user and a network namespace";
    let fail = |e: nix::errno::Errno| DemoError::failed(act, e.desc(), REMEDY);
    unshare(CloneFlags::CLONE_NEWUSER).map_err(fail)?;
    for (file, map) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), map)
            .map_err(|e| DemoError::failed(format!("{act}: writing {file}"), e, REMEDY))?;
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(fail)
}

/// Whether interfaces of new namespaces can have IPv6 addresses.
pub(super) fn has_ipv6() -> bool {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    off.is_ok_and(|text| text.trim() == "0")
}
