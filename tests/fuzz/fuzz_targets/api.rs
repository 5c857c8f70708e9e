#![no_main]
//! Bodies of the API: JSON as a whole or as a merge patch becomes a model or is refused with a reason; a model survives JSON,
//! and a patch laid over it twice is the same as once. Names become path segments and names again.

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use vswitch_control::api::patched;
use vswitch_control::client::escape;
use vswitch_control::model::{Mirror, Network, Port, PublishedPort, StaticEntry, Topology};

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let text = serde_json::to_vec(value).expect("a model is JSON");
    let again: T = serde_json::from_slice(&text).expect("our own JSON");
    assert_eq!(again, *value);
}

/// As a body, and as a patch over `base`.
fn body<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    json: &Value,
    base: Option<T>,
) -> Option<T> {
    if let Some(base) = base {
        match patched(&base, json, "it") {
            Ok(once) => {
                survives(&once);
                let twice = patched(&once, json, "it").expect("it was good once");
                assert_eq!(twice, once);
            }
            Err(refusal) => assert!(!refusal.reason.is_empty() && !refusal.remedy.is_empty()),
        }
    }
    let value: T = serde_json::from_value(json.clone()).ok()?;
    survives(&value);
    Some(value)
}

/// The opposite of `escape` (RFC 3986 2.1).
fn unescape(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = vec![];
    while let Some(b) = bytes.next() {
        out.push(if b == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            b
        });
    }
    String::from_utf8(out).ok()
}

fuzz_target!(|text: &str| {
    let segment = escape(text);
    assert!(
        segment
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/?#".contains(&b))
    );
    assert_eq!(unescape(&segment).as_deref(), Some(text));
    let Ok(json) = serde_json::from_str::<Value>(text) else {
        return;
    };
    let network = body(&json, Some(Network::default()));
    let port = body(&json, Some(Port::new("lan")));
    body::<StaticEntry>(&json, None);
    let mirror = body::<Mirror>(&json, None);
    let publish = body::<PublishedPort>(&json, None);
    let mut topology = body(&json, Some(Topology::default())).unwrap_or_default();
    topology
        .networks
        .extend(network.map(|n| ("lan".to_owned(), n)));
    topology.ports.extend(port.map(|p| ("web".to_owned(), p)));
    topology.mirrors.extend(mirror.map(|m| ("m".to_owned(), m)));
    topology
        .publish
        .extend(publish.map(|p| ("p".to_owned(), p)));
    if let Err(problem) = topology.check() {
        assert!(
            !problem.reason.is_empty() && !problem.remedy.is_empty() && !problem.path.is_empty()
        );
    }
});
