//! Logs on stderr: text for people (coloured on a terminal only) or JSON lines for programs.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text.
    #[default]
    Text,
}

/// Starts logging. `verbosity` 0 is info, 1 debug, 2 and more trace; `VSWITCH_LOG` overrules it.
pub fn start(format: LogFormat, verbosity: u8) {
    start_at(
        format,
        ["info", "debug", "trace"][usize::from(verbosity.min(2))],
    );
}

/// Starts logging as text from this level on; `VSWITCH_LOG` overrules it.
pub(crate) fn start_at(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_env("VSWITCH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // Only fails if somebody has started one before, which then serves as well.
    let _ = match format {
        LogFormat::Json => base.json().try_init(),
        LogFormat::Text => base
            .with_ansi(std::io::stderr().is_terminal())
            .without_time()
            .try_init(),
    };
}
