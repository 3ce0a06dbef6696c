//! The arrows of the architecture, read from the workspace's own manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Who may know whom. A crate may know fewer.
const ARROWS: &[(&str, &[&str])] = &[
    ("cascadia-core", &[]),
    ("cascadia-proto", &["cascadia-core"]),
    ("cascadia-gguf", &[]),
    ("cascadia-text", &["cascadia-core", "cascadia-gguf"]),
    ("cascadia-model", &["cascadia-core", "cascadia-gguf"]),
    ("cascadia-gpu", &["cascadia-core", "cascadia-model"]),
    ("cascadia-node", &["cascadia-core", "cascadia-proto"]),
    ("cascadia-router", &["cascadia-core", "cascadia-proto", "cascadia-node"]),
    ("cascadia-drafter-node", &["cascadia-core", "cascadia-proto", "cascadia-node", "cascadia-text", "cascadia-model"]),
    ("cascadia-expert-node", &["cascadia-core", "cascadia-proto", "cascadia-node", "cascadia-text", "cascadia-model"]),
];

/// What only some crates may name, and who.
const RESERVED: &[(&str, &[&str])] = &[
    ("etcd-client", &["cascadia-node"]),
    ("tokenizers", &["cascadia-text"]),
    ("minijinja", &["cascadia-text"]),
    ("safetensors", &["cascadia-model"]),
    ("memmap2", &["cascadia-model"]),
    ("half", &["cascadia-model", "cascadia-gpu"]),
    ("candle-core", &["cascadia-gpu"]),
    ("candle-nn", &["cascadia-gpu"]),
];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            // Tests may know more than what they test.
            let names = package["dependencies"].as_array().expect("dependencies").iter();
            let names = names.filter(|dependency| dependency["kind"].is_null());
            let names = names.map(|dependency| dependency["name"].as_str().expect("a name").to_owned());
            (package["name"].as_str().expect("a name").to_owned(), names.collect())
        })
        .collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let dependencies = dependencies();
    for (name, allowed) in ARROWS {
        let known = dependencies[*name].iter().filter(|dependency| dependency.starts_with("cascadia"));
        let forbidden: Vec<_> = known.filter(|dependency| !allowed.contains(&dependency.as_str())).collect();
        assert!(forbidden.is_empty(), "{name} may not know {forbidden:?}");
    }
}

#[test]
fn core_has_no_dependency_that_could_break_its_promise() {
    assert_eq!(dependencies()["cascadia-core"], BTreeSet::from(["libm".to_owned()]));
}

#[test]
fn what_is_reserved_stays_in_its_room() {
    for (name, known) in dependencies() {
        for (reserved, rooms) in RESERVED {
            let allowed = rooms.contains(&name.as_str()) || name == "cascadia-tests";
            assert!(allowed || !known.contains(*reserved), "{name} may not know {reserved}");
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_model() {
    for (folder, root) in [
        ("core", "src/lib.rs"),
        ("proto", "src/lib.rs"),
        ("text", "src/lib.rs"),
        ("node", "src/lib.rs"),
        ("router", "src/lib.rs"),
        ("drafter-node", "src/lib.rs"),
        ("expert-node", "src/lib.rs"),
        ("cascadia", "src/lib.rs"),
        ("bench", "src/main.rs"),
    ] {
        let path = format!("{}/../{folder}/{root}", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(&path).expect("the crate has a root");
        assert!(source.contains("#![forbid(unsafe_code)]"), "{path} does not forbid unsafe code");
    }
}
