//! A checkpoint of a real model's shape that computes the same function, bit for bit.
//!
//! A small expert lives in the CPU's cache, where overheads rule; a real one is bound by memory. Padding shows the cost
//! of size and nothing else: the padded model is no better than its original.
//!
//! * The residual stream becomes four times as wide; its new channels are zero for ever, because everything that would
//!   write into them is zero *and written to memory*. All other new weights are seeded noise.
//! * A norm now divides by four times the width, so its scale doubles; its weights are halved and its eps quartered.
//!   Both are exact only because the factor is a power of four.
//! * Heads keep their size and their ratio, and there are four times as many; the feed-forward layer becomes four times
//!   the new width; blocks that add zero are appended until the parameters are there.
//! * Original channels, heads and gates come first and fill whole blocks of 32, so Q8_0 blocks are the same blocks.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Names, Part, Stored, Style, Tensor, parts, shape};
use crate::config::{Config, Family, read_json};
use crate::error::LoadError;
use crate::fingerprint::finish;
use crate::quant::BLOCK;
use crate::weights::Progress;

/// How much wider the residual stream becomes.
const FACTOR: usize = 4;

/// What [`pad()`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PadReport {
    /// Parameters before.
    pub original: u64,
    /// Parameters after.
    pub parameters: u64,
    /// Blocks after.
    pub layers: usize,
    /// Width of the residual stream after.
    pub hidden: usize,
    /// Bytes of weights written.
    pub bytes: u64,
}

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
    if from.is_file() {
        return Err(LoadError::Pad("only Hugging Face folders can be padded, not GGUF files".into()));
    }
    let small = Config::read(from)?;
    let checkpoint = Checkpoint::open(from)?;
    checkpoint.check(&small)?;
    let large = padded(&small, parameters)?;
    std::fs::create_dir_all(to).map_err(|source| LoadError::Write { path: to.into(), source })?;
    if std::fs::canonicalize(from).ok() == std::fs::canonicalize(to).ok() {
        return Err(LoadError::Pad(format!("{} is the model itself; choose another folder", to.display())));
    }
    let plan = plan(&small, &large, &checkpoint)?;
    let bytes = plan.last().map_or(0, |t| t.end);
    // The weights get their name when they are whole, and the configuration comes last: no half model can be loaded.
    let _ = std::fs::remove_file(to.join("config.json"));
    let weights = to.join("model.safetensors");
    let unfinished = to.join("model.safetensors.unfinished");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Write { path, source }
    };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished).map_err(failed(&unfinished))?);
    write_header(&mut file, &plan).map_err(failed(&unfinished))?;
    for tensor in &plan {
        tensor.write(&mut file, &unfinished)?;
        progress(Progress { stage: "writing padded weights", done: tensor.end, total: bytes });
    }
    file.flush().map_err(failed(&unfinished))?;
    drop(file);
    std::fs::rename(&unfinished, &weights).map_err(failed(&weights))?;
    copy_others(from, to)?;
    write_config(from, to, &large)?;
    Ok(PadReport {
        original: small.parameters(),
        parameters: large.parameters(),
        layers: large.blocks.len(),
        hidden: large.hidden,
        bytes,
    })
}

/// The padded model's numbers.
fn padded(small: &Config, parameters: u64) -> Result<Config, LoadError> {
    if small.family != Family::Llama || small.qkv_bias || small.output_bias {
        return Err(LoadError::Pad(format!("the model is a {:?}, and only plain Llamas can be padded", small.family)));
    }
    for (what, size) in [
        ("hidden_size", small.hidden),
        ("intermediate_size", small.inner),
        ("heads x head_dim", small.heads * small.head_dim),
    ] {
        if !size.is_multiple_of(BLOCK) {
            return Err(LoadError::Pad(format!(
                "{what} is {size}, and only multiples of {BLOCK} keep Q8_0 blocks in place"
            )));
        }
    }
    let hidden = small.hidden * FACTOR;
    let mut large = Config {
        hidden,
        inner: (4 * hidden).max(small.inner),
        heads: small.heads * FACTOR,
        kv_heads: small.kv_heads * FACTOR,
        norm_eps: small.norm_eps / FACTOR as f64,
        ..small.clone()
    };
    let least = large.parameters();
    let block = (least - Config { blocks: Vec::new(), ..large.clone() }.parameters()) / large.blocks.len() as u64;
    if parameters + block / 2 < least {
        let millions = |n: u64| n as f64 / 1e6;
        return Err(LoadError::Pad(format!(
            "{:.1} M parameters were asked for, and the smallest padding of this model has {:.1} M; ask for that or more",
            millions(parameters),
            millions(least)
        )));
    }
    let more = ((parameters + block / 2).saturating_sub(least) / block) as usize;
    large.blocks.resize(small.blocks.len() + more, small.blocks[0]);
    Ok(large)
}

/// What stands outside the original's rows and columns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Zero: it would write into the residual stream.
    Zero,
    /// Noise everywhere: it only reads zeros, or is read by zeros.
    Noise,
}

/// A tensor to write.
struct Planned<'a> {
    name: String,
    shape: Vec<usize>,
    stored: Stored,
    /// The original in the upper left corner.
    corner: Option<Tensor<'a>>,
    fill: Fill,
    /// Norm weights are halved (and always `f32`).
    halved: bool,
    start: u64,
    end: u64,
}

/// All tensors in the order of the file.
fn plan<'a>(small: &Config, large: &Config, checkpoint: &'a Checkpoint) -> Result<Vec<Planned<'a>>, LoadError> {
    let mut at = 0;
    let mut plan = Vec::new();
    let names = Names::new(Style::HuggingFace, large);
    let mut all = vec![(names.embedding(), None, None), (names.norm(), None, None)];
    if !large.tied {
        all.push((names.head(), None, None));
    }
    for layer in 0..large.blocks.len() {
        all.extend(parts(large).into_iter().map(|part| (names.weight(layer, part), Some(layer), Some(part))));
    }
    let sized = |c: &Config, part: Option<Part>, name: &str| match part {
        Some(part) => shape(c, part),
        None if *name == names.norm() => vec![c.hidden],
        None => vec![c.vocabulary, c.hidden],
    };
    for (name, layer, part) in all {
        let original = layer.is_none_or(|layer| layer < small.blocks.len());
        // Blocks beyond the original's take their types from its first.
        let like = match part {
            Some(part) if !original => names.weight(0, part),
            _ => name.clone(),
        };
        let corner = checkpoint.tensor(&like, &sized(small, part, &like))?;
        let shape = sized(large, part, &name);
        let halved = shape.len() == 1;
        let writes = ["embed_tokens", "o_proj", "down_proj"].iter().any(|part| name.contains(part));
        let stored = if halved { Stored::F32 } else { corner.stored };
        let bytes = (shape.iter().product::<usize>() * if stored == Stored::F32 { 4 } else { 2 }) as u64;
        let fill = if writes { Fill::Zero } else { Fill::Noise };
        let corner = original.then_some(corner);
        plan.push(Planned { name, shape, stored, corner, fill, halved, start: at, end: at + bytes });
        at += bytes;
    }
    Ok(plan)
}

fn write_header(to: &mut impl Write, plan: &[Planned<'_>]) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt", "padded_by": "cascadia"}));
    for t in plan {
        let dtype = format!("{:?}", t.stored);
        header.insert(t.name.clone(), json!({"dtype": dtype, "shape": t.shape, "data_offsets": [t.start, t.end]}));
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    to.write_all(text.as_bytes())
}

impl Planned<'_> {
    fn write(&self, to: &mut impl Write, path: &Path) -> Result<(), LoadError> {
        let (rows, width) = match self.shape[..] {
            [rows, width] => (rows, width),
            _ => (1, self.shape[0]),
        };
        let size = if self.stored == Stored::F32 { 4 } else { 2 };
        let mut noise = Noise::new(&self.name, self.stored, width);
        let mut bytes = vec![0; width * size];
        let mut original = Vec::new();
        for row in 0..rows {
            match self.fill {
                Fill::Zero => bytes.fill(0),
                Fill::Noise => noise.fill(&mut bytes, size),
            }
            if let Some(corner) = self.corner.as_ref().filter(|c| c.shape.len() == 1 || row < c.shape[0]) {
                original.resize(corner.shape.last().copied().unwrap_or(0), 0.0);
                corner.row(row, &mut original)?;
                for (to, &w) in bytes.chunks_exact_mut(size).zip(&original) {
                    let w = if self.halved { self.half(w)? } else { w };
                    to.copy_from_slice(&encode(w, self.stored)[..size]);
                }
            }
            to.write_all(&bytes).map_err(|source| LoadError::Write { path: path.into(), source })?;
        }
        Ok(())
    }

    fn half(&self, weight: f32) -> Result<f32, LoadError> {
        let half = weight / 2.0;
        if half * 2.0 == weight {
            Ok(half)
        } else {
            Err(LoadError::Pad(format!("`{}` holds a weight so small that its half is not exact", self.name)))
        }
    }
}

/// A weight as stored; it came from that type (or a narrower one), so nothing is lost.
fn encode(weight: f32, stored: Stored) -> [u8; 4] {
    let narrow = |bits: u16| {
        let [a, b] = bits.to_le_bytes();
        [a, b, 0, 0]
    };
    match stored {
        Stored::F16 => narrow(f16::from_f32(weight).to_bits()),
        Stored::BF16 => narrow(bf16::from_f32(weight).to_bits()),
        _ => weight.to_le_bytes(),
    }
}

/// Seeded noise: 256 values, evenly spread, drawn by splitmix64.
struct Noise {
    values: Vec<[u8; 4]>,
    state: u64,
}

impl Noise {
    fn new(name: &str, stored: Stored, width: usize) -> Self {
        let spread = 1.0 / (width as f32).sqrt();
        let values = (0..256).map(|i| encode((i as f32 - 127.5) / 127.5 * spread, stored)).collect();
        let state = name.bytes().fold(0x5eed, |h, b| finish(h ^ u64::from(b)));
        Self { values, state }
    }

    fn fill(&mut self, bytes: &mut [u8], size: usize) {
        for eight in bytes.chunks_mut(8 * size) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let drawn = finish(self.state).to_le_bytes();
            for (to, index) in eight.chunks_exact_mut(size).zip(drawn) {
                to.copy_from_slice(&self.values[usize::from(index)][..size]);
            }
        }
    }
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
