//! Virtual machines: a Debian kernel in QEMU (TCG) on stream and datagram ports, in both roles.
//!
//! `tests/run` fetches the kernel and busybox (see tests/packages) and unpacks them below target/guest, without installing
//! them; the initial file system is made here. The guest prints what it reaches on its serial line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vswitch_tests::{Background, Daemon, Lab, skip, tap_lab};

use crate::rig::{PYTHON, port, wait_state};

/// In the order they need each other.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Interface n of the guest is .50 of network n, the container's .1.
const NETWORKS: [(&str, &str); 3] = [
    ("server", "192.0.2"),
    ("client", "198.51.100"),
    ("dgram", "203.0.113"),
];

const INIT: &str = "\
#!/bin/busybox sh
busybox() { /bin/busybox \"$@\"; }
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1 </dev/null
for m in $MODULES; do busybox insmod /$m.ko; done
busybox ip link set lo up
i=0
for n in $NETWORKS; do
    busybox ip addr add $n.50/24 dev eth$i
    busybox ip link set eth$i up
    i=$((i + 1))
done
echo guest is up
(while :; do echo sum $(busybox nc -l -p 5001 | busybox md5sum); done) &
while :; do
    for n in $NETWORKS; do
        busybox ping -c 1 -W 1 $n.1 >/dev/null && echo reached $n
    done
    busybox usleep 200000
done
";

/// Sends a megabyte to the guest and prints its sum.
const SEND: &str = "\
import hashlib, socket, sys, time
data = bytes(i * 7 % 251 for i in range(1 << 20))
for wait in range(100):
    try:
        c = socket.create_connection((sys.argv[1], 5001), timeout=20)
        break
    except ConnectionRefusedError:
        # The guest's nc ends with each connection and is started again.
        time.sleep(0.1)
c.sendall(data)
c.close()
print(hashlib.md5(data).hexdigest())
";

/// What `tests/run` has unpacked, or why it isn't there.
fn unpacked() -> Result<PathBuf, String> {
    let dir = std::env::var_os("VSWITCH_GUEST_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("path of the test binary");
            // target/debug/deps/TEST -> target/guest
            let target = test.ancestors().nth(3);
            target.expect("cargo's target directory").join("guest")
        },
        PathBuf::from,
    );
    if dir.join("bin/busybox").exists() && dir.join("boot").is_dir() {
        return Ok(dir);
    }
    Err(format!(
        "no kernel and busybox for a guest in {}; `tests/run` fetches them",
        dir.display()
    ))
}

/// The first file below `dir` of which `wanted` is true.
fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_dir && let Some(found) = find(&path, wanted) {
            return Some(found);
        }
        if !is_dir && entry.file_name().to_str().is_some_and(wanted) {
            return Some(path);
        }
    }
    None
}

/// Makes the initial file system; returns kernel and archive.
#[track_caller]
fn guest(lab: &Lab, d: &Daemon, unpacked: &Path) -> (PathBuf, PathBuf) {
    let root = lab.dir().join("root");
    for dir in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(dir)).expect("make a directory");
    }
    fs::copy(unpacked.join("bin/busybox"), root.join("bin/busybox")).expect("copy busybox");
    for module in MODULES {
        let file = format!("{module}.ko");
        let from = find(unpacked, &|name| name == file);
        let from = from.unwrap_or_else(|| panic!("no {file} below {}", unpacked.display()));
        fs::copy(from, root.join(&file)).expect("copy a module");
    }
    let networks: Vec<&str> = NETWORKS.iter().map(|n| n.1).collect();
    let init = INIT
        .replace("$MODULES", &MODULES.join(" "))
        .replace("$NETWORKS", &networks.join(" "));
    fs::write(root.join("init"), init).expect("write init");
    let archive = lab.dir().join("initrd");
    let script = "cd \"$0\" && chmod 755 init && find . | cpio --quiet -o -H newc >\"$1\"";
    d.host().ok(&[
        "sh",
        "-c",
        script,
        root.to_str().expect("UTF-8"),
        archive.to_str().expect("UTF-8"),
    ]);
    let kernel = find(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz"));
    (kernel.expect("a kernel in boot"), archive)
}

/// QEMU with an interface at each of the three ports.
#[track_caller]
fn boot(d: &Daemon, (kernel, archive): (PathBuf, PathBuf), dir: &Path) -> Background {
    let at = |name: &str| dir.join(name).display().to_string();
    let netdevs = [
        format!(
            "stream,id=n0,server=off,addr.type=unix,addr.path={}",
            at("server")
        ),
        format!(
            "stream,id=n1,server=on,addr.type=unix,addr.path={}",
            at("client")
        ),
        format!(
            "dgram,id=n2,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            at("dgram-guest"),
            at("dgram")
        ),
    ];
    let devices =
        [0, 1, 2].map(|i| format!("virtio-net-pci,netdev=n{i},mac=52:54:00:00:00:0{i},romfile="));
    let (kernel, archive) = (kernel.display().to_string(), archive.display().to_string());
    let mut argv = vec!["qemu-system-x86_64"];
    argv.extend("-accel tcg -m 128 -display none -nodefaults -no-reboot -serial stdio".split(' '));
    argv.extend(["-kernel", &kernel, "-initrd", &archive]);
    argv.extend(["-append", "console=ttyS0 quiet panic=-1 net.ifnames=0"]);
    for (netdev, device) in netdevs.iter().zip(&devices) {
        argv.extend(["-netdev", netdev, "-device", device]);
    }
    d.host().spawn(&argv)
}

/// The guest reaches these networks anew. It boots slowly on a busy machine.
#[track_caller]
fn reaches(guest: &mut Background, networks: &[&str]) {
    let told =
        |guest: &Background, n: &str| guest.output().matches(&format!("reached {n}\r")).count();
    let before: Vec<usize> = networks.iter().map(|n| told(guest, n)).collect();
    let end = Instant::now() + Duration::from_secs(90);
    while !networks
        .iter()
        .zip(&before)
        .all(|(n, b)| told(guest, n) > *b)
    {
        assert!(guest.is_running(), "the guest ended: {}", guest.output());
        assert!(
            Instant::now() < end,
            "the guest doesn't reach all of {networks:?}: {}",
            guest.output()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_talks_to_containers_by_sockets_and_reconnects() {
    let lab = tap_lab!("sw-vm");
    let unpacked = match unpacked() {
        Ok(dir) => dir,
        Err(why) => skip!("{why}"),
    };
    let mut d = lab.daemon();
    let a = lab.container("a");
    let (dir, pid) = (lab.dir(), a.pid().to_string());
    let at = |name: &str| dir.join(name).display().to_string();
    for (name, net) in NETWORKS {
        d.ctl(&["network", "add", name]);
        let ip = format!("{net}.1/24");
        let port = format!("a-{name}");
        d.ctl(&[
            "attach", "--pid", &pid, "--ip", &ip, "--device", name, "--name", &port, name,
        ]);
    }
    let (server, client, dgram) = (at("server"), at("client"), at("dgram"));
    let guest_end = at("dgram-guest");
    let add = |name: &str, place: &[&str]| {
        let argv = ["port", "add", name, "--network", name];
        d.ctl(&[&argv[..], place].concat());
    };
    add("server", &["--kind", "stream", "--listen", &server]);
    add("client", &["--kind", "stream", "--connect", &client]);
    add(
        "dgram",
        &[
            "--kind",
            "dgram",
            "--listen",
            &dgram,
            "--connect",
            &guest_end,
        ],
    );
    let (files, started) = (guest(&lab, &d, &unpacked), Instant::now());
    let mut vm = boot(&d, files, &dir);
    let networks = NETWORKS.map(|n| n.1);
    reaches(&mut vm, &networks);
    println!(
        "the guest reached all after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    for (i, (name, net)) in NETWORKS.iter().enumerate() {
        a.assert_ping(&format!("{net}.50"));
        let fdb = d.ctl_json(&["fdb", "show", name, "--port", name]);
        assert_eq!(fdb[0]["mac"], format!("52:54:00:00:00:0{i}"), "{fdb}");
        assert_eq!(port(&d, name)["state"], "up");
    }
    // What the container's kernel left to be segmented arrives whole.
    for net in networks {
        let sum = a.ok(&[PYTHON, "-c", SEND, &format!("{net}.50")]);
        vm.wait_for(&format!("sum {}", sum.trim()));
    }
    d.assert_ledger();
    // QEMU 7.2 connects once as a client; as a server, and with datagrams, the guest is there again after a restart.
    d.restart();
    for (name, net) in &NETWORKS[1..] {
        wait_state(&d, name, "up");
        reaches(&mut vm, &[net]);
        a.assert_ping(&format!("{net}.50"));
    }
    assert_eq!(port(&d, "server")["state"], "down");
    d.assert_ledger();
}
