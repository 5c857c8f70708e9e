//! Printing: plain aligned tables for people, JSON for programs.

use super::{CtlError, Done};
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// Prints text; a reader that has gone (`| head`) ends the command quietly.
pub(super) fn print(text: &str) -> Done {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    done.map_err(|source| match source.kind() {
        io::ErrorKind::BrokenPipe => CtlError::Closed,
        _ => CtlError::Io {
            act: "writing to",
            thing: "standard output".into(),
            source,
            remedy: "is its disk full?",
        },
    })
}

/// Prints a value as JSON.
pub(super) fn json(value: &impl Serialize) -> Done {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    print(&(text + "\n"))
}

/// Tells people what to mind.
pub(super) fn warn(warnings: &[String]) {
    for w in warnings {
        eprintln!("vswitchctl: warning: {w}");
    }
}

/// Prints rows under a head; nothing but `empty` if there are none.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>, empty: &str) -> Done {
    print(&aligned(head, rows, empty))
}

/// Rows under a head, as text.
pub(crate) fn aligned(head: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return format!("{empty}\n");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter().copied());
    table.add_rows(rows);
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}

/// A number with a unit of thousands.
pub(super) fn scaled(n: f64) -> String {
    for (factor, unit) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if n >= factor {
            return format!("{:.1}{unit}", n / factor);
        }
    }
    format!("{n:.0}")
}
