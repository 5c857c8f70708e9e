//! `vswitchctl capture`: frames to a file, to Wireshark, or as lines of text.

pub(super) mod summary;

use super::{CtlError, Done, Session, show};
use crate::api::ID_HEADER;
use crate::client::{ClientError, escape};
use crate::pcapng::{Block, Blocks};
use crate::plane::CaptureView;
use clap::ValueEnum;
use http_body_util::BodyExt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

const AFTER_HELP: &str = "\
Without -w, frames are printed as text on a terminal, and written as pcapng to a pipe. Ctrl-C ends the capture; the file is whole.

Filters, as tcpdump's: arp, ip, ip6, tcp, udp, icmp, icmp6, sctp, vlan [N], broadcast, multicast, less N, greater N,
[src|dst] host ADDRESS, net PREFIX, port N, portrange N-M, ether host MAC, ether proto 0xNNNN, ip proto N;
tcp, udp, sctp before port; ip, ip6, arp before host and net; joined by and, or, not and ( ).
VLAN tags don't hide what is behind them: `arp` finds tagged ARP too.

Examples:
  vswitchctl capture web
  vswitchctl capture web db -w trace.pcapng -f 'tcp port 5432 and not host 192.0.2.9'
  vswitchctl capture web -w - | wireshark -k -i -
  vswitchctl capture --drops=only";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    Both,
    Egress,
    Ingress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Drops {
    #[value(name = "true", alias = "yes")]
    Also,
    Only,
}

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, next_display_order = None)]
pub(super) struct Capture {
    /// Ports to look at; all, if none is named.
    ports: Vec<String>,
    /// End after this many frames.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Frames the switch receives (ingress) or sends (egress).
    #[arg(long, value_enum, default_value = "both")]
    direction: Way,
    /// Show dropped frames too, with the reason; `--drops=only` shows nothing else.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    drops: Option<Drops>,
    /// End a capture that runs; --list tells its number.
    #[arg(long, value_name = "ID", conflicts_with_all = ["list", "ports", "count", "drops", "filter", "seconds", "snaplen", "write"])]
    end: Option<u32>,
    /// Only frames that pass this filter.
    #[arg(long, short, value_name = "FILTER")]
    filter: Option<String>,
    /// List the captures that run, of all clients.
    #[arg(long, conflicts_with_all = ["ports", "count", "drops", "filter", "seconds", "snaplen", "write"])]
    list: bool,
    /// End after this many seconds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Keep only this many bytes of each frame.
    #[arg(long, short, value_name = "BYTES")]
    snaplen: Option<u32>,
    /// Write pcapng to this file; - is standard output.
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl Capture {
    fn path(&self) -> String {
        let mut query: Vec<(&str, String)> = Vec::new();
        query.extend(self.ports.iter().map(|p| ("port", p.clone())));
        let way = match self.direction {
            Way::Both => "both",
            Way::Egress => "egress",
            Way::Ingress => "ingress",
        };
        query.push(("direction", way.into()));
        if let Some(drops) = self.drops {
            let drops = match drops {
                Drops::Also => "true",
                Drops::Only => "only",
            };
            query.push(("drops", drops.into()));
        }
        if let Some(filter) = &self.filter {
            query.push(("filter", filter.clone()));
        }
        let numbers = [
            ("snaplen", self.snaplen.map(u64::from)),
            ("count", self.count),
            ("seconds", self.seconds),
        ];
        query.extend(
            numbers
                .iter()
                .filter_map(|(k, n)| Some((*k, n.as_ref()?.to_string()))),
        );
        let parts: Vec<String> = query
            .iter()
            .map(|(k, v)| format!("{k}={}", escape(v)))
            .collect();
        format!("/v1/capture?{}", parts.join("&"))
    }
}

/// Where frames go.
enum Sink {
    /// pcapng, into what this text names.
    File(Box<dyn Write>, String),
    Text,
    Json,
}

impl Sink {
    /// Opened only when the capture has begun: a refused one leaves files alone.
    fn open(c: &Capture, json: bool) -> Result<Sink, CtlError> {
        let stdout = || Sink::File(Box::new(io::stdout()), "standard output".into());
        match &c.write {
            Some(path) if path == Path::new("-") => Ok(stdout()),
            Some(path) => {
                let file = File::create(path).map_err(|source| CtlError::Io {
                    act: "opening",
                    thing: path.display().to_string(),
                    source,
                    remedy: "name a file that can be written",
                })?;
                Ok(Sink::File(Box::new(file), path.display().to_string()))
            }
            None if json => Ok(Sink::Json),
            None if io::stdout().is_terminal() => Ok(Sink::Text),
            None => Ok(stdout()),
        }
    }
}

/// What has come so far.
#[derive(Debug, Default)]
struct Progress {
    interfaces: Vec<String>,
    frames: u64,
    lost: u64,
    /// The statistics have come, which are the end.
    concluded: bool,
}

pub(super) async fn run(s: &Session, c: Capture) -> Done {
    if let Some(id) = c.end {
        let path = format!("/v1/captures/{id}");
        s.client.call("DELETE", &path, None).await?;
        return Ok(());
    }
    if c.list {
        return list(s).await;
    }
    let to_stdout = c.write.as_deref() == Some(Path::new("-"));
    if to_stdout && io::stdout().is_terminal() {
        return Err(CtlError::Usage {
            act: "capturing to",
            thing: "standard output".into(),
            reason: "it is a terminal, and pcapng isn't text".into(),
            remedy: "leave -w away, or pipe it: vswitchctl capture -w - | wireshark -k -i -",
        });
    }
    let answer = s.client.open("GET", &c.path(), None).await?;
    let id = answer.headers().get(ID_HEADER);
    let id = id
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut sink = Sink::open(&c, s.json)?;
    let mut progress = Progress::default();
    let done = follow(s, answer.into_body(), &id, &mut sink, &mut progress).await;
    if !matches!(done, Err(CtlError::Closed)) {
        let Progress { frames, lost, .. } = progress;
        eprintln!("{frames} frames captured, {lost} lost");
    }
    done
}

async fn list(s: &Session) -> Done {
    let all: Vec<CaptureView> = s.client.get("/v1/captures").await?;
    if s.json {
        return show::json(&all);
    }
    let row = |c: &CaptureView| {
        let ports = if c.ports.is_empty() {
            "all".to_owned()
        } else {
            c.ports.join(",")
        };
        let counts = [c.seen, c.passed, c.lost].map(|n| n.to_string());
        let mut cells = vec![c.id.to_string(), ports];
        cells.push(c.filter.clone().unwrap_or_else(|| "-".into()));
        cells.extend(counts);
        cells
    };
    let rows = all.iter().map(row).collect();
    let head = ["ID", "PORTS", "FILTER", "SEEN", "PASSED", "LOST"];
    show::table(&head, rows, "no captures")
}

async fn follow(
    s: &Session,
    mut body: hyper::body::Incoming,
    id: &str,
    sink: &mut Sink,
    progress: &mut Progress,
) -> Done {
    let system = |source| CtlError::Io {
        act: "waiting for",
        thing: "signals".into(),
        source,
        remedy: "use --seconds",
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let (mut blocks, mut asked) = (Blocks::default(), false);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        let Some(frame) = frame else {
            if asked || progress.concluded {
                break;
            }
            // A signal: the daemon ends the stream with what it has. If the stream has ended by itself there's no such
            // capture any more, and the next read says so.
            asked = true;
            let path = format!("/v1/captures/{}", escape(id));
            let _ = s.client.call("DELETE", &path, None).await;
            continue;
        };
        let frame = frame.map_err(|e| ClientError::Broken(e.to_string()))?;
        blocks.push(frame.data_ref().map_or(&[][..], |d| d));
        sink.take(&mut blocks, progress)?;
    }
    if progress.concluded && blocks.is_empty() {
        return Ok(());
    }
    Err(CtlError::Client(ClientError::Broken(
        "the capture was cut off".into(),
    )))
}

impl Sink {
    /// Hands on all whole blocks.
    fn take(&mut self, blocks: &mut Blocks, progress: &mut Progress) -> Done {
        let mut out = Vec::new();
        loop {
            let next = blocks.next_block();
            let Some((block, raw)) = next.map_err(|e| ClientError::Broken(e.to_string()))? else {
                break;
            };
            if matches!(self, Sink::File(..)) {
                out.extend_from_slice(raw);
            }
            match block {
                Block::Interface(name) => progress.interfaces.push(name),
                Block::Packet { .. } => {
                    progress.frames += 1;
                    let line = match self {
                        Sink::File(..) => continue,
                        Sink::Text => summary::line(&block, &progress.interfaces),
                        Sink::Json => summary::json(&block, &progress.interfaces),
                    };
                    out.extend_from_slice(line.as_bytes());
                }
                Block::Statistics(_, counts) => {
                    progress.lost += counts.lost;
                    progress.concluded = true;
                }
                Block::Other => {}
            }
        }
        if out.is_empty() {
            return Ok(());
        }
        let Sink::File(file, name) = self else {
            return show::print(&String::from_utf8_lossy(&out));
        };
        let written = file.write_all(&out).and_then(|()| file.flush());
        written.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => CtlError::Closed,
            _ => CtlError::Io {
                act: "writing to",
                thing: name.clone(),
                source,
                remedy: "is its disk full?",
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        capture: Capture,
    }

    #[test]
    fn options_become_a_query() {
        let of = |args: &[&str]| {
            let line = Line::try_parse_from([&["capture"], args].concat()).unwrap();
            line.capture.path()
        };
        assert_eq!(of(&[]), "/v1/capture?direction=both");
        assert_eq!(
            of(&["web", "d b", "-f", "port 1&2", "--drops", "-s", "96"]),
            "/v1/capture?port=web&port=d%20b&direction=both&drops=true&filter=port%201%262&snaplen=96"
        );
        assert_eq!(
            of(&[
                "--drops=only",
                "--direction",
                "egress",
                "-c",
                "3",
                "-w",
                "-"
            ]),
            "/v1/capture?direction=egress&drops=only&count=3"
        );
        assert!(Line::try_parse_from(["capture", "--count", "0"]).is_err());
    }
}
