//! A model, padded or as it is, as a GGUF file: the blocks of Q8_0 that loading the folder would make.

use std::path::Path;

use cascadia_gguf::{ALIGNMENT, TensorType, Value, write_head};

use super::{Output, PadReport, Planned, original, padded, plan};
use crate::checkpoint::Tensor;
use crate::config::{Config, RopeScaling};
use crate::error::LoadError;
use crate::names::{Names, Part, Style};
use crate::quant::{BLOCK, quantise_block};
use crate::weights::Progress;

/// `general.file_type` of files that are mostly Q8_0.
const MOSTLY_Q8_0: u64 = 7;

/// Writes the model in `from`, padded to about `parameters` parameters if that is given, to the file `to`: norms in F32,
/// all else in Q8_0, with the same scales and bytes as the folder loaded as `q8_0`. `text` is what the file says of its
/// tokenizer. Memory stays bounded by one row.
///
/// # Errors
/// When `from` is no plain Llama, the size is below the smallest padding, or `to` cannot be written.
pub fn write_gguf(
    from: &Path,
    parameters: Option<u64>,
    to: &Path,
    text: Vec<(String, Value)>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PadReport, LoadError> {
    let (small, checkpoint) = original(from)?;
    let rope = &small.ropes[0];
    if rope.scaling != RopeScaling::None || small.blocks.iter().any(|block| block.window.is_some()) {
        return Err(LoadError::Pad("models with rope scaling or a sliding window cannot be written as GGUF".into()));
    }
    let large = match parameters {
        Some(parameters) => padded(&small, parameters)?,
        None => small.clone(),
    };
    let plan = plan(&small, &large, &checkpoint)?;
    let names = Names::new(Style::Gguf, &large);
    let table: Vec<_> = plan.iter().map(|t| (name(&names, t), t.shape.clone(), kind(t))).collect();
    let mut metadata = metadata(&large, from);
    metadata.extend(text);
    let head = write_head(&metadata, &table).map_err(|e| LoadError::Pad(e.to_string()))?;
    let total: u64 = plan.iter().map(|t| (t.rows() * t.width() * 34 / 32) as u64).sum();
    Output::write(to, |file| {
        file.put(&head)?;
        let mut done = 0;
        for tensor in &plan {
            let written = write(tensor, large.head_dim, from, file)?;
            file.put(&[0; ALIGNMENT][..written.next_multiple_of(ALIGNMENT) - written])?;
            done += written as u64;
            progress(Progress { stage: "writing GGUF", done, total: total.max(done) });
        }
        Ok(())
    })?;
    let bytes = std::fs::metadata(to).map_err(|source| LoadError::Read { path: to.into(), source })?.len();
    Ok(PadReport::of(&small, &large, bytes))
}

fn name(names: &Names, tensor: &Planned<'_>) -> String {
    match (tensor.layer, tensor.part) {
        (Some(layer), Some(part)) => names.weight(layer, part),
        _ if tensor.shape.len() == 1 => names.norm(),
        _ if tensor.name.contains("lm_head") => names.head(),
        _ => names.embedding(),
    }
}

fn kind(tensor: &Planned<'_>) -> TensorType {
    if tensor.shape.len() == 1 { TensorType::F32 } else { TensorType::Q8_0 }
}

fn metadata(c: &Config, from: &Path) -> Vec<(String, Value)> {
    let number = |n: usize| Value::Unsigned(n as u64);
    let name = from.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    [
        ("general.architecture", Value::String("llama".into())),
        ("general.name", Value::String(name)),
        ("general.file_type", Value::Unsigned(MOSTLY_Q8_0)),
        ("general.quantization_version", Value::Unsigned(2)),
        ("llama.vocab_size", number(c.vocabulary)),
        ("llama.context_length", number(c.context)),
        ("llama.embedding_length", number(c.hidden)),
        ("llama.block_count", number(c.blocks.len())),
        ("llama.feed_forward_length", number(c.inner)),
        ("llama.attention.head_count", number(c.heads)),
        ("llama.attention.head_count_kv", number(c.kv_heads)),
        ("llama.attention.key_length", number(c.head_dim)),
        ("llama.attention.value_length", number(c.head_dim)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(c.norm_eps)),
        ("llama.rope.dimension_count", number(c.ropes[0].dims)),
        ("llama.rope.freq_base", Value::Float(c.ropes[0].theta)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// Writes a tensor's rows; the bytes written.
fn write(tensor: &Planned<'_>, head_dim: usize, from: &Path, file: &mut Output) -> Result<usize, LoadError> {
    let (width, interleaved) = (tensor.width(), matches!(tensor.part, Some(Part::Queries | Part::Keys)));
    let (mut bytes, mut floats, mut written) = (vec![0; width * tensor.size()], vec![0.0; width], 0);
    for place in 0..tensor.rows() {
        let index = if interleaved { uninterleaved(place, head_dim) } else { place };
        tensor.row(index, &mut bytes)?;
        let row =
            Tensor { path: from, name: tensor.name.clone(), shape: vec![width], stored: tensor.stored, bytes: &bytes };
        row.row(0, &mut floats)?;
        let encoded = if kind(tensor) == TensorType::F32 {
            floats.iter().flat_map(|w| w.to_le_bytes()).collect()
        } else {
            quantised(&floats).ok_or_else(|| LoadError::NotFinite { path: from.into(), tensor: tensor.name.clone() })?
        };
        file.put(&encoded)?;
        written += encoded.len();
    }
    Ok(written)
}

/// A row as blocks of Q8_0. `None` if a scale does not fit binary16.
fn quantised(row: &[f32]) -> Option<Vec<u8>> {
    let (mut encoded, mut block) = (Vec::with_capacity(row.len() / BLOCK * (2 + BLOCK)), [0; BLOCK]);
    for weights in row.chunks_exact(BLOCK) {
        let scale = quantise_block(weights, &mut block)?;
        encoded.extend(scale.to_le_bytes());
        encoded.extend(block.map(|q| q as u8));
    }
    Some(encoded)
}

/// GGUF's Llamas turn neighbours: which row of a head stands at `place`, where its two halves are interleaved.
fn uninterleaved(place: usize, head_dim: usize) -> usize {
    let (head, at) = (place / head_dim, place % head_dim);
    head * head_dim + at % 2 * (head_dim / 2) + at / 2
}
