//! The arrows of the architecture, read from the workspace's own manifests and sources.

mod circles;
mod modules;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use modules::Modules;

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
    ("cascadia-drafter-node", &["cascadia-core", "cascadia-proto", "cascadia-node"]),
    ("cascadia-expert-node", &["cascadia-core", "cascadia-proto", "cascadia-node"]),
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

/// What only whole tests under `tests/` may name. A crate whose unit tests name what is built on it is compiled twice for
/// them, and its types are then two that look like one.
const FOR_WHOLE_TESTS: &[&str] = &["cascadia_tests", "cascadia_testkit", "cascadia_toy"];

/// Where `unsafe` may be: in kernels and mapped files, and where a kernel of ours is launched on a card.
const UNSAFE: &[&str] = &["cascadia-model", "cascadia-gpu"];

/// A crate of the workspace.
struct Package {
    name: String,
    folder: PathBuf,
    /// The root files of its library and its programs.
    roots: Vec<PathBuf>,
    /// What it is built with; tests may know more than what they test.
    dependencies: BTreeSet<String>,
}

fn packages() -> Vec<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let package = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
        let dependencies = dependencies.filter(|dependency| dependency["kind"].is_null());
        let targets = package["targets"].as_array().expect("targets").iter();
        let is_root = |kind: &Value| kind.as_str().is_some_and(|kind| ["lib", "bin"].contains(&kind));
        let roots = targets.filter(|target| target["kind"].as_array().expect("kinds").iter().any(is_root));
        let mut folder = PathBuf::from(text(&package["manifest_path"]));
        folder.pop();
        Package {
            name: text(&package["name"]),
            folder,
            roots: roots.map(|target| text(&target["src_path"]).into()).collect(),
            dependencies: dependencies.map(|dependency| text(&dependency["name"])).collect(),
        }
    };
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    packages().into_iter().map(|package| (package.name, package.dependencies)).collect()
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
    for package in packages().into_iter().filter(|package| !UNSAFE.contains(&package.name.as_str())) {
        assert!(!package.roots.is_empty(), "{} has no root", package.name);
        for root in package.roots {
            let source = std::fs::read_to_string(&root).expect("the crate has a root");
            let root = root.display();
            assert!(source.contains("#![forbid(unsafe_code)]"), "{root} does not forbid unsafe code");
        }
    }
}

#[test]
fn unit_tests_name_nothing_that_is_built_on_their_crate() {
    for package in packages() {
        let wrong = named_in_unit_tests(&Modules::read(&package.folder.join("src")), FOR_WHOLE_TESTS);
        assert!(wrong.is_empty(), "{}: move these tests under tests/: {}", package.name, wrong.join(", "));
    }
}

/// Where the unit tests of a crate name one of these.
fn named_in_unit_tests(modules: &Modules, names: &[&str]) -> Vec<String> {
    let named = modules.files.iter().flat_map(|(module, file)| {
        let code = if modules.is_for_tests(module) { file.code.as_slice() } else { &[] };
        let wrong = code.iter().chain(&file.tests).filter(|token| names.contains(&token.as_str()));
        wrong.map(move |token| format!("{token} in crate::{}", module.join("::")))
    });
    named.collect()
}

#[test]
fn what_unit_tests_name_is_found_inline_and_in_files_of_their_own() {
    let module = |path: &str| path.split("::").map(str::to_owned).collect();
    let modules = Modules::of([
        (module("a"), "use toy::X; #[cfg(test)] mod tests { use toy::Y; } #[cfg(test)] mod samples;"),
        (module("a::samples"), "fn f() { toy::z() } // toy"),
        (module("b"), "fn f() { toy::z() }"),
    ]);
    assert_eq!(named_in_unit_tests(&modules, &["toy"]), ["toy in crate::a", "toy in crate::a::samples"]);
}
