//! Listeners that OCI runtimes hand over.

use crate::rig::{Site, serve, site};
use serde_json::json;
use vswitch_tests::{tap_lab, wait_until};

fn socket(s: &Site) -> String {
    let socket = s.d.socket();
    format!("{}.seccomp", socket.to_str().expect("UTF-8"))
}

#[test]
fn a_listener_is_taken_up_as_runtimes_hand_it_over() {
    let lab = tap_lab!("switching-oci");
    let s = site(&lab);
    let mut server = serve(&s.outside, "7000");
    let path = socket(&s);
    let connect = "import socket; s=socket.create_connection(('198.51.100.254',7000),10); s.sendall(b'peer\\n'); print(s.recv(99).decode())";
    let command = ["/usr/bin/python3", "-c", connect];
    // By the port's name; by the namespace; and who can't be placed goes by the network all the same.
    let pid = s.a.pid();
    for (state, wanted) in [
        (
            json!({"pid": pid, "metadata": "a", "state": {"id": "c"}}),
            1,
        ),
        (json!({"pid": pid}), 2),
        (json!({"pid": pid, "metadata": "nobody"}), 2),
        (json!({"pid": s.outside.pid()}), 2),
    ] {
        let state = state.to_string();
        let mut client = s.start_plain(&[&["runtime", &path, &state], &command[..]].concat());
        client.wait_for("::ffff:198.51.100.1");
        drop(client);
        assert_eq!(s.switched(), wanted, "{state}: {}", s.counts());
    }
    assert!(s.d.log().contains("aren't switched"), "{}", s.d.log());
    assert!(server.is_running());
}

#[test]
fn crun_hands_its_listener_over() {
    let lab = tap_lab!("switching-crun");
    let s = site(&lab);
    let _server = serve(&s.outside, "7000");
    let dir = lab.dir().join("bundle");
    std::fs::create_dir_all(dir.join("rootfs")).expect("a bundle");
    let connect = "import socket; s=socket.create_connection(('198.51.100.254',7000),10); s.sendall(b'peer\\n'); print(s.recv(99).decode())";
    let bind = |at: &str| json!({"destination": at, "type": "bind", "source": at, "options": ["rbind", "ro"]});
    let own = |at: &str, kind: &str| json!({"destination": at, "type": kind, "source": kind});
    let mut mounts = vec![own("/proc", "proc"), own("/dev", "tmpfs")];
    mounts.extend(["/usr", "/lib", "/lib64", "/etc"].map(bind));
    let netns = s.a.netns_path();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
            "args": ["/usr/bin/python3", "-c", connect], "env": ["PATH=/usr/bin"],
        },
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": netns}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": socket(&s), "listenerMetadata": "a",
                "syscalls": [{"names": ["connect", "bind", "listen"], "action": "SCMP_ACT_NOTIFY"}],
            },
        },
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let (root, dir) = (
        lab.dir().join("crun"),
        dir.to_str().expect("UTF-8").to_owned(),
    );
    let root = root.to_str().expect("UTF-8");
    let name = format!("vsw-{}", std::process::id());
    // It looks for a mount of cgroups even where it is to leave them alone.
    let crun = "mount -t cgroup2 none /sys/fs/cgroup; exec crun --cgroup-manager=disabled --root $0 run --bundle $1 $2";
    let run = ["unshare", "--mount", "sh", "-c", crun, root, &dir, &name];
    let out = s.d.host().run(&run);
    assert_eq!(out.expect_ok().trim(), "::ffff:198.51.100.1");
    assert_eq!(s.switched(), 1, "{}", s.counts());
    wait_until("it has gone", || s.counts()["listeners"] == 0);
}
