//! With the feature `cuda`: compiles the attention kernel to PTX, which the driver compiles for its card.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=cuda/attention.cu");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let home = std::env::var_os("CUDA_HOME").map(PathBuf::from);
    let nvcc = home.map_or_else(|| "nvcc".into(), |home| home.join("bin/nvcc"));
    let ptx = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names it")).join("attention.ptx");
    // The oldest card with bfloat16: PTX of one is understood by all that came later.
    let mut command = Command::new(&nvcc);
    command.args(["-ptx", "-arch=compute_80", "-std=c++17", "-O3", "cuda/attention.cu", "-o"]).arg(ptx);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} ended with {status}", nvcc.display()),
        Err(error) => panic!("{} does not run ({error}); gpu/README.md says how to get it", nvcc.display()),
    }
}
