//! `vswitchctl instances`: the switches of single containers that have a control socket in the user's directory.

use super::{Done, Session, show};
use crate::client::Client;
use crate::integrations::control;
use crate::plane::{Info, PublishedView};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A switch that answers.
#[derive(Debug, Serialize)]
struct Instance {
    socket: PathBuf,
    program: String,
    container: Option<String>,
    pid: u32,
    publish: Vec<PublishedView>,
}

/// The program and the container that a socket is named after, as in `pasta-web-4711.sock`.
fn named(path: &Path) -> Option<(String, Option<String>)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".sock")?;
    let (rest, _) = stem.rsplit_once('-')?;
    Some(match rest.split_once('-') {
        Some((program, container)) => (program.to_owned(), Some(container.to_owned())),
        None => (rest.to_owned(), None),
    })
}

async fn ask(socket: PathBuf) -> Option<Instance> {
    let (program, container) = named(&socket)?;
    let client = Client::new(&socket);
    // One that has been killed is no instance.
    let info: Info = client.get("/v1/").await.ok()?;
    Some(Instance {
        program,
        container,
        pid: info.pid,
        publish: client.get("/v1/publish").await.ok()?,
        socket,
    })
}

pub(super) async fn run(s: &Session) -> Done {
    let mut sockets = Vec::new();
    if let Some(entries) = control::directory().and_then(|d| std::fs::read_dir(d).ok()) {
        sockets.extend(entries.flatten().map(|e| e.path()));
    }
    sockets.sort();
    let mut all = Vec::new();
    for socket in sockets {
        all.extend(ask(socket).await);
    }
    if s.json {
        return show::json(&all);
    }
    let rows = all.iter().map(row).collect();
    let head = ["CONTAINER", "PROGRAM", "PID", "PUBLISHED", "SOCKET"];
    let empty = "no switches of single containers: VSWITCH_CONTROL=auto gives slirp4netns and pasta a control socket";
    show::table(&head, rows, empty)
}

fn row(i: &Instance) -> Vec<String> {
    let ports = i.publish.iter().map(|p| {
        let protocol = format!("{:?}", p.config.protocol).to_lowercase();
        format!("{}/{protocol}", p.config.ports)
    });
    vec![
        i.container.clone().unwrap_or_else(|| "-".into()),
        i.program.clone(),
        i.pid.to_string(),
        ports.collect::<Vec<_>>().join(","),
        i.socket.display().to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_tell_whose_they_are() {
        let named = |n: &str| named(Path::new(n));
        let web = Some(("pasta".to_owned(), Some("web-1".to_owned())));
        assert_eq!(named("/run/pasta-web-1-42.sock"), web);
        assert_eq!(named("slirp4netns-7.sock").map(|n| n.1), Some(None));
        assert_eq!(named("vswitch.sock"), None);
    }
}
