//! Flags of both programs that no client of ours passes, by hand.

use crate::site::Site;
use crate::slirp4netns::script;
use crate::user_lab;

#[test]
fn pasta_s_addresses_and_ways_out() {
    let lab = user_lab!("pasta-flags", "newuidmap");
    let site = Site::new(&lab);
    site.machine.addr("out0", "198.51.100.9/24");
    let said = script(
        &site,
        "python3 -m http.server --bind 127.0.0.1 8220 >web 2>&1 &
         until curl -s -o page http://127.0.0.1:8220/; do sleep 0.05; done
         start() { pasta --config-net -t none -u none \"$@\" $P; }
         ends() { kill $(pidof pasta); until ! pidof pasta; do sleep 0.01; done; }
         start -o 198.51.100.9 --map-host-loopback 169.254.9.9 --ns-mac-addr 02:00:00:00:00:78 -M 02:00:00:00:00:79 --log-file log -d
         inside ip link show out0
         echo by address $(inside curl -s http://198.51.100.254:8000/peer)
         inside ip neigh show dev out0
         inside curl -s -o page --max-time 5 http://169.254.9.9:8220/ && echo loopback
         inside curl -s -o page --max-time 1 http://198.51.100.254:8220/ || echo not by the router
         ends
         grep -q ending log && echo logged
         start -i out0 -o out0 -6 -I eth6 --no-map-gw
         inside ip -4 -br addr show eth6 | wc -w; inside ip -6 -br addr show eth6
         echo six $(inside curl -gs http://[2001:db8:2::254]:8000/peer)
         ends
         start -o nowhere0 -4 -I eth4 --no-map-gw 2>told
         inside curl -s -o page --max-time 5 http://198.51.100.254:8000/peer || echo nowhere $?
         grep nowhere0 told
         ends
         pasta -t none -u none -T auto -- curl -s -o page --max-time 5 http://127.0.0.1:8220/ && echo by a command
         ! pidof pasta",
    );
    for what in [
        "link/ether 02:00:00:00:00:78",
        "by address 198.51.100.9\n",
        "198.51.100.254 lladdr 02:00:00:00:00:79",
        "loopback\n",
        "not by the router\n",
        "logged\n",
        "\n0\n",
        "2001:db8:2::1/64",
        "six 2001:db8:2::1\n",
        "nowhere 7\n",
        "by a command\n",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[test]
fn slirp4netns_s_namespaces_by_path() {
    let lab = user_lab!("slirp4netns-flags", "newuidmap");
    let site = Site::new(&lab);
    let said = script(
        &site,
        "mkfifo ready; exec 8<>ready
         slirp4netns --configure --enable-ipv6 --mtu=1400 --netns-type=path --userns-path=/proc/$P/ns/user --ready-fd=6 /proc/$P/ns/net tap9 6>ready 8<&- & S=$!
         head -c 1 <&8; echo ' ready'
         inside ip addr show tap9
         echo four $(inside curl -s http://198.51.100.254:8000/peer)
         echo six $(inside curl -gs http://[2001:db8:2::254]:8000/peer)
         kill $S; wait $S; echo ended $?",
    );
    for what in [
        "1 ready\n",
        "mtu 1400",
        "10.0.2.100/24",
        "fd00::100/64",
        "four 198.51.100.1\n",
        "six 2001:db8:2::1\n",
        "ended 0",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    // What clients look for before they pass it.
    let help = site.run(&[], &["slirp4netns", "--help"]).expect_ok();
    for flag in [
        "--configure",
        "--exit-fd",
        "--ready-fd",
        "--mtu",
        "--cidr",
        "--disable-host-loopback",
        "--disable-dns",
        "--netns-type",
        "--userns-path",
        "--api-socket",
        "--enable-ipv6",
        "--enable-sandbox",
        "--enable-seccomp",
        "--outbound-addr",
        "--outbound-addr6",
        "--macaddress",
        "--target-type",
    ] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}
