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

mod folder;
mod gguf;
mod noise;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, Stored, Tensor};
use crate::config::{Config, Family};
use crate::error::LoadError;
use crate::names::{Names, Part, Style, parts, shape};
use crate::quant::BLOCK;
pub use folder::pad;
pub use gguf::write_gguf;
use noise::{Noise, encode};

/// How much wider the residual stream becomes.
const FACTOR: usize = 4;

/// What [`pad()`] or [`write_gguf`] wrote.
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

impl PadReport {
    fn of(small: &Config, large: &Config, bytes: u64) -> Self {
        Self {
            original: small.parameters(),
            parameters: large.parameters(),
            layers: large.blocks.len(),
            hidden: large.hidden,
            bytes,
        }
    }
}

/// The model that is padded.
fn original(from: &Path) -> Result<(Config, Checkpoint), LoadError> {
    if from.is_file() {
        return Err(LoadError::Pad("only Hugging Face folders can be padded, not GGUF files".into()));
    }
    let small = Config::read(from)?;
    let checkpoint = Checkpoint::open(from)?;
    checkpoint.check(&small)?;
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
    Ok((small, checkpoint))
}

/// A file of weights that has its name only when it is whole.
struct Output {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Output {
    fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> LoadError + use<> {
        let path = path.to_owned();
        move |source| LoadError::Write { path, source }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        self.file.write_all(bytes).map_err(Self::failed(&self.path))
    }

    /// Writes `path` through `write`.
    fn write(path: &Path, write: impl FnOnce(&mut Self) -> Result<(), LoadError>) -> Result<(), LoadError> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let file = BufWriter::with_capacity(1 << 20, File::create(&unfinished).map_err(Self::failed(&unfinished))?);
        let mut output = Self { path: unfinished, file };
        write(&mut output)?;
        output.file.flush().map_err(Self::failed(&output.path))?;
        std::fs::rename(&output.path, path).map_err(Self::failed(path))
    }
}

/// The padded model's numbers.
fn padded(small: &Config, parameters: u64) -> Result<Config, LoadError> {
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
    /// In a Hugging Face folder; noise depends on it.
    name: String,
    layer: Option<usize>,
    part: Option<Part>,
    shape: Vec<usize>,
    stored: Stored,
    /// The original in the upper left corner.
    corner: Option<Tensor<'a>>,
    fill: Fill,
    /// Norm weights of a padded model are halved (and always `f32`).
    halved: bool,
    noise: Noise,
}

/// All tensors in the order of the file; `large` may be `small` itself.
fn plan<'a>(small: &Config, large: &Config, checkpoint: &'a Checkpoint) -> Result<Vec<Planned<'a>>, LoadError> {
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
        let norm = shape.len() == 1;
        let writes = ["embed_tokens", "o_proj", "down_proj"].iter().any(|part| name.contains(part));
        let stored = if norm { Stored::F32 } else { corner.stored };
        let fill = if writes { Fill::Zero } else { Fill::Noise };
        let corner = original.then_some(corner);
        let noise = Noise::new(&name, stored, shape[shape.len() - 1]);
        let halved = norm && large.hidden != small.hidden;
        plan.push(Planned { name, layer, part, shape, stored, corner, fill, halved, noise });
    }
    Ok(plan)
}

impl Planned<'_> {
    fn rows(&self) -> usize {
        if self.shape.len() == 1 { 1 } else { self.shape[0] }
    }

    fn width(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Bytes of a value.
    fn size(&self) -> usize {
        if self.stored == Stored::F32 { 4 } else { 2 }
    }

    /// Bytes of all rows.
    fn bytes(&self) -> u64 {
        (self.rows() * self.width() * self.size()) as u64
    }

    /// Row `index` as stored in a folder.
    fn row(&self, index: usize, bytes: &mut [u8]) -> Result<(), LoadError> {
        let size = self.size();
        match self.fill {
            Fill::Zero => bytes.fill(0),
            Fill::Noise => self.noise.fill(index, bytes, size),
        }
        if let Some(corner) = self.corner.as_ref().filter(|c| c.shape.len() == 1 || index < c.shape[0]) {
            let mut original = vec![0.0; corner.shape.last().copied().unwrap_or(0)];
            corner.row(index, &mut original)?;
            for (to, &w) in bytes.chunks_exact_mut(size).zip(&original) {
                let w = if self.halved { self.half(w)? } else { w };
                to.copy_from_slice(&encode(w, self.stored)[..size]);
            }
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
