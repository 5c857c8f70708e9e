//! The order of the show: reachability, FDB, transfer, round trips, ledger.

use super::container::Container;
use super::place::Place;
use super::screen::{Ink, Screen, tenths};
use super::signals::Signals;
use super::talk::{Reply, Request};
use super::{DemoError, NETWORK, address, address6};
use crate::cli::table;
use crate::daemon::Daemon;
use crate::plane::FdbView;
use hdrhistogram::Histogram;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// How long the transfer and the round trips take.
const LOAD: Duration = Duration::from_millis(2000);
/// Time over it that an agent may need for an answer.
const SLACK: Duration = Duration::from_secs(4);
/// Echo requests from each to each.
const PINGS: u16 = 5;

#[derive(Debug)]
pub(super) struct Show<'a> {
    pub(super) screen: &'a Screen,
    pub(super) signals: &'a Signals,
    pub(super) containers: &'a mut [Container],
    pub(super) daemon: &'a Daemon,
    pub(super) with_v6: bool,
}

fn failed(e: &crate::refusal::Refusal) -> DemoError {
    DemoError::failed(
        format!("{} {}", e.act, e.thing),
        &e.reason,
        "try again; if it stays so, it is a fault of vswitchd",
    )
}

impl Show<'_> {
    pub(super) fn run(&mut self) -> Result<(), DemoError> {
        self.introduce()?;
        let v4 = self.matrix()?;
        self.fdb()?;
        self.transfer()?;
        self.round_trips()?;
        let v6 = self.with_v6.then(|| self.reached(address6)).transpose()?;
        self.close(v6.as_deref())?;
        let all = |m: &[Vec<Option<u64>>]| m.iter().flatten().all(Option::is_some);
        if all(&v4) && v6.is_none_or(|m| all(&m)) {
            return Ok(());
        }
        Err(DemoError::failed(
            "reaching every container from every other",
            "some had no answer",
            "run it again; if it stays so, it is a fault of vswitchd",
        ))
    }

    fn introduce(&self) -> Result<(), DemoError> {
        let s = self.screen;
        let mut text = s.ink(
            Ink::Head,
            "A switch and three containers, each in namespaces of its own",
        );
        text += "\n";
        for (number, c) in (1..).zip(self.containers.iter()) {
            let v6 = if self.with_v6 {
                format!("  {}", address6(number))
            } else {
                String::new()
            };
            let pid = s.ink(Ink::Dim, &format!("  process {}", c.pid()));
            text += &format!("  {:>8}  {}{v6}{pid}\n", c.name(), address(number));
        }
        s.say(&text)
    }

    /// Round trips from each to each.
    fn reached(
        &mut self,
        address: impl Fn(u8) -> IpAddr,
    ) -> Result<Vec<Vec<Option<u64>>>, DemoError> {
        let mut rows = Vec::new();
        let count = u8::try_from(self.containers.len()).unwrap_or(0);
        for from in self.containers.iter_mut() {
            let mut row = Vec::new();
            for number in 1..=count {
                let to = address(number);
                let request = Request::Ping { to, count: PINGS };
                match from.ask(&request, self.signals, SLACK)? {
                    Reply::Pinged { trips } => row.push(median(trips)),
                    other => return Err(from.unexpected(other)),
                }
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn matrix(&mut self) -> Result<Vec<Vec<Option<u64>>>, DemoError> {
        let s = *self.screen;
        s.say(&s.title("Ping", "from each to each, median of 5"))?;
        let trips = self.reached(address)?;
        let names: Vec<&str> = self.containers.iter().map(Container::name).collect();
        s.say(&s.matrix(&names, &trips))?;
        Ok(trips)
    }

    fn fdb(&self) -> Result<(), DemoError> {
        let s = self.screen;
        let plane = crate::api::lock(self.daemon.plane());
        let entries = plane.fdb(NETWORK).map_err(|e| failed(&e))?;
        drop(plane);
        let rows = entries.iter().map(FdbView::row).collect();
        let table = table(&FdbView::HEAD, rows, "nothing learned");
        let lines: String = table.lines().map(|l| format!("  {l}\n")).collect();
        s.say(&(s.title("FDB", "what the switch has learned from it") + &lines))
    }

    fn transfer(&mut self) -> Result<(), DemoError> {
        let s = *self.screen;
        let [from, to, ..] = &mut *self.containers else {
            return Ok(());
        };
        let title = format!("{} -> {}, one connection", from.name(), to.name());
        s.say(&s.title("TCP", &title))?;
        let request = Request::Send {
            to: address(2),
            millis: LOAD.as_millis() as u64,
        };
        match from.ask(&request, self.signals, LOAD + SLACK)? {
            Reply::Sent {
                bytes,
                nanos,
                tenths,
            } => {
                let rate = bytes as f64 * 8.0 / nanos.max(1) as f64;
                let rate = s.ink(Ink::Good, &format!("{rate:.2} Gbit/s"));
                let told = format!(
                    "  {rate}  {}  {:.2} GB in {:.1} s\n",
                    s.sparks(&tenths),
                    bytes as f64 / 1e9,
                    nanos as f64 / 1e9
                );
                s.say(&told)
            }
            other => Err(from.unexpected(other)),
        }
    }

    fn round_trips(&mut self) -> Result<(), DemoError> {
        let s = *self.screen;
        let [from, _, to] = &mut *self.containers else {
            return Ok(());
        };
        let title = format!("{} -> {}, 64-byte UDP round trips", from.name(), to.name());
        s.say(&s.title("Latency", &title))?;
        let request = Request::Measure {
            to: address(3),
            millis: LOAD.as_millis() as u64,
        };
        let (counts, lost) = match from.ask(&request, self.signals, LOAD + SLACK)? {
            Reply::Measured { counts, lost } => (counts, lost),
            other => return Err(from.unexpected(other)),
        };
        let act = "making a histogram";
        let mut times =
            Histogram::<u64>::new(3).map_err(|e| DemoError::failed(act, e, "try again"))?;
        for (nanos, count) in counts {
            times
                .record_n(nanos, count)
                .map_err(|e| DemoError::failed(act, e, "try again"))?;
        }
        let at = |q: f64| tenths(times.value_at_quantile(q));
        let summary = format!(
            "  {} round trips, {lost} lost: p50 {} us, p90 {} us, p99 {} us, p99.9 {} us\n",
            times.len(),
            s.ink(Ink::Good, &at(0.5)),
            at(0.9),
            s.ink(Ink::Good, &at(0.99)),
            at(0.999)
        );
        s.say(&(s.histogram(&times) + &summary))
    }

    fn close(&self, v6: Option<&[Vec<Option<u64>>]>) -> Result<(), DemoError> {
        let s = self.screen;
        let t = crate::api::lock(self.daemon.plane()).stats().totals;
        let mut text = s.title("Ledger", "every frame is accounted for");
        text += &format!("  {t}\n");
        if let Some(m) = v6 {
            let reached = m.iter().flatten().filter(|t| t.is_some()).count();
            let all = m.iter().map(Vec::len).sum::<usize>();
            text += &format!("  IPv6 pings, from each to each: {reached} of {all} answered\n");
        }
        s.say(&text)
    }
}

/// The median of what wasn't lost.
fn median(trips: Vec<Option<u64>>) -> Option<u64> {
    let mut trips: Vec<u64> = trips.into_iter().flatten().collect();
    trips.sort_unstable();
    trips.get(trips.len() / 2).copied()
}

/// How vswitchctl is run from where the user is.
fn vswitchctl() -> String {
    let beside = std::env::current_exe().map(|e| e.with_file_name("vswitchctl"));
    match beside {
        Ok(path) if path.exists() => {
            let here = std::env::current_dir().unwrap_or_default();
            match path.strip_prefix(here) {
                Ok(short) => shell(&Path::new(".").join(short)),
                Err(_) => shell(&path),
            }
        }
        _ if std::env::var_os("CARGO").is_some() => {
            "cargo run -q --release --bin vswitchctl --".into()
        }
        _ => "vswitchctl".into(),
    }
}

/// Commands for another terminal, and how it ends.
pub(super) fn commands(
    s: &Screen,
    place: &Place,
    containers: &[Container],
) -> Result<(), DemoError> {
    let [first, second, ..] = containers else {
        return Ok(());
    };
    let ctl = format!("{} --socket {}", vswitchctl(), shell(&place.socket()));
    let into = format!("nsenter -t {} {}", first.pid(), place.nsenter_options());
    let peer = if first.knows_names() {
        second.name().to_owned()
    } else {
        address(2).to_string()
    };
    let mut text = s.title("It stays up.", "Try in another terminal:");
    for command in [
        format!("{ctl} port show"),
        format!("{ctl} fdb show {NETWORK}"),
        format!("{ctl} stats"),
        format!("{ctl} top"),
        format!("{ctl} port set {} --egress-rate 100mbit", second.name()),
        format!("{into} ping -c 3 {peer}"),
        format!("{into} ip address"),
        format!("{into} sh"),
    ] {
        text += &format!("  {}\n", s.ink(Ink::Bar, &command));
    }
    s.say(&(text + "\nCtrl-C here ends it and removes everything.\n"))
}

/// A path as one word of a shell.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
