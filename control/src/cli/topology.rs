//! `vswitchctl apply`, `diff` and `export`.

use super::{CtlError, Done, Session, show};
use crate::model::{Change, Topology, from_toml, to_toml};
use std::io::{self, Read};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct File {
    /// Topology in TOML; - reads standard input.
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    #[command(flatten)]
    file: File,
    /// Only check and show what would change.
    #[arg(long)]
    dry_run: bool,
}

fn read(file: &File) -> Result<Topology, CtlError> {
    let path = &file.file;
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| CtlError::Io {
        act: "reading",
        thing: path.display().to_string(),
        source,
        remedy: "name a topology file; `vswitchctl export` writes one",
    })?;
    Ok(from_toml(path, &text)?)
}

async fn put(s: &Session, file: &File, dry_run: bool) -> Done {
    let topology = read(file)?;
    let body = serde_json::to_value(&topology).unwrap_or_default();
    let path = format!("/v1/topology?dry_run={dry_run}");
    let answer = s.client.call("PUT", &path, Some(&body)).await?;
    if s.json {
        return show::json(&answer);
    }
    let changes: Vec<Change> = serde_json::from_value(answer).unwrap_or_default();
    if changes.is_empty() {
        return show::print("no changes\n");
    }
    let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
    show::print(&(lines.join("\n") + "\n"))
}

pub(super) async fn apply(s: &Session, command: &Apply) -> Done {
    put(s, &command.file, command.dry_run).await
}

pub(super) async fn show_diff(s: &Session, file: &File) -> Done {
    put(s, file, true).await
}

pub(super) async fn export(s: &Session) -> Done {
    let topology: Topology = s.client.get("/v1/topology").await?;
    if s.json {
        return show::json(&topology);
    }
    show::print(&to_toml(&topology))
}
