//! Compiles the protos; `tools/protoc` (see `.cargo/config.toml`) finds the compiler.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("cascadia.bin"))
        // It holds a secret: `src/convert.rs` says what of it may be shown.
        .skip_debug(["cascadia.v1.SessionKey"])
        .compile_protos(&["cascadia/v1/inference.proto", "cascadia/v1/cluster.proto"], &["."])?;
    // The same service over a request that is not decoded whole; every other message is the same.
    let relay = out.join("relay");
    std::fs::create_dir_all(&relay)?;
    tonic_prost_build::configure()
        .out_dir(relay)
        .build_client(false)
        .extern_path(".cascadia.v1", "crate::v1")
        .extern_path(".cascadia.v1.GenerateRequest", "crate::relay::GenerateRequest")
        .compile_protos(&["cascadia/v1/inference.proto"], &["."])?;
    Ok(())
}
