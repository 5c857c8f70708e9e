//! A machine with an ordinary user who runs containers, and a machine outside that knows the first only.

use std::time::Duration;
use vswitch_tests::{Background, Lab, Mtu, Node, Output};

pub(crate) const FAR: &str = include_str!("far.py");
/// Outside: HTTP and DNS, in which `www.example` is itself.
pub(crate) const OUTSIDE: [&str; 2] = ["198.51.100.254", "2001:db8:2::254"];
/// The machine, as outside sees it.
pub(crate) const MACHINE: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
/// Bytes of a large transfer.
pub(crate) const LARGE: &str = "64000000";
/// An ordinary user, known to the machine with subordinate ids.
const USER: &str = "50012";

/// What the user has, and an image for containers.
const MAKE: &str = r#"
cd "$0"; chmod 755 .
mkdir home run bin image
mount --bind "$1" bin
mknod -m 666 tun c 10 200; chmod 666 tun; mount --bind tun /dev/net/tun
umount /sys
for f in passwd group subuid subgid; do cp "$4/etc/$f" $f; done
echo "guest:x:50012:50012::$0/home:/bin/sh" >>passwd
echo "guest:x:50012:" >>group
echo "guest:2000000:65536" | tee -a subuid >>subgid
echo "nameserver 198.51.100.254" >resolv.conf
mkdir -p image/bin image/tmp image/etc image/www image/proc image/dev image/sys
cp "$(command -v busybox)" image/bin/
for a in sh cat dd echo grep head httpd ip ls mkdir nslookup ping seq sha256sum sleep timeout touch wget; do ln -s busybox image/bin/$a; done
python3 -c "$2" make "$3" image/large
tar -C image -c . >image.tar
chmod 700 run; chown -R 50012:50012 home run image
"#;

/// The machine's files that name the user are covered in its mount namespace.
const COVER: &str = r#"
cd "$0"
for f in passwd group subuid subgid; do mount --bind $f /etc/$f; done
mount --bind resolv.conf "$(readlink -f /etc/resolv.conf)"
"#;

/// Another system takes the place of the machine's own, with what is written to it in memory.
const PIVOT: &str = r#"
cd "$0"; mkdir root rw
mount --make-rprivate /
mount -t tmpfs tmpfs rw; mkdir rw/upper rw/work
mount -t overlay overlay -o "lowerdir=$1,upperdir=rw/upper,workdir=rw/work" root
for f in passwd group subuid subgid resolv.conf; do cp $f root/etc/; done
for d in dev sys; do mount --rbind /$d root/$d; done
mount -t proc proc root/proc
mount -t tmpfs -o mode=755 tmpfs root/run
mkdir -p "root/$0"; mount --rbind "$0" "root/$0"
cd root; mkdir before; pivot_root . before; umount -l /before
"#;

pub(crate) struct Site {
    /// Where the user is.
    pub(crate) machine: Node,
    pub(crate) outside: Node,
    dir: String,
    digest: String,
    _servers: Vec<Background>,
}

impl Site {
    /// The machine with its own programs.
    pub(crate) fn new(lab: &Lab) -> Site {
        Site::on(lab, None)
    }

    /// The machine with the programs of a system below `root`.
    pub(crate) fn on(lab: &Lab, root: Option<&str>) -> Site {
        let (machine, outside) = (lab.container("machine"), lab.host("outside"));
        lab.link(&machine, "out0", &outside, "eth0", Mtu(1500));
        machine.addr("out0", &format!("{}/24", MACHINE[0]));
        machine.addr("out0", &format!("{}/64", MACHINE[1]));
        outside.addr("eth0", &format!("{}/24", OUTSIDE[0]));
        outside.addr("eth0", &format!("{}/64", OUTSIDE[1]));
        machine.route("default", OUTSIDE[0]);
        machine.route("default", OUTSIDE[1]);
        let dir = lab.dir();
        let dir = dir.to_str().expect("UTF-8").to_owned();
        let program = vswitch_tests::program("slirp4netns");
        let bin = program.trim_end_matches("/slirp4netns");
        let etc = root.unwrap_or_default();
        machine.ok(&["sh", "-ec", MAKE, &dir, bin, FAR, LARGE, etc]);
        match root {
            None => machine.ok(&["sh", "-ec", COVER, &dir]),
            Some(root) => machine.ok(&["sh", "-ec", PIVOT, &dir, root]),
        };
        let digest = outside.ok(&["python3", "-c", FAR, "digest", LARGE]);
        let mut http = outside.spawn(&["python3", "-c", FAR, "serve", "::", "8000"]);
        http.wait_for("serving");
        let mut dns = outside.spawn(&[
            "dnsmasq",
            "-k",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--local=/example/",
            &format!("--host-record=www.example,{},{}", OUTSIDE[0], OUTSIDE[1]),
            "--log-facility=-",
        ]);
        dns.wait_for("started");
        Site {
            machine,
            outside,
            dir,
            digest: digest.trim().to_owned(),
            _servers: vec![http, dns],
        }
    }

    /// A path in the user's reach: `home`, `bin`, `run`, `image.tar`.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    /// Writes a file of the machine.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("write a file in the lab's directory");
        path
    }

    /// The command line that runs a program as the user.
    fn as_user(&self, env: &[&str], argv: &[&str]) -> Vec<String> {
        let dir = &self.dir;
        let user = [
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
        ];
        let vars = [
            format!("PATH={dir}/bin:/usr/bin:/bin:/usr/sbin:/sbin"),
            format!("HOME={dir}/home"),
            format!("XDG_RUNTIME_DIR={dir}/run"),
            "USER=guest".to_owned(),
            "LC_ALL=C".to_owned(),
        ];
        let home = format!("--chdir={dir}/home");
        let user = user.iter().copied();
        let env_of = ["env", "-i", &home].map(str::to_owned);
        let env = env.iter().chain(argv).map(ToString::to_string);
        user.map(str::to_owned)
            .chain(env_of)
            .chain(vars)
            .chain(env)
            .collect()
    }

    /// Runs a program as the user, at most 60 s.
    #[track_caller]
    pub(crate) fn run(&self, env: &[&str], argv: &[&str]) -> Output {
        let argv = self.as_user(env, argv);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.machine.run_for(&argv, Duration::from_secs(60))
    }

    /// Starts one.
    #[track_caller]
    pub(crate) fn spawn(&self, env: &[&str], argv: &[&str]) -> Background {
        let argv = self.as_user(env, argv);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.machine.spawn(&argv)
    }

    /// What a container has to be able to do: names by DNS, large transfers both ways, IPv6 where `six`; as a script for its shell that
    /// prints what [`Site::assert_transfers`] looks for.
    pub(crate) fn transfers(six: bool) -> String {
        // An address made of an advertised prefix is tentative for a second; meanwhile connections would begin at the link-local one.
        let v6 = format!("until ip -6 addr show scope global | grep inet6 | grep -qv tentative; do sleep 0.1; done
             echo six $(wget -q -O - http://[{}]:8000/peer)", OUTSIDE[1]);
        format!(
            "set -e
             nslookup www.example
             echo down $(wget -q -O - http://www.example:8000/bytes/{LARGE} | sha256sum)
             echo up $(wget -q -O - --post-file=/large http://{}:8000/)
             {}
             echo all done",
            OUTSIDE[0],
            if six { v6.as_str() } else { "" }
        )
    }

    #[track_caller]
    pub(crate) fn assert_transfers(&self, printed: &str, six: bool) {
        let digest = &self.digest;
        assert!(printed.contains(OUTSIDE[0]), "{printed}");
        assert!(printed.contains(&format!("down {digest}")), "{printed}");
        assert!(printed.contains(&format!("up {digest}")), "{printed}");
        let from = format!("six {}", MACHINE[1]);
        assert!(!six || printed.contains(&from), "{printed}");
        assert!(printed.contains("all done"), "{printed}");
    }

    /// Asks outside for a file of a published port, and has it compared with the large one.
    #[track_caller]
    pub(crate) fn assert_published(&self, at: &str, port: &str, name: &str) {
        let get = |what: &str| {
            let url = format!("http://{at}:{port}/{what}");
            let argv = [
                "curl",
                "-gsS",
                "--retry",
                "20",
                "--retry-delay",
                "1",
                "--retry-all-errors",
                "--max-time",
                "20",
                &url,
            ];
            argv.map(str::to_owned)
        };
        let argv = get("name");
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        assert_eq!(self.outside.ok(&argv).trim(), name);
        let fetch = get("large").join(" ") + " | sha256sum";
        let digest = self.outside.ok(&["sh", "-c", &fetch]);
        assert!(digest.starts_with(&self.digest), "{digest}");
    }

    /// A script for a container's shell: serves its name and the large file on port 80.
    pub(crate) fn server(name: &str) -> String {
        format!(
            "ln -s /large /www/large; echo {name} >/www/name; echo up; exec httpd -f -v -p 80 -h /www"
        )
    }
}

/// The lab, as root only: an ordinary user with subordinate ids is made by the machine's root.
#[macro_export]
macro_rules! user_lab {
    ($name:expr, $($program:expr),*) => {{
        vswitch_tests::one_lab_at_a_time();
        let lab = vswitch_tests::tap_lab!($name);
        if lab.is_rootless() {
            vswitch_tests::skip!("making a user with subordinate ids takes root");
        }
        for program in [$($program),*] {
            if !$crate::site::is_installed(program) {
                vswitch_tests::skip!("{program} isn't installed: `tests/run` installs what tests/packages names");
            }
        }
        lab
    }};
}

pub(crate) fn is_installed(program: &str) -> bool {
    let path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/usr/share/docker.io/contrib";
    path.split(':')
        .any(|dir| std::path::Path::new(dir).join(program).exists())
}

/// A Debian 13 that `tests/run` has unpacked.
pub(crate) fn debian13() -> Option<String> {
    let program = vswitch_tests::program("pasta");
    let target = std::path::Path::new(&program).parent()?.parent()?;
    let root = target.join("trixie");
    let done = root.join("usr/bin/podman").exists() && !root.join("debootstrap").exists();
    done.then(|| root.to_str().map(str::to_owned))?
}
