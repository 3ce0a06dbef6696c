//! The metadata of a GGUF file: the same numbers under other names.

use cascadia_gguf::{Gguf, Value};

use super::{Activation, BlockConfig, Config, Family, RopeConfig, RopeScaling};
use crate::checkpoint::Checkpoint;
use crate::error::LoadError;

const ARCHITECTURES: [(&str, Family); 6] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("phi3", Family::Phi3),
];

/// Keys that would change the result and are not supported, and what they may say.
const NEUTRAL: [(&str, f64); 11] = [
    ("expert_count", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attention.key_length_mla", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
    ("rope.scaling.yarn_ext_factor", 0.0),
    ("attention.temperature_scale", 0.0),
    ("attention.shared_kv_layers", 0.0),
];

/// A file's metadata, keys without the architecture before them.
struct Metadata<'a> {
    checkpoint: &'a Checkpoint,
    gguf: &'a Gguf,
    architecture: &'a str,
}

/// Reads the configuration of a GGUF file.
pub(crate) fn read(checkpoint: &Checkpoint, gguf: &Gguf) -> Result<Config, LoadError> {
    let named = gguf.get("general.architecture").and_then(Value::as_str);
    let known = ARCHITECTURES.iter().find(|(name, _)| Some(*name) == named);
    let Some(&(architecture, family)) = known else {
        return Err(LoadError::Architecture {
            path: checkpoint.path().into(),
            found: gguf.get("general.architecture").map_or_else(|| "(none)".into(), ToString::to_string),
            supported: ARCHITECTURES.map(|(name, _)| name).join(", "),
        });
    };
    let metadata = Metadata { checkpoint, gguf, architecture };
    for (key, neutral) in NEUTRAL {
        if let Some(value) = metadata.get(key).filter(|v| v.as_f64() != Some(neutral)) {
            return Err(metadata.wrong(key, format!("is {value}, which is not supported; use a model without it")));
        }
    }
    if metadata.get("attention.causal").is_some_and(|v| v.as_bool() == Some(false)) {
        return Err(metadata.wrong("attention.causal", "is false; only causal models generate text".into()));
    }
    metadata.config(family)
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.gguf.get(&self.key(key))
    }

    fn wrong(&self, key: &str, problem: String) -> LoadError {
        LoadError::Key { path: self.checkpoint.path().into(), key: self.key(key), problem }
    }

    /// A whole number from 1 to 2^28.
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize, LoadError> {
        const LARGEST: u64 = 1 << 28;
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.wrong(key, "is missing; convert the model again".into())),
            (Some(value), _) => match value.as_u64().filter(|n| (1..=LARGEST).contains(n)) {
                Some(n) => Ok(n as usize),
                None => Err(self.wrong(key, format!("is {value}; it must be a whole number from 1 to {LARGEST}"))),
            },
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x >= 0.0) {
                Some(x) => Ok(x),
                None => Err(self.wrong(key, format!("is {value}; it must be a number, and not below zero"))),
            },
        }
    }

    /// A number above zero; zero is none.
    fn optional(&self, key: &str, default: f64) -> Result<Option<f32>, LoadError> {
        Ok(Some(self.number(key, default)? as f32).filter(|x| *x > 0.0))
    }

    fn config(&self, family: Family) -> Result<Config, LoadError> {
        let hidden = self.size("embedding_length", None)?;
        let heads = self.size("attention.head_count", None)?;
        let kv_heads = self.size("attention.head_count_kv", Some(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide attention.head_count = {heads}");
            return Err(self.wrong("attention.head_count_kv", problem));
        }
        let head_dim = self.size("attention.key_length", hidden.is_multiple_of(heads).then_some(hidden / heads))?;
        if !head_dim.is_multiple_of(2) || self.size("attention.value_length", Some(head_dim))? != head_dim {
            let problem = format!("is {head_dim}; it must be even, and attention.value_length the same");
            return Err(self.wrong("attention.key_length", problem));
        }
        let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        let cap = |key: &str, gemma2: f64| match family {
            Family::Gemma2 => self.optional(key, gemma2),
            Family::Gemma3 => self.optional(key, 0.0),
            _ if self.get(key).is_some() => Err(self.wrong(key, "is there, and this architecture has none".into())),
            _ => Ok(None),
        };
        let tensor = |name: &str| self.checkpoint.shape(name);
        let vocabulary = tensor("token_embd.weight").and_then(|shape| shape.first().copied());
        let vocabulary = vocabulary.ok_or_else(|| LoadError::Missing {
            path: self.checkpoint.path().into(),
            tensor: "token_embd.weight".into(),
        })?;
        let blocks = self.blocks(family)?;
        // The largest of both have another scale, and no key says so.
        let largest = matches!((family, blocks.len()), (Family::Gemma2, 46) | (Family::Gemma3, 62));
        let scalar = if largest { hidden as f64 / heads as f64 } else { head_dim as f64 };
        Ok(Config {
            family,
            hidden,
            inner: self.size("feed_forward_length", None)?,
            blocks,
            heads,
            kv_heads,
            head_dim,
            norm_eps: self.number("attention.layer_norm_rms_epsilon", 1e-6)?,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            query_scale: (1.0 / scalar.sqrt()) as f32,
            attention_cap: cap("attn_logit_softcapping", 50.0)?,
            logit_cap: cap("final_logit_softcapping", 30.0)?,
            embedding_scale: gemma.then_some((hidden as f64).sqrt() as f32),
            qkv_bias: family == Family::Qwen2 || tensor("blk.0.attn_q.bias").is_some(),
            output_bias: tensor("blk.0.attn_output.bias").is_some(),
            head_norms: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: gemma,
            ropes: self.ropes(family, head_dim)?,
            vocabulary,
            context: self.size("context_length", None)?,
            tied: tensor("output.weight").is_none(),
            eos: self.eos(vocabulary)?,
        })
    }

    fn blocks(&self, family: Family) -> Result<Vec<BlockConfig>, LoadError> {
        const MOST: usize = 1 << 12;
        let layers = self.size("block_count", None)?;
        if layers > MOST {
            return Err(self.wrong("block_count", format!("is {layers}; more than {MOST} are refused")));
        }
        let default = if matches!(family, Family::Gemma2 | Family::Gemma3) { 4096.0 } else { 0.0 };
        let window = Some(self.number("attention.sliding_window", default)? as usize).filter(|w| *w > 0);
        let every = match family {
            Family::Gemma2 => 2,
            Family::Gemma3 => 6,
            _ => usize::MAX,
        };
        let pattern = "attention.sliding_window_pattern";
        let listed = self.get(pattern).and_then(Value::as_array);
        if listed.is_some_and(|list| list.len() != layers) {
            return Err(self.wrong(pattern, format!("must be a number, or a list of {layers}")));
        }
        let every = if listed.is_some() { every } else { self.size(pattern, Some(every))? };
        let slides = |layer: usize| match listed {
            Some(list) => list[layer].as_bool() == Some(true) || list[layer].as_u64() == Some(1),
            None => !(layer + 1).is_multiple_of(every),
        };
        let local = usize::from(family == Family::Gemma3);
        let block = |layer: usize| BlockConfig {
            window: window.filter(|_| slides(layer)),
            rope: if slides(layer) { local } else { 0 },
        };
        Ok((0..layers).map(block).collect())
    }

    fn ropes(&self, family: Family, head_dim: usize) -> Result<Vec<RopeConfig>, LoadError> {
        let gemma3 = family == Family::Gemma3;
        let theta = self.number("rope.freq_base", if gemma3 { 1_000_000.0 } else { 10_000.0 })?;
        let dims = self.size("rope.dimension_count", Some(head_dim))?;
        if theta <= 0.0 || dims > head_dim || !dims.is_multiple_of(2) || dims != head_dim && family != Family::Phi3 {
            let problem = format!("is {dims} of {head_dim} with the base {theta}, which is not supported");
            return Err(self.wrong("rope.dimension_count", problem));
        }
        let kind = self.get("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
        let legacy = self.number("rope.scale_linear", 1.0)?;
        let factor = self.number("rope.scaling.factor", legacy)? as f32;
        let scaling = match kind {
            _ if self.checkpoint.shape("rope_factors_long.weight").is_some() => self.long_rope(dims)?,
            _ if self.checkpoint.shape("rope_freqs.weight").is_some() => {
                RopeScaling::Factors(self.factors("rope_freqs.weight", dims)?)
            }
            "none" | "linear" if factor == 1.0 || factor == 0.0 => RopeScaling::None,
            "linear" => RopeScaling::Linear(factor),
            "none" if self.get("rope.scaling.type").is_none() => RopeScaling::Linear(factor),
            "none" => RopeScaling::None,
            other => {
                let problem = format!("is `{other}`; none, linear and long-rope factors are supported");
                return Err(self.wrong("rope.scaling.type", problem));
            }
        };
        let attention_factor = self.number("rope.scaling.attn_factor", 1.0)? as f32;
        let global = RopeConfig { theta, dims, scaling, attention_factor };
        if !gemma3 {
            return Ok(vec![global]);
        }
        let theta = self.number("rope.freq_base_swa", 10_000.0)?;
        if theta <= 0.0 {
            return Err(self.wrong("rope.freq_base_swa", format!("is {theta}; it must be above zero")));
        }
        Ok(vec![global, RopeConfig { theta, dims, scaling: RopeScaling::None, attention_factor: 1.0 }])
    }

    fn long_rope(&self, dims: usize) -> Result<RopeScaling, LoadError> {
        Ok(RopeScaling::Long {
            short: self.factors("rope_factors_short.weight", dims)?,
            long: self.factors("rope_factors_long.weight", dims)?,
            original_context: self.size("rope.scaling.original_context_length", None)?,
        })
    }

    /// What the frequencies are divided by.
    fn factors(&self, name: &str, dims: usize) -> Result<Vec<f32>, LoadError> {
        // The tensor first: it bears out the size that memory is then asked for.
        let tensor = self.checkpoint.tensor(name, &[dims / 2])?;
        let mut factors = vec![0.0; dims / 2];
        tensor.row(0, &mut factors)?;
        match factors.iter().all(|f| *f > 0.0) {
            true => Ok(factors),
            false => Err(LoadError::NotFinite { path: self.checkpoint.path().into(), tensor: name.into() }),
        }
    }

    fn eos(&self, vocabulary: usize) -> Result<Vec<u32>, LoadError> {
        let mut eos = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            let key = format!("tokenizer.ggml.{key}");
            let Some(value) = self.gguf.get(&key) else { continue };
            match value.as_u64().filter(|id| (*id as usize) < vocabulary) {
                Some(id) if !eos.contains(&(id as u32)) => eos.push(id as u32),
                Some(_) => {}
                None => {
                    let problem = format!("is {value}, outside the vocabulary of {vocabulary}");
                    return Err(LoadError::Key { path: self.checkpoint.path().into(), key, problem });
                }
            }
        }
        Ok(eos)
    }
}
