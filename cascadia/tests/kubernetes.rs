//! The chart and the image, judged by the programs that will read them. The judges are in tests/kubernetes; `tools/test`
//! brings helm and the Python packages.

#[path = "real/environment.rs"]
mod environment;

use std::path::{Path, PathBuf};
use std::process::Command;

use environment::unconfigured;

/// Runs one file of judges.
fn judged(module: &str) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kubernetes");
    let tools = std::env::var_os("CASCADIA_TEST_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools"), PathBuf::from);
    let (python, helm) = (tools.join("kubernetes/bin/python"), tools.join("bin/helm"));
    for tool in [&python, &helm] {
        if !tool.exists() {
            eprintln!("SKIPPED: {module}: {} is missing; `tools/test` brings it", tool.display());
            return;
        }
    }
    let mut judges = Command::new(python);
    unconfigured(&mut judges);
    let judges = judges
        .args(["-W", "ignore::ResourceWarning", "-m", "unittest", module])
        .current_dir(tests)
        .env("HELM", helm)
        .env("CASCADIA", env!("CARGO_BIN_EXE_cascadia"))
        .output()
        .expect("python runs");
    assert!(judges.status.success(), "{}", String::from_utf8_lossy(&judges.stderr));
}

#[test]
fn the_chart_is_one_with_itself() {
    judged("test_chart");
}

#[test]
fn the_chart_is_one_with_the_programs() {
    judged("test_processes");
}

#[test]
fn every_flag_and_key_is_taken() {
    judged("test_settings");
}

#[test]
fn models_are_downloaded() {
    judged("test_download");
}

#[test]
fn the_image_is_packed() {
    judged("test_image");
}
