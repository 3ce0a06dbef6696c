//! Compiles the protos; `tools/protoc` (see `.cargo/config.toml`) finds the compiler.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptor = PathBuf::from(std::env::var("OUT_DIR")?).join("cascadia.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptor)
        // It holds a secret: `src/convert.rs` says what of it may be shown.
        .skip_debug(["cascadia.v1.SessionKey"])
        .compile_protos(&["cascadia/v1/inference.proto", "cascadia/v1/cluster.proto"], &["."])?;
    Ok(())
}
