//! A container that breaks every rule of TCP: the switch stays, others don't notice, and nothing is left of it.

use crate::rig::{FAR, Site, peer, serve, site};
use vswitch_tests::{tap_lab, wait_until};

const RULELESS: &str = r#"
import random
draw = random.Random(11)
mac = getmacbyip('192.0.2.1')
link = Ether(src=get_if_hwaddr('eth0'), dst=mac)
out = conf.L2socket(iface='eth0', filter='tcp and src host 198.51.100.254')
ODD = [
    [], [('MSS', 0)], [('MSS', 65535)], [('WScale', 255)], [('SAckOK', b'')], [('NOP', None)] * 40,
    [('SAck', (1, 2, 3, 4))], [('Timestamp', (2**32 - 1, 0))], [('MSS', 1), ('WScale', 14), ('SAckOK', b'')],
]
opened = 0
for i in range(60):
    port, isn = 20000 + i, draw.getrandbits(32)
    ip = IP(src='192.0.2.10', dst='198.51.100.254')
    syn = TCP(sport=port, dport=7000, flags='S', seq=isn, window=draw.choice([0, 1, 65535]), options=draw.choice(ODD))
    out.send(link / ip / syn)
    answer = None
    for _ in range(20):
        got = sniff(opened_socket=out, count=1, timeout=2)
        if got and TCP in got[0] and got[0][TCP].dport == port and got[0][TCP].flags & 0x12 == 0x12:
            answer = got[0][TCP]
            break
        if not got:
            break
    if answer is None:
        continue
    opened += 1
    seq, ack, frames = isn + 1, answer.seq + 1, []
    # Some say what they want first, so that there is something to be acknowledged, or never.
    what = draw.choice([b'', b'echo\n', b'source 300000\n', b'sink\n'])
    frames.append(TCP(sport=port, dport=7000, flags='A', seq=seq, ack=ack, window=draw.choice([0, 1, 500, 65535])) / what)
    for _ in range(60):
        near = lambda n: (n + draw.choice([0, 0, 1, -1, 1000, -1000, 70000, -70000, 2**31, draw.getrandbits(32)])) % 2**32
        flags = draw.choice([0, 1, 4, 2, 3, 6, 7, 16, 17, 24, 25, 48, 56, 63, 255, 16, 16, 24])
        if draw.random() < 0.85:
            flags &= ~4
        options = draw.choice(ODD) if draw.random() < 0.3 else []
        payload = draw.randbytes(draw.choice([0, 0, 1, 5, 100, 1400]))
        frames.append(TCP(sport=port, dport=7000, flags=flags, seq=near(seq), ack=near(ack), urgptr=draw.choice([0, 1, 65535]),
                          window=draw.choice([0, 1, 100, 65535]), options=options) / payload)
    for f in frames:
        b = bytearray(bytes(link / ip / f))
        if draw.random() < 0.1:
            b[46] = draw.choice([0x00, 0x10, 0x40, 0xf0])
        out.send(Raw(bytes(b)))
print('opened', opened)
"#;

#[test]
fn who_breaks_every_rule_of_tcp_harms_nobody() {
    let lab = tap_lab!("slirp-hostile");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&outside, "serve", "7000");
    let b = lab.container("b");
    let pid = b.pid().to_string();
    let argv = [
        "attach",
        "--pid",
        &pid,
        "--ip",
        "192.0.2.11/24",
        "--gw",
        "192.0.2.1",
        "--name",
        "b",
        "lan",
    ];
    d.ctl(&argv);
    let fds = || {
        let dir = format!("/proc/{}/fd", d.pid());
        std::fs::read_dir(dir).expect("our daemon").count()
    };
    let before = fds();
    // Its kernel knows nothing of these connections and mustn't end them.
    a.assert_ping("192.0.2.1");
    a.ok_with_input(
        &["nft", "-f", "-"],
        b"table inet quiet {
            chain out {
                type filter hook output priority 0;
                tcp flags rst drop
            }
        }
",
    );
    let said = a.scapy(RULELESS);
    let opened = said
        .trim()
        .strip_prefix("opened ")
        .and_then(|n| n.parse::<u32>().ok());
    assert!(opened >= Some(40), "{said}");
    // Another one is served all the while, and after.
    for way in ["upload", "download"] {
        assert_eq!(peer(&b, &[way, FAR[0], "7000", "20000000"]), "same");
    }
    d.ctl(&["conntrack", "flush"]);
    wait_until("all its sockets to be closed", || fds() <= before + 1);
    d.assert_ledger();
}
