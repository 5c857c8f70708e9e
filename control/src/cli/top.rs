//! `vswitchctl top`: a live, full-screen view.

use super::{CtlError, Done, Session, show, stats};
use crate::plane::{NetworkView, PortStats, Rates, Stats};
use clap::ValueEnum;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Paragraph, Row, Table};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    Drops,
    Name,
    Rx,
    Tx,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: d, n, r, t sort by drops, name, received, sent; q ends.")]
pub(super) struct Top {
    /// Seconds between two readings.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    interval: f64,
    /// What to sort by.
    #[arg(long, value_enum, default_value = "rx")]
    sort: Sort,
}

/// A reading, and the rates since the one before.
#[derive(Debug, Default)]
struct Reading {
    at: Option<Instant>,
    stats: Stats,
    rates: HashMap<String, Rates>,
    fdb: usize,
}

impl Reading {
    fn after(before: &Reading, stats: Stats, networks: &[NetworkView]) -> Reading {
        let now = Instant::now();
        let old: HashMap<&str, &PortStats> = before
            .stats
            .ports
            .iter()
            .map(|p| (p.name.as_str(), p))
            .collect();
        let mut rates = HashMap::new();
        if let Some(at) = before.at {
            let seconds = now.duration_since(at).as_secs_f64();
            for p in &stats.ports {
                if let Some(o) = old.get(p.name.as_str()) {
                    rates.insert(p.name.clone(), p.rates(o, seconds));
                }
            }
        }
        Reading {
            at: Some(now),
            stats,
            rates,
            fdb: networks.iter().map(|n| n.fdb_entries).sum(),
        }
    }

    fn of(&self, p: &PortStats) -> Rates {
        self.rates.get(&p.name).copied().unwrap_or_default()
    }

    fn sorted(&self, sort: Sort) -> Vec<&PortStats> {
        let mut ports: Vec<&PortStats> = self.stats.ports.iter().collect();
        let by = |f: fn(&Rates) -> f64| {
            move |a: &&PortStats, b: &&PortStats| f(&self.of(b)).total_cmp(&f(&self.of(a)))
        };
        match sort {
            Sort::Name => {}
            Sort::Rx => ports.sort_by(by(|r| r.rx_bits)),
            Sort::Tx => ports.sort_by(by(|r| r.tx_bits)),
            Sort::Drops => ports.sort_by(by(|r| r.drops)),
        }
        ports
    }
}

async fn read(s: &Session, before: &Reading) -> Result<Reading, CtlError> {
    let networks: Vec<NetworkView> = s.client.get("/v1/networks").await?;
    let stats: Stats = s.client.get("/v1/stats").await?;
    Ok(Reading::after(before, stats, &networks))
}

pub(super) async fn run(s: &Session, command: &Top) -> Done {
    if !(0.1..=3600.0).contains(&command.interval) {
        return Err(CtlError::Usage {
            act: "showing",
            thing: "top".into(),
            reason: format!("an interval of {} s can't be", command.interval),
            remedy: "use 0.1 to 3600",
        });
    }
    if !std::io::stdout().is_terminal() {
        return Err(CtlError::Usage {
            act: "showing",
            thing: "top".into(),
            reason: "standard output is no terminal".into(),
            remedy: "use `vswitchctl stats --json` in programs",
        });
    }
    let mut reading = read(s, &Reading::default()).await?;
    let mut terminal = ratatui::init();
    let done = watch(s, command, &mut terminal, &mut reading).await;
    ratatui::restore();
    done
}

async fn watch(
    s: &Session,
    command: &Top,
    terminal: &mut ratatui::DefaultTerminal,
    reading: &mut Reading,
) -> Done {
    let io = |source| CtlError::Io {
        act: "drawing on",
        thing: "the terminal".into(),
        source,
        remedy: "use `vswitchctl stats`",
    };
    let mut sort = command.sort;
    let interval = Duration::from_secs_f64(command.interval);
    loop {
        terminal.draw(|f| draw(f, reading, sort)).map_err(io)?;
        let due = reading.at.map_or_else(Instant::now, |t| t + interval);
        if event::poll(due.saturating_duration_since(Instant::now())).map_err(io)? {
            let Event::Key(key) = event::read().map_err(io)? else {
                continue;
            };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            match key.code {
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('d') => sort = Sort::Drops,
                KeyCode::Char('n') => sort = Sort::Name,
                KeyCode::Char('r') => sort = Sort::Rx,
                KeyCode::Char('t') => sort = Sort::Tx,
                _ => {}
            }
        } else {
            *reading = read(s, reading).await?;
        }
    }
}

fn draw(frame: &mut Frame<'_>, reading: &Reading, sort: Sort) {
    let areas = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .split(frame.area());
    let t = &reading.stats.totals;
    let head = format!(
        "{} ports, {} FDB entries\nreceived {}  sent {}  dropped {}  held {}",
        reading.stats.ports.len(),
        reading.fdb,
        t.received,
        t.sent,
        t.dropped,
        t.held
    );
    frame.render_widget(Paragraph::new(head), areas[0]);
    let rows = reading.sorted(sort).into_iter().map(|p| {
        let r = reading.of(p);
        Row::new([
            p.name.clone(),
            p.network.clone(),
            format!("{}pps", show::scaled(r.rx_frames)),
            format!("{}bit/s", show::scaled(r.rx_bits)),
            format!("{}pps", show::scaled(r.tx_frames)),
            format!("{}bit/s", show::scaled(r.tx_bits)),
            show::scaled(r.drops),
            stats::drops(p),
        ])
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Min(10),
    ];
    let titles = [
        "PORT", "NETWORK", "RX", "RX RATE", "TX", "TX RATE", "DROPS/s", "DROPS",
    ];
    let bold = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(rows, widths).header(Row::new(titles).style(bold));
    frame.render_widget(table, areas[1]);
    let keys = "sort: d drops, n name, r received, t sent    q ends";
    frame.render_widget(Paragraph::new(keys), areas[2]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn rates_and_order_are_drawn() {
        let port = |name: &str, rx: u64| PortStats {
            name: name.into(),
            rx_frames: rx,
            rx_bytes: rx * 1000,
            ..PortStats::default()
        };
        let stats = |a, b| Stats {
            ports: vec![port("quiet", a), port("busy", b)],
            ..Stats::default()
        };
        let first = Reading {
            at: Some(Instant::now() - Duration::from_secs(1)),
            stats: stats(0, 0),
            ..Reading::default()
        };
        let second = Reading::after(&first, stats(10, 5000), &[]);
        let mut terminal = Terminal::new(TestBackend::new(110, 8)).unwrap();
        terminal.draw(|f| draw(f, &second, Sort::Rx)).unwrap();
        let text = terminal.backend().to_string();
        let at = |t: &str| text.find(t).unwrap_or_else(|| panic!("no {t} in {text}"));
        assert!(at("busy") < at("quiet"), "{text}");
        assert!(text.contains("Mbit/s"), "{text}");
        terminal.draw(|f| draw(f, &second, Sort::Name)).unwrap();
        let text = terminal.backend().to_string();
        assert!(text.find("quiet").unwrap() < text.find("busy").unwrap());
    }
}
