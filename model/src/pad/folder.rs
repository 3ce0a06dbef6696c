//! A padded model as a Hugging Face folder.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Output, PadReport, Planned, padded, plan};
use crate::config::Config;
use crate::error::LoadError;
use crate::folder::read_json;
use crate::weights::Progress;

/// Writes to `to` a padding of the model in `from` with about `parameters` parameters, as near as whole blocks come.
///
/// Tokenizer, template and generation settings are copied. Memory stays bounded by one row.
///
/// # Errors
/// When `from` is no model that can be padded, the size is below the smallest padding, or `to` cannot be written.
pub fn pad(
    from: &Path,
    parameters: u64,
    to: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PadReport, LoadError> {
    let (small, checkpoint) = super::original(from)?;
    let large = padded(&small, parameters)?;
    std::fs::create_dir_all(to).map_err(|source| LoadError::Write { path: to.into(), source })?;
    if std::fs::canonicalize(from).ok() == std::fs::canonicalize(to).ok() {
        return Err(LoadError::Pad(format!("{} is the model itself; choose another folder", to.display())));
    }
    let plan = plan(&small, &large, &checkpoint)?;
    let total = plan.iter().map(Planned::bytes).sum();
    // The configuration comes last: no half model can be loaded.
    let _ = std::fs::remove_file(to.join("config.json"));
    Output::write(&to.join("model.safetensors"), |file| {
        file.put(&header(&plan))?;
        let mut done = 0;
        for tensor in &plan {
            let mut bytes = vec![0; tensor.width() * tensor.size()];
            for row in 0..tensor.rows() {
                tensor.row(row, &mut bytes)?;
                file.put(&bytes)?;
            }
            done += tensor.bytes();
            progress(Progress { stage: "writing padded weights", done, total });
        }
        Ok(())
    })?;
    copy_others(from, to)?;
    write_config(from, to, &large)?;
    Ok(PadReport::of(&small, &large, total))
}

fn header(plan: &[Planned<'_>]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt", "padded_by": "cascadia"}));
    let mut at = 0;
    for t in plan {
        let (dtype, end) = (format!("{:?}", t.stored), at + t.bytes());
        header.insert(t.name.clone(), json!({"dtype": dtype, "shape": t.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Everything in the folder that is neither weights nor their configuration.
fn copy_others(from: &Path, to: &Path) -> Result<(), LoadError> {
    let read = |source| LoadError::Read { path: from.into(), source };
    for entry in std::fs::read_dir(from).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let wanted = matches!(extension, "json" | "jinja" | "txt" | "model" | "tiktoken");
        let weights = ["config.json", "model.safetensors.index.json"].iter().any(|n| name == Path::new(n));
        if path.is_file() && wanted && !weights {
            let target = to.join(name);
            std::fs::copy(&path, &target).map_err(|source| LoadError::Write { path: target, source })?;
        }
    }
    Ok(())
}

fn write_config(from: &Path, to: &Path, large: &Config) -> Result<(), LoadError> {
    let mut config = read_json(&from.join("config.json"))?;
    for (key, value) in [
        ("hidden_size", json!(large.hidden)),
        ("intermediate_size", json!(large.inner)),
        ("num_hidden_layers", json!(large.blocks.len())),
        ("num_attention_heads", json!(large.heads)),
        ("num_key_value_heads", json!(large.kv_heads)),
        ("head_dim", json!(large.head_dim)),
        ("rms_norm_eps", json!(large.norm_eps)),
    ] {
        config.insert(key.into(), value);
    }
    let path = to.join("config.json");
    let text = format!("{:#}\n", Value::Object(config));
    std::fs::write(&path, text).map_err(|source| LoadError::Write { path, source })
}
