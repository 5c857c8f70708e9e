//! The checked-in OpenAPI document is the one the daemon serves.

use std::path::Path;

#[test]
fn openapi_json_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let now = vswitch_control::api::openapi() + "\n";
    if std::env::var_os("VSWITCH_WRITE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(
        kept == now,
        "control/openapi.json is stale: run this test with VSWITCH_WRITE=1 and commit it"
    );
}

#[test]
fn every_path_of_the_document_is_below_v1_or_metrics() {
    let document: serde_json::Value =
        serde_json::from_str(&vswitch_control::api::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 12, "{paths:?}");
    for path in paths.keys() {
        assert!(path.starts_with("/v1/") || path == "/metrics", "{path}");
    }
}
