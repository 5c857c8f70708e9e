//! Who may use the API, and what it refuses.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::unistd::geteuid;
use vswitch_tests::{lab, skip};

/// Bytes as they are, and the status of the answer.
fn raw(socket: &std::path::Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // The daemon may answer and close before all is written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn another_user_is_refused() {
    let lab = lab!("ctl-access");
    if !geteuid().is_root() {
        skip!("only root can become another user");
    }
    let d = lab.daemon();
    let socket = d.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may even connect");
    // Past the mode, it is SO_PEERCRED that counts.
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(socket.parent().unwrap(), 0o755);
    open(&socket, 0o666);
    let path = socket.to_str().unwrap();
    let curl = [
        "curl",
        "-s",
        "--unix-socket",
        path,
        "http://vswitchd/v1/ports",
    ];
    let other = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let answer = d.host().ok(&[&other[..], &curl[..]].concat());
    assert!(answer.contains("uid 65534"), "{answer}");
    let answer = d.host().ok(&curl);
    assert_eq!(answer.trim(), "[]", "root is served");
}

#[test]
fn wrong_requests_are_refused_and_harm_nobody() {
    let lab = lab!("ctl-wrong");
    let d = lab.daemon();
    let status = |method: &str, path: &str, body| d.http(method, path, body).status;
    let wrong = serde_json::json!({"agein": "1s"});
    assert_eq!(status("POST", "/v1/networks/lan", Some(&wrong)), 400);
    assert_eq!(status("GET", "/v1/nothing", None), 404);
    assert_eq!(status("DELETE", "/v1/ports", None), 400);
    assert_eq!(status("GET", "/v1/networks/lan/fdb", None), 404);
    assert_eq!(status("POST", "/v1/networks/a%20b", None), 400);
    let socket = d.socket();
    let large = format!(
        "PUT /v1/topology HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
        5 << 20,
        " ".repeat(5 << 20)
    );
    assert!(raw(&socket, large.as_bytes()).starts_with("HTTP/1.1 413"));
    let head = format!("GET /v1/ HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert!(raw(&socket, head.as_bytes()).starts_with("HTTP/1.1 431"));
    assert!(raw(&socket, b"SSH-2.0-x\r\n\r\n").starts_with("HTTP/1.1 400"));
    // More connections than are served at once: all get their turn.
    let idle: Vec<UnixStream> = (0..100)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert_eq!(status("GET", "/v1/", None), 200);
    drop(idle);
    let answer = d.http("GET", "/v1/nothing", None).json();
    for key in ["act", "thing", "reason", "remedy"] {
        assert!(
            answer["error"][key].as_str().is_some_and(|t| !t.is_empty()),
            "{answer}"
        );
    }
    let document = d.http("GET", "/v1/openapi.json", None).json();
    assert_eq!(document["info"]["title"], "vswitchd");
}

#[test]
fn metrics_are_openmetrics_text_and_on_loopback_only() {
    let lab = lab!("ctl-metrics");
    let d = lab.daemon_with().args(&["--metrics", "127.0.0.1:9100"]);
    d.host().ok(&["ip", "link", "set", "lo", "up"]);
    let d = d.start();
    d.ctl(&["network", "add", "lan"]);
    let text = d
        .host()
        .ok(&["curl", "-s", "http://127.0.0.1:9100/metrics"]);
    assert!(
        text.contains("vswitch_fdb_entries{network=\"lan\"} 0"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(
            name.starts_with("vswitch_") && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }
    assert_eq!(d.http("GET", "/metrics", None).body, text);
    let other = d
        .host()
        .run(&["curl", "-s", "http://127.0.0.1:9100/v1/topology"]);
    assert!(
        other.stdout.contains("no such path"),
        "metrics alone: {other}"
    );
    drop(d);
    let mut refused = lab
        .daemon_with()
        .args(&["--metrics", "192.0.2.1:9100"])
        .launch();
    let (code, log) = refused.wait_end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("127.0.0.1:PORT"), "{log}");
}
