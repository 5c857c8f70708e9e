//! What slirp4netns is told: flags and their check.

use super::super::inside::{InsideError, Place};
use clap::{CommandFactory, Parser, ValueEnum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use crate::units::{Cidr, Mac};

/// As those who ask for the version expect it: the one whose command line this is.
const VERSION: &str = concat!(
    "slirp4netns version 1.2.0\nvswitch: ",
    env!("CARGO_PKG_VERSION"),
    "\n"
);

const AFTER_HELP: &str = "\
This is the switch of vswitch under the command line of slirp4netns. VSWITCH_ATTACH=NETWORK, or attach.toml in ~/.config/vswitch, attaches
the container to the user's vswitchd instead. Exit codes: 0 ended as asked, 1 failed, 2 wrong usage.

Example:
  unshare --user --map-root-user --net --mount
  slirp4netns --configure --mtu=65520 --disable-host-loopback $PID tap0";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum NetnsType {
    Path,
    #[default]
    Pid,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum TargetType {
    #[default]
    Netns,
    Bess,
}

/// User-mode networking for unprivileged network namespaces.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "slirp4netns",
    after_help = AFTER_HELP,
    infer_long_args = true,
    disable_version_flag = true,
    next_display_order = None,
    override_usage = "slirp4netns [OPTION]... PID|PATH [TAPNAME]"
)]
pub(super) struct Options {
    /// Process whose network namespace it is, or with --netns-type=path the path of that; with --target-type=bess the path of the socket.
    #[arg(value_name = "PID|PATH", required_unless_present = "version")]
    target: Option<String>,
    /// Name of the interface in the container.
    #[arg(value_name = "TAPNAME", default_value = "tap0")]
    pub(super) tap: String,
    /// Bring up the interface: addresses, route, loopback.
    #[arg(short, long)]
    pub(super) configure: bool,
    /// End when this descriptor hangs up.
    #[arg(short, long, value_name = "FD")]
    pub(super) exit_fd: Option<i32>,
    /// Write `1` to this descriptor when the network is there.
    #[arg(short, long, value_name = "FD")]
    pub(super) ready_fd: Option<i32>,
    /// MTU.
    #[arg(short, long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(576..=65_521))]
    pub(super) mtu: u32,
    /// Enable IPv6: fd00::/64.
    #[arg(short = '6', long)]
    pub(super) enable_ipv6: bool,
    /// Socket for forwards from ports of the host.
    #[arg(short, long, value_name = "PATH")]
    pub(super) api_socket: Option<PathBuf>,
    /// Network of the container.
    #[arg(long, value_name = "CIDR", default_value = "10.0.2.0/24")]
    pub(super) cidr: Network,
    /// Prohibit connections to 127.0.0.1 and ::1 of the host by the gateway's address.
    #[arg(long)]
    pub(super) disable_host_loopback: bool,
    /// What PID|PATH is.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    netns_type: NetnsType,
    /// User namespace to enter before the network namespace.
    #[arg(long, value_name = "PATH")]
    userns_path: Option<PathBuf>,
    /// Serve in namespaces of its own, without access to files, and without any privilege.
    #[arg(long)]
    pub(super) enable_sandbox: bool,
    /// Give up system calls that aren't needed once it runs.
    #[arg(long)]
    pub(super) enable_seccomp: bool,
    /// Source address outside, or interface of the host that all leaves by.
    #[arg(long, value_name = "IPv4|INTERFACE")]
    pub(super) outbound_addr: Option<Outbound<Ipv4Addr>>,
    /// The same for IPv6.
    #[arg(long, value_name = "IPv6|INTERFACE")]
    pub(super) outbound_addr6: Option<Outbound<Ipv6Addr>>,
    /// Serve no DNS at 10.0.2.3.
    #[arg(long)]
    pub(super) disable_dns: bool,
    /// MAC address of the interface (only with -c).
    #[arg(long, value_name = "MAC", requires = "configure")]
    pub(super) macaddress: Option<Mac>,
    /// Type of target: a network namespace, or a virtual machine of User-Mode Linux that connects to a socket.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    target_type: TargetType,
    /// Show the version.
    #[arg(short, long)]
    version: bool,
}

/// The container's network: room for the addresses that stand in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) base: Ipv4Addr,
    pub(super) len: u8,
}

impl Network {
    /// The address of this number in it.
    pub(super) fn host(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().wrapping_add(number))
    }
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Network, String> {
        let like = "write it like 10.0.2.0/24";
        let Cidr((IpAddr::V4(base), len)) = text.parse::<Cidr>().map_err(|e| e.to_string())? else {
            return Err(format!("`{text}` isn't IPv4: {like}"));
        };
        // The container is number 100, and the last address of at least 128 is the broadcast address.
        if !(1..=25).contains(&len) {
            return Err(format!(
                "a prefix of {len} bits has no room for the addresses: use 1 to 25"
            ));
        }
        if base.to_bits() & (u32::MAX >> len) != 0 {
            return Err(format!(
                "{base} isn't the address of a network of {len} bits: {like}"
            ));
        }
        Ok(Network { base, len })
    }
}

/// A source address, or an interface that has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outbound<A> {
    Address(A),
    Interface(String),
}

impl<A: FromStr> FromStr for Outbound<A> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Outbound::Address(address));
        }
        match nix::net::if_::if_nametoindex(text) {
            Ok(_) => Ok(Outbound::Interface(text.to_owned())),
            Err(_) => {
                let lacks = "it is neither an address of this family nor an interface of the host";
                Err(format!("{lacks}; `ip address` shows those it has"))
            }
        }
    }
}

/// The definition, for documents.
#[must_use]
pub fn command() -> clap::Command {
    Options::command()
}

/// The process's arguments; otherwise what it ends with.
pub(super) fn read() -> Result<Options, ExitCode> {
    let options = Options::parse();
    if options.version {
        print!("{VERSION}");
        return Err(ExitCode::SUCCESS);
    }
    if options.socket().is_some() {
        if options.configure {
            let instead = "leave out --configure: the virtual machine sets its interface up itself";
            eprintln!("slirp4netns: --target-type=bess: {instead}");
            return Err(ExitCode::from(2));
        }
        return Ok(options);
    }
    if options.netns_type == NetnsType::Pid && options.pid().is_none() {
        let target = options.target.as_deref().unwrap_or_default();
        let remedy = "give the number of a process, or a path with --netns-type=path";
        eprintln!("slirp4netns: `{target}` isn't a process; {remedy}");
        return Err(ExitCode::from(2));
    }
    Ok(options)
}

impl Options {
    fn pid(&self) -> Option<i32> {
        self.target.as_ref()?.parse().ok().filter(|p| *p > 0)
    }

    /// The socket that a virtual machine connects to.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        let target = self.target.as_ref().map(PathBuf::from);
        target.filter(|_| self.target_type == TargetType::Bess)
    }

    /// The process or the path that the namespace is named by.
    pub(super) fn named(&self) -> (Option<i32>, Option<&str>) {
        match self.netns_type {
            NetnsType::Pid => (self.pid(), None),
            NetnsType::Path => (None, self.target.as_deref()),
        }
    }

    /// The namespaces that are named.
    pub(super) fn place(&self) -> Result<Place, InsideError> {
        match (self.netns_type, self.pid()) {
            (NetnsType::Pid, Some(pid)) => Place::of_process(pid, self.userns_path.clone()),
            _ => {
                let path = self.target.clone().unwrap_or_default();
                Place::at(path.into(), self.userns_path.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("slirp4netns").chain(args.split_whitespace()))
    }

    #[test]
    fn what_real_callers_pass() {
        let podman = "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -e 3 -r 4 \
                      --netns-type=path /run/netns/netns-1 tap0";
        let o = parse(podman).unwrap();
        assert!(o.disable_host_loopback && o.enable_ipv6 && o.configure);
        assert_eq!((o.mtu, o.exit_fd, o.ready_fd), (65_520, Some(3), Some(4)));
        assert_eq!(o.netns_type, NetnsType::Path);
        let rootlesskit = "--mtu 65520 -r 3 --disable-host-loopback --cidr 10.0.3.0/24 --api-socket s --enable-sandbox 42 tap0";
        let o = parse(rootlesskit).unwrap();
        assert_eq!(
            (o.pid(), o.cidr.host(100).to_string()),
            (Some(42), "10.0.3.100".into())
        );
        // As getopt_long has it: joined short values, abbreviated names.
        let o = parse("-ce3 -r4 --enable-ip -m9000 42").unwrap();
        assert_eq!((o.exit_fd, o.mtu, o.tap.as_str()), (Some(3), 9000, "tap0"));
        assert!(o.enable_ipv6);
    }

    #[test]
    fn mistakes_are_told() {
        let text = |args: &str| parse(args).unwrap_err().to_string();
        assert!(text("--disable-host-lookback 42").contains("--disable-host-loopback"));
        assert!(text("--cidr=10.0.2.0/26 42").contains("use 1 to 25"));
        assert!(text("--cidr=10.0.2.1/24 42").contains("isn't the address of a network"));
        assert!(text("--mtu=70000 42").contains("65521"));
        assert!(text("--macaddress=02:00:00:00:00:01 42").contains("--configure"));
        assert!(text("").contains("PID|PATH"));
    }

    #[test]
    fn the_help_names_what_callers_look_for() {
        command().debug_assert();
        let help = command().render_help().to_string();
        for flag in [
            "--disable-host-loopback",
            "--enable-sandbox",
            "--enable-seccomp",
            "--enable-ipv6",
            "--cidr",
            "--netns-type",
            "--mtu",
            "--api-socket",
            "--outbound-addr",
            "--outbound-addr6",
            "--disable-dns",
            "--macaddress",
            "--target-type",
            "--userns-path",
        ] {
            assert!(help.contains(flag), "{flag}");
        }
    }
}
