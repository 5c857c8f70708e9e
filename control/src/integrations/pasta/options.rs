//! What pasta is told: flags and their check.

use super::super::inside::{InsideError, Place};
use super::ports::{Forward, Lead, Wanted};
use crate::units::Mac;
use clap::{CommandFactory, Parser};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use vswitch_core::sys::sock::Kind;

/// The first line is what callers show; pasta has dates there.
const VERSION: &str = concat!("pasta 0.0~vswitch-", env!("CARGO_PKG_VERSION"), "\n");

/// Sockets of `--tcp-ns` and `--udp-ns` at most, of both families.
pub(super) const MOST_TO_HOST: usize = 512;

const AFTER_HELP: &str = "\
This is the switch of vswitch under the command line of pasta. With a PID or --netns it goes to the background when the network is there; a \
command, by default a shell, is run in a user, a mount and a network namespace of its own, with --config-net. VSWITCH_CONTROL=auto gives it a control \
socket for vswitchctl. Exit codes: 0 done, 1 failed, 2 wrong usage, that of the command.

Examples:
  pasta -- curl http://192.0.2.1/
  unshare --user --map-root-user --net --mount
  pasta --config-net --tcp-ports 8080:80 $PID";

/// An address, or the word that says that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maybe {
    None,
    Address(IpAddr),
}

impl FromStr for Maybe {
    type Err = String;
    fn from_str(text: &str) -> Result<Maybe, String> {
        match text {
            "none" => Ok(Maybe::None),
            _ => text
                .parse()
                .map(Maybe::Address)
                .map_err(|_| "write an address, or `none`".to_owned()),
        }
    }
}

impl Maybe {
    /// The addresses of a list; `none` takes those before it away.
    pub(super) fn all(list: &[Maybe]) -> Vec<IpAddr> {
        let last = list.iter().rposition(|m| *m == Maybe::None);
        let rest = list.iter().skip(last.map_or(0, |i| i + 1));
        let address = |m: &Maybe| match m {
            Maybe::Address(ip) => Some(*ip),
            Maybe::None => None,
        };
        rest.filter_map(address).collect()
    }
}

/// An address, with the length of its prefix if that is written behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own(pub(super) IpAddr, pub(super) Option<u8>);

impl FromStr for Own {
    type Err = String;
    fn from_str(text: &str) -> Result<Own, String> {
        let wrong = || "write an address like 10.0.2.100 or 10.0.2.100/24".to_owned();
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        match len {
            Some(len) if len == 0 || len > most => Err(wrong()),
            len => Ok(Own(address, len)),
        }
    }
}

fn netmask(text: &str) -> Result<u8, String> {
    let wrong = "write a length like 24, or a mask like 255.255.255.0".to_owned();
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        let bits = mask.to_bits();
        let len = bits.leading_ones();
        return match bits.checked_shl(len) {
            None | Some(0) if len > 0 => Ok(len as u8),
            _ => Err(wrong),
        };
    }
    text.parse()
        .ok()
        .filter(|n| (1..=32).contains(n))
        .ok_or(wrong)
}

/// Networking of the host's own kind for unprivileged network namespaces.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "pasta",
    after_help = AFTER_HELP,
    infer_long_args = true,
    disable_version_flag = true,
    next_display_order = None,
    override_usage = "pasta [OPTION]... PID\n       pasta [OPTION]... --netns PATH|NAME\n       pasta [OPTION]... [COMMAND [ARGUMENT]...]"
)]
pub(super) struct Options {
    /// Process whose network namespace it is, or a command to run in namespaces of its own.
    #[arg(value_name = "PID|COMMAND", trailing_var_arg = true)]
    words: Vec<String>,
    /// The command's process, once it is there.
    #[arg(skip)]
    pub(super) started: Option<i32>,
    /// Network namespace, by its path or its name below /run/netns.
    #[arg(long, value_name = "PATH|NAME", conflicts_with = "words")]
    netns: Option<String>,
    /// User namespace to enter before.
    #[arg(long, value_name = "PATH")]
    userns: Option<PathBuf>,
    /// Enter no user namespace.
    #[arg(long, conflicts_with = "userns")]
    netns_only: bool,
    /// Taken: it ends with the namespace in any case.
    #[arg(long)]
    no_netns_quit: bool,
    /// Configure the interface in the namespace: addresses and routes.
    #[arg(long)]
    pub(super) config_net: bool,
    /// Name of the interface in the namespace [default: that of the host's].
    #[arg(short = 'I', long, value_name = "NAME")]
    pub(super) ns_ifname: Option<String>,
    /// MAC address of the interface in the namespace.
    #[arg(long, value_name = "MAC")]
    pub(super) ns_mac_addr: Option<Mac>,
    /// Address of the container [default: that of the host], twice for both families.
    #[arg(short, long, value_name = "ADDRESS")]
    pub(super) address: Vec<Own>,
    /// Length of the IPv4 prefix.
    #[arg(short, long, value_name = "MASK", value_parser = netmask)]
    pub(super) netmask: Option<u8>,
    /// Default router of the container [default: that of the host], twice for both families.
    #[arg(short, long, value_name = "ADDRESS")]
    pub(super) gateway: Vec<IpAddr>,
    /// MAC address of the router.
    #[arg(short = 'M', long, value_name = "MAC")]
    pub(super) mac_addr: Option<Mac>,
    /// MTU.
    #[arg(short, long, default_value_t = 65_520, value_parser = clap::value_parser!(u32).range(576..=65_535))]
    pub(super) mtu: u32,
    /// IPv4 only.
    #[arg(short = '4', long)]
    pub(super) ipv4_only: bool,
    /// IPv6 only.
    #[arg(short = '6', long, conflicts_with = "ipv4_only")]
    pub(super) ipv6_only: bool,
    /// Interface of the host whose addresses and routes the container gets [default: that of the default route].
    #[arg(short, long, value_name = "NAME")]
    pub(super) interface: Option<String>,
    /// Source address outside, or interface that all leaves by.
    #[arg(short, long, value_name = "ADDRESS|NAME")]
    pub(super) outbound: Vec<String>,
    /// Address at which questions are forwarded to the host's resolvers.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) dns_forward: Vec<IpAddr>,
    /// Address that stands for the host's loopback [default: the router's].
    #[arg(long, value_name = "ADDRESS|none")]
    pub(super) map_host_loopback: Vec<Maybe>,
    /// Address that stands for the host's own, outside of its loopback.
    #[arg(long, value_name = "ADDRESS|none")]
    pub(super) map_guest_addr: Vec<Maybe>,
    /// The router's address doesn't stand for the host's loopback.
    #[arg(long)]
    pub(super) no_map_gw: bool,
    /// TCP ports of the host that lead to the container: `none`, `auto`, `all`, or a list like 127.0.0.1/8080:80 or %eth0/80, where ~22 excludes.
    #[arg(short, long, value_name = "PORTS")]
    tcp_ports: Vec<Forward>,
    /// UDP ports of the host that lead to the container.
    #[arg(short, long, value_name = "PORTS")]
    udp_ports: Vec<Forward>,
    /// TCP ports of the container's loopback that lead to the host's: `none`, the default, `auto`, or a list like 5432 or 5432:15432.
    #[arg(short = 'T', long, value_name = "PORTS")]
    tcp_ns: Vec<Forward>,
    /// UDP ports of the container's loopback that lead to the host's.
    #[arg(short = 'U', long, value_name = "PORTS")]
    udp_ns: Vec<Forward>,
    /// Stay in the foreground.
    #[arg(short, long)]
    pub(super) foreground: bool,
    /// Where the process's number is written when the network is there.
    #[arg(short = 'P', long, value_name = "FILE")]
    pub(super) pid: Option<PathBuf>,
    /// Log to this file.
    #[arg(short, long, value_name = "FILE")]
    pub(super) log_file: Option<PathBuf>,
    /// Log to standard error, in the background too.
    #[arg(short = 'e', long)]
    pub(super) stderr: bool,
    /// Say nothing but faults.
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Log more.
    #[arg(short, long)]
    pub(super) debug: bool,
    #[command(flatten)]
    _taken: Taken,
    /// Show the version.
    #[arg(long)]
    version: bool,
}

/// Flags that are taken, and change nothing here.
#[derive(Clone, Debug, clap::Args)]
struct Taken {
    /// Taken: DHCP isn't served.
    #[arg(long)]
    no_dhcp: bool,
    /// Taken: router advertisements aren't sent.
    #[arg(long)]
    no_ra: bool,
    /// Taken: DHCPv6 isn't served.
    #[arg(long)]
    no_dhcpv6: bool,
    /// Taken: neighbour discovery is needed.
    #[arg(long)]
    no_ndp: bool,
    /// Taken: it runs as who started it.
    #[arg(long, value_name = "UID|NAME")]
    runas: Option<String>,
    /// Taken: resolvers told by DHCP.
    #[arg(short = 'D', long, value_name = "ADDRESS|none")]
    dns: Vec<Maybe>,
    /// Taken: search list told by DHCP.
    #[arg(short = 'S', long, value_name = "LIST")]
    search: Vec<String>,
    /// Taken: log size.
    #[arg(long, value_name = "BYTES")]
    log_size: Option<u64>,
    /// Taken: only default routes are made.
    #[arg(long)]
    no_copy_routes: bool,
    /// Taken: one address of each family is copied.
    #[arg(long)]
    no_copy_addrs: bool,
}

/// The definition, for documents.
#[must_use]
pub fn command() -> clap::Command {
    Options::command()
}

fn wrong(text: &str) -> ExitCode {
    eprintln!("pasta: {text}");
    ExitCode::from(2)
}

/// The process's arguments; otherwise what it ends with.
pub(super) fn read() -> Result<Options, ExitCode> {
    let mut options = Options::parse();
    if options.version {
        print!("{VERSION}");
        return Err(ExitCode::SUCCESS);
    }
    if options.to_run().is_some() {
        if options.userns.is_some() || options.netns_only {
            let text = "--userns and --netns-only are for namespaces that exist: name a process or --netns, or leave them out";
            return Err(wrong(text));
        }
        // It would wait for DHCP, which isn't served.
        options.config_net = true;
    }
    if options.to_host().len() > MOST_TO_HOST {
        let text = format!(
            "--tcp-ns and --udp-ns: {MOST_TO_HOST} ports at most, each family's for one; list fewer"
        );
        return Err(wrong(&text));
    }
    Ok(options)
}

impl Options {
    /// The process that the namespace is named by.
    pub(super) fn process(&self) -> Option<i32> {
        let named = match &self.words[..] {
            [word] => word.parse().ok().filter(|p| *p > 0),
            _ => None,
        };
        self.started.or(named)
    }

    /// A command to run; without words, a shell.
    pub(super) fn to_run(&self) -> Option<&[String]> {
        let none = self.netns.is_none() && self.process().is_none();
        none.then_some(&self.words)
    }

    fn of_loopback(&self) -> impl Iterator<Item = (Kind, &Forward)> {
        let tcp = self.tcp_ns.iter().map(|f| (Kind::Tcp, f));
        tcp.chain(self.udp_ns.iter().map(|f| (Kind::Udp, f)))
    }

    /// Ports of the container's loopback that lead to the host's, as they are listed.
    pub(super) fn to_host(&self) -> Vec<Lead> {
        let listed = self.of_loopback().filter_map(|(kind, f)| match f {
            Forward::Listed(l) => Some(l.iter().flat_map(move |l| l.to_host(kind))),
            _ => None,
        });
        listed.flatten().collect()
    }

    /// Of which ports of the container's loopback those lead to the host's that the host listens on.
    pub(super) fn followed_to_host(&self) -> Vec<Wanted> {
        let followed = self.of_loopback().filter_map(|(kind, f)| match f {
            Forward::Followed(at, ranges) => Some(Wanted {
                kind,
                at: at.clone(),
                ports: ranges.clone(),
            }),
            _ => None,
        });
        followed.collect()
    }

    /// The namespace, if it isn't named by a process.
    pub(super) fn netns(&self) -> Option<&str> {
        self.netns.as_deref()
    }

    /// The namespaces that are named.
    pub(super) fn place(&self) -> Result<Place, InsideError> {
        match (&self.netns, self.process()) {
            (None, Some(pid)) if self.netns_only => {
                Place::at(format!("/proc/{pid}/ns/net").into(), None)
            }
            (None, Some(pid)) => Place::of_process(pid, self.userns.clone()),
            (netns, _) => {
                let netns = netns.as_deref().unwrap_or_default();
                Place::at(crate::netns::path_of(netns), self.userns.clone())
            }
        }
    }

    /// What of TCP and UDP is forwarded; by itself what is listened on.
    pub(super) fn forwards(&self) -> [Vec<Forward>; 2] {
        [&self.tcp_ports, &self.udp_ports].map(|list| match &list[..] {
            [] => vec![Forward::auto()],
            given => given.to_vec(),
        })
    }

    /// The router of this family that is given.
    pub(super) fn router<A>(&self, family: impl Fn(&IpAddr) -> Option<A>) -> Option<A> {
        self.gateway.iter().find_map(family)
    }
}

pub(super) fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

pub(super) fn v6(ip: &IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::opener::Listen;
    use super::*;

    fn parse(args: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("pasta").chain(args.split_whitespace()))
    }

    #[test]
    fn what_real_callers_pass() {
        let podman = "--config-net -a 10.95.0.2 -n 24 -g 10.95.0.1 -m 1400 -t 127.0.0.1/8085-8085:80-80 -u 5355-5355:53-53 \
                      --dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet --netns /run/user/1/netns/n \
                      --map-guest-addr 169.254.1.2";
        let o = parse(podman).unwrap();
        assert_eq!((o.mtu, o.netmask, o.quiet), (1400, Some(24), true));
        assert!(matches!(&o.forwards()[0][..], [Forward::Listed(l)] if l.len() == 1));
        let kit = "--foreground --stderr --ns-ifname=tap0 --mtu=1500 --no-dhcp --no-ra --address=10.0.2.100 --netmask=24 \
                   --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=auto 42";
        let o = parse(kit).unwrap();
        assert_eq!(
            (o.process(), o.foreground, o.ipv4_only),
            (Some(42), true, true)
        );
        assert_eq!(o.forwards(), [vec![Forward::auto()], vec![Forward::auto()]]);
        let net = "--config-net --pid /run/p --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns /n";
        assert_eq!(
            parse(net).unwrap().forwards(),
            [vec![Forward::None], vec![Forward::None]]
        );
    }

    #[test]
    fn what_is_run() {
        let words = |args: &str| parse(args).unwrap().to_run().map(<[String]>::to_vec);
        assert_eq!(words("42"), None);
        assert_eq!(words("--netns /n"), None);
        assert_eq!(words("-4"), Some(Vec::new()));
        assert_eq!(words("-4 sleep -x 5").unwrap(), ["sleep", "-x", "5"]);
        assert_eq!(words("-- curl -s 42").unwrap(), ["curl", "-s", "42"]);
        let to_host = |args: &str| parse(args).unwrap().to_host();
        let leads = |from: &str, to: &str| Lead {
            from: Listen {
                kind: Kind::Tcp,
                at: from.parse().unwrap(),
                on: None,
            },
            to: to.parse().unwrap(),
        };
        let both = [
            leads("127.0.0.1:80", "127.0.0.1:81"),
            leads("[::1]:80", "[::1]:81"),
        ];
        assert_eq!(to_host("-T 80:81 42"), both);
        assert_eq!(to_host("-T ::1/80:81 42"), both[1..]);
        assert_eq!(to_host("-T 80-89,~81-89 -T none 42").len(), 2);
        let udp = to_host("-U 192.0.2.7%lo/53 42");
        assert_eq!((udp.len(), udp[0].from.kind), (1, Kind::Udp));
        assert_eq!(udp[0].from.at, "192.0.2.7:53".parse().unwrap());
        assert_eq!(udp[0].to, "127.0.0.1:53".parse().unwrap());
        let o = parse("-T auto -U ~53 42").unwrap();
        assert_eq!((o.to_host().len(), o.followed_to_host().len()), (0, 2));
    }

    #[test]
    fn mistakes_are_told() {
        command().debug_assert();
        let text = |args: &str| parse(args).unwrap_err().to_string();
        assert!(text("--no-map-gv 42").contains("--no-map-gw"));
        assert!(text("-t 80:x 42").contains("isn't a port"));
        assert!(text("-n 255.0.255.0 42").contains("255.255.255.0"));
        assert!(text("-a nowhere 42").contains("10.0.2.100"));
        assert_eq!((netmask("255.255.255.0"), netmask("32")), (Ok(24), Ok(32)));
        assert!(netmask("0.0.0.0").is_err() && netmask("33").is_err());
        let list = ["192.0.2.1", "none", "192.0.2.2"].map(|t| t.parse().unwrap());
        assert_eq!(Maybe::all(&list), [IpAddr::from([192, 0, 2, 2])]);
    }
}
