//! The whole lab as an ordinary user: namespaces, daemon, TAP and veth ports without any privilege of the machine.

use nix::unistd::geteuid;
use vswitch_tests::{Lab, tap_lab};

use crate::rig::{container, switch};

/// An ordinary user that nobody else is.
const USER: &str = "50011";

/// Runs this test again as that user, in a mount namespace where everybody may open /dev/net/tun and our programs can be
/// reached, wherever the sources are.
#[track_caller]
fn again_as_user(lab: &Lab) {
    let node = lab.host("machine");
    let dir = lab.dir();
    let dir = dir.to_str().expect("UTF-8");
    let test = std::env::current_exe().expect("path of the test binary");
    let target = test.parent().and_then(std::path::Path::parent);
    let target = target.and_then(std::path::Path::to_str).expect("UTF-8");
    let name = test.file_name().and_then(std::ffi::OsStr::to_str);
    let name = name.expect("UTF-8");
    let bin = std::env::var("VSWITCH_BIN_DIR").unwrap_or_else(|_| target.to_owned());
    node.ok(&[
        "sh",
        "-ec",
        "cd \"$0\"; chmod 755 .; mkdir target bin; mount --bind \"$1\" target; mount --bind \"$2\" bin
         mknod -m 666 tun c 10 200; chmod 666 tun; mount --bind tun /dev/net/tun",
        dir,
        target,
        &bin,
    ]);
    let argv = [
        "setpriv",
        "--reuid",
        USER,
        "--regid",
        USER,
        "--clear-groups",
        "--pdeathsig",
        "KILL",
        "env",
        "-u",
        "VSWITCH_SKIPS",
        &format!("VSWITCH_BIN_DIR={dir}/bin"),
        &format!("{dir}/target/deps/{name}"),
        "--exact",
        "rootless::containers_of_an_ordinary_user",
        "--nocapture",
    ];
    let output = node.run_for(&argv, std::time::Duration::from_secs(120));
    assert!(output.success(), "{output}");
    assert!(
        output.stdout.contains(&format!("done as {USER}")),
        "{output}"
    );
}

#[test]
fn containers_of_an_ordinary_user() {
    let lab = tap_lab!("sw-rootless");
    if geteuid().is_root() {
        again_as_user(&lab);
        return;
    }
    assert!(lab.is_rootless());
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let b = container(&d, &lab, "b", "192.0.2.2/24", &[]);
    let c = container(&d, &lab, "c", "192.0.2.3/24", &["--type", "veth"]);
    a.assert_ping("192.0.2.2");
    c.assert_ping("192.0.2.1");
    let _server = b.iperf3_server();
    for node in [&a, &c] {
        let got = node.iperf3("192.0.2.2", &["-t", "1"]).received_bytes;
        assert!(got > 1 << 20, "{}: {got} bytes", node.name());
    }
    d.assert_ledger();
    println!("done as {}", geteuid());
}
