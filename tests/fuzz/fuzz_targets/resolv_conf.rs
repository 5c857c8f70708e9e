#![no_main]
//! Lists of resolvers: no text makes the parser panic, what it gives is within its bounds, and written down and read back it is the same.

use libfuzzer_sys::fuzz_target;
use std::fmt::Write;
use std::time::Duration;
use vswitch_nat::service::dns::parse_resolv_conf;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let scope = |name: &str| (name == "eth0").then_some(2);
    let conf = parse_resolv_conf(&text, scope);
    assert!(conf.servers.len() <= 8 && conf.search.len() <= 32);
    assert!(conf.ndots <= 15 && (1..=5).contains(&conf.attempts));
    assert!(conf.timeout >= Duration::from_secs(1) && conf.timeout <= Duration::from_secs(30));
    let mut again = format!("search {}\n", conf.search.join(" "));
    for server in &conf.servers {
        let zone = match server {
            std::net::SocketAddr::V6(a) if a.scope_id() != 0 => format!("%{}", a.scope_id()),
            _ => String::new(),
        };
        let _ = writeln!(again, "nameserver {}{zone}", server.ip());
    }
    let secs = conf.timeout.as_secs();
    let (ndots, attempts) = (conf.ndots, conf.attempts);
    let _ = writeln!(
        again,
        "options ndots:{ndots} timeout:{secs} attempts:{attempts}"
    );
    assert_eq!(parse_resolv_conf(&again, scope), conf);
});
