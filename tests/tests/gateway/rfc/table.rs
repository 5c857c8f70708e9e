//! The table of requirements, and the README's copy of it.

use std::fmt::Write;
use std::path::Path;

/// Requirement, what the gateway does, the test that shows it.
const TABLE: &[(&str, &str, &str)] = &[
    (
        "RFC 4787 REQ-1",
        "endpoint-independent mapping",
        "udp_mappings_are_endpoint_independent_and_keep_ports",
    ),
    (
        "RFC 4787 REQ-2",
        "paired addresses: a host keeps one external address",
        "udp_hosts_keep_their_external_address",
    ),
    (
        "RFC 4787 REQ-3",
        "port preserved if free; never overloaded; well-known ports stay so",
        "udp_mappings_are_endpoint_independent_and_keep_ports",
    ),
    (
        "RFC 4787 REQ-4",
        "parity preserved",
        "udp_mappings_are_endpoint_independent_and_keep_ports",
    ),
    (
        "RFC 4787 REQ-5",
        "2 to 5 minutes; 30 s to well-known ports; each settable",
        "udp_default_timers_are_those_asked_for",
    ),
    (
        "RFC 4787 REQ-5",
        "each timer settable: to well-known ports, unanswered, answered, lasting",
        "udp_timers_are_each_settable",
    ),
    (
        "RFC 4787 REQ-5, REQ-6",
        "expires as set; outbound traffic refreshes",
        "udp_timers_can_be_set_and_outbound_refreshes",
    ),
    (
        "RFC 4787 REQ-6",
        "inbound traffic refreshes as configured (by default it does)",
        "udp_inbound_refresh_is_as_configured",
    ),
    (
        "RFC 4787 REQ-7",
        "networks that overlap are refused",
        "udp_networks_mustnt_overlap",
    ),
    (
        "RFC 4787 REQ-8, REQ-11",
        "filtering as configured: endpoint-independent, address-dependent, or address and port-dependent (default); the same in a conflict",
        "udp_filtering_is_as_configured",
    ),
    (
        "RFC 4787 REQ-9",
        "hairpins, with the external source address and port",
        "udp_hairpins_between_hosts_inside",
    ),
    (
        "RFC 4787 REQ-10",
        "no ALG: payload is left alone",
        "udp_mappings_are_endpoint_independent_and_keep_ports",
    ),
    (
        "RFC 4787 REQ-12",
        "ICMP errors don't end mappings",
        "udp_mappings_outlive_icmp_errors",
    ),
    (
        "RFC 4787 REQ-13",
        "too big and not to be fragmented is told; else fragmented",
        "udp_too_big_for_the_way_is_told",
    ),
    (
        "RFC 4787 REQ-14",
        "fragments in any order",
        "udp_fragments_cross_in_any_order",
    ),
    (
        "RFC 5382 REQ-1, REQ-7",
        "endpoint-independent mapping; never overloaded",
        "tcp_mappings_are_endpoint_independent_and_hairpin",
    ),
    (
        "RFC 5382 REQ-2",
        "simultaneous open",
        "tcp_opens_from_both_sides_at_once",
    ),
    (
        "RFC 5382 REQ-3",
        "filtering as configured, as for UDP",
        "tcp_filtering_is_as_configured",
    ),
    (
        "RFC 5382 REQ-4",
        "an unsolicited SYN gets no answer; one from inside then opens",
        "tcp_unasked_syns_get_no_answer",
    ),
    (
        "RFC 5382 REQ-5",
        "as set",
        "tcp_timers_can_be_set_and_default_to_those_asked_for",
    ),
    (
        "RFC 5382 REQ-5",
        "established 2 h 4 min, transitory 4 min",
        "tcp_sessions_live_for_hours",
    ),
    (
        "RFC 5382 REQ-6",
        "no ALG",
        "udp_mappings_are_endpoint_independent_and_keep_ports",
    ),
    (
        "RFC 5382 REQ-8",
        "hairpins, with the external source address and port",
        "tcp_mappings_are_endpoint_independent_and_hairpin",
    ),
    (
        "RFC 5382 REQ-9, REQ-10",
        "ICMP errors are translated and end nothing; forged resets don't either; a real one does",
        "tcp_survives_icmp_errors_and_forged_resets",
    ),
    (
        "RFC 5382 REQ-10, RFC 5961",
        "a reset in the window but not at its edge is passed on and ends nothing",
        "tcp_resets_in_the_window_but_not_at_its_edge_end_nothing",
    ),
    (
        "RFC 5508 REQ-1, REQ-2",
        "queries: endpoint-independent identifiers; timer settable",
        "icmp_queries_have_endpoint_independent_mappings",
    ),
    (
        "RFC 5508 REQ-3, REQ-4, REQ-5",
        "errors are checked, and translated with their quote, both ways",
        "icmp_errors_are_translated_both_ways",
    ),
    (
        "RFC 5508 REQ-6",
        "errors neither end nor refresh",
        "icmp_errors_neither_end_nor_refresh",
    ),
    (
        "RFC 5508 REQ-7",
        "queries of a pool's address hairpin to the host that has the identifier; the gateway answers for its own addresses, and for identifiers nobody has",
        "icmp_queries_hairpin_at_addresses_of_the_pool",
    ),
    (
        "RFC 5508 REQ-7",
        "a query of the gateway's own address is answered by the gateway, whatever the identifier",
        "icmp_queries_of_the_external_address_are_answered",
    ),
    (
        "RFC 5508 REQ-7",
        "errors of hairpinned packets hairpin",
        "udp_hairpins_between_hosts_inside",
    ),
    (
        "RFC 5508 REQ-8",
        "no port free, no place in the table, or rejected by policy: code 13 to the sender inside",
        "icmp_tells_who_finds_no_room_or_may_not",
    ),
    (
        "RFC 5508 REQ-4, REQ-5 (ICMPv6)",
        "ICMPv6 errors likewise, between kernels: unreachable both ways, packet too big",
        "icmp6_errors_are_translated_between_kernels",
    ),
    (
        "RFC 5508 REQ-9, REQ-10",
        "source quench and redirects are dropped",
        "icmp_errors_are_translated_both_ways",
    ),
];

const BEGIN: &str = "<!-- nat-behaviour -->\n";
const END: &str = "<!-- /nat-behaviour -->";

fn rendered() -> String {
    let mut out = String::from("\n| Requirement | The gateway | Test |\n| --- | --- | --- |\n");
    for (req, what, test) in TABLE {
        writeln!(out, "| {req} | {what} | `{test}` |").unwrap();
    }
    out + "\n"
}

/// `VSWITCH_WRITE=1` rewrites the README's copy.
#[test]
fn the_readme_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the table's begin");
    let (table, after) = rest.split_once(END).expect("the table's end");
    let now = rendered();
    if std::env::var_os("VSWITCH_WRITE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{now}{END}{after}")).unwrap();
        return;
    }
    assert!(
        table == now,
        "README.md's table of NAT behaviour is stale: run this test with VSWITCH_WRITE=1 and commit it"
    );
}

/// Every row names a test, and every test is in a row.
#[test]
fn the_table_names_exactly_the_tests() {
    let sources = [
        include_str!("udp.rs"),
        include_str!("tcp.rs"),
        include_str!("icmp.rs"),
    ]
    .concat();
    let tests: Vec<&str> = sources
        .split("#[test]\nfn ")
        .skip(1)
        .filter_map(|t| t.split_once('(').map(|(name, _)| name))
        .collect();
    assert!(tests.len() > 10, "{tests:?}");
    for (req, _, test) in TABLE {
        assert!(tests.contains(test), "{req}: there is no test {test}");
    }
    for test in tests {
        assert!(
            TABLE.iter().any(|row| row.2 == test),
            "{test} is in no row of the table"
        );
    }
}
