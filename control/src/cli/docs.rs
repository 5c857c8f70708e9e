//! `vswitchctl completions` and `man`: documents made of the command line's own definition.

use super::{CtlError, Done, show};
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Directory for the pages, one per command.
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

pub(super) fn completions(c: &Completions) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(c.shell, &mut super::command(), "vswitchctl", &mut script);
    show::print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(c: &Man) -> Done {
    let written = std::fs::create_dir_all(&c.dir)
        .and_then(|()| clap_mangen::generate_to(super::command(), &c.dir))
        .and_then(|()| clap_mangen::generate_to(crate::daemon_cli::command(), &c.dir));
    written.map_err(|source| CtlError::Io {
        act: "writing man pages to",
        thing: c.dir.display().to_string(),
        source,
        remedy: "name a directory that can be written",
    })
}
