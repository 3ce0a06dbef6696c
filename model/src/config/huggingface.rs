//! `config.json` as Hugging Face writes it: what is supported, and a refusal of all else that would change the result.

use std::path::Path;

use serde_json::{Map, Value};

use super::json::Json;
use super::{Activation, BlockConfig, Config, Family, RopeConfig};
use crate::error::LoadError;

/// Architectures, and whether the model's own keys stand in `text_config`.
const ARCHITECTURES: [(&str, Family, bool); 8] = [
    ("LlamaForCausalLM", Family::Llama, false),
    ("MistralForCausalLM", Family::Mistral, false),
    ("Qwen2ForCausalLM", Family::Qwen2, false),
    ("Qwen3ForCausalLM", Family::Qwen3, false),
    ("Gemma2ForCausalLM", Family::Gemma2, false),
    ("Gemma3ForCausalLM", Family::Gemma3, false),
    ("Gemma3ForConditionalGeneration", Family::Gemma3, true),
    ("Phi3ForCausalLM", Family::Phi3, false),
];

/// Keys that would change the result, what they may say, and the families that read them.
const NEUTRAL: [(&str, &[&str], &[Family]); 19] = [
    ("attention_bias", &["false"], &[Family::Llama, Family::Qwen3, Family::Gemma2, Family::Gemma3]),
    ("mlp_bias", &["false"], &[]),
    ("lm_head_bias", &["false"], &[]),
    ("quantization_config", &[], &[]),
    ("compression_config", &[], &[]),
    ("sliding_window", &[], &WINDOWED),
    ("use_sliding_window", &["false"], &[Family::Qwen2, Family::Qwen3]),
    ("partial_rotary_factor", &["1", "1.0"], &[Family::Phi3]),
    ("attn_logit_softcapping", &[], &GEMMAS),
    ("final_logit_softcapping", &[], &GEMMAS),
    ("query_pre_attn_scalar", &[], &GEMMAS),
    ("use_bidirectional_attention", &["false"], &[]),
    ("attention_multiplier", &[], &[]),
    ("embedding_multiplier", &[], &[]),
    ("residual_multiplier", &[], &[]),
    ("logits_scaling", &[], &[]),
    ("clip_qkv", &[], &[]),
    ("num_local_experts", &[], &[]),
    ("no_rope_layers", &[], &[]),
];
const GEMMAS: [Family; 2] = [Family::Gemma2, Family::Gemma3];
const WINDOWED: [Family; 6] =
    [Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gemma2, Family::Gemma3, Family::Phi3];

/// Reads the two files of a folder.
pub(super) fn read(folder: &Path) -> Result<Config, LoadError> {
    let mut json = Json::read(folder.join("config.json"))?;
    let named = json.map.get("architectures").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let known = ARCHITECTURES.iter().find(|(name, ..)| named.iter().any(|n| n == name));
    let Some(&(_, family, nested)) = known else {
        let found = json.map.get("architectures").map_or_else(|| "(none)".to_owned(), ToString::to_string);
        let supported = ARCHITECTURES.map(|(name, ..)| name).join(", ");
        return Err(LoadError::Architecture { path: json.path, found, supported });
    };
    if nested {
        let text = json.object("text_config")?.cloned();
        let outer = std::mem::take(&mut json.map);
        json.map =
            text.ok_or_else(|| json.wrong("text_config", "is missing; take config.json from the model".into()))?;
        for key in ["eos_token_id", "quantization_config", "tie_word_embeddings"] {
            if let Some(value) = outer.get(key) {
                json.map.entry(key).or_insert_with(|| value.clone());
            }
        }
    }
    for (key, allowed, readers) in NEUTRAL {
        let value = json.get(key).filter(|_| !readers.contains(&family)).map(ToString::to_string);
        if let Some(found) = value.filter(|f| !allowed.contains(&f.as_str())) {
            let problem = format!("is {found}, which is not supported for {family:?}; use a model without it");
            return Err(json.wrong(key, problem));
        }
    }
    let mut config = json.config(family)?;
    let path = folder.join("generation_config.json");
    let generation = if path.exists() { Some(Json::read(path)?) } else { None };
    let says = generation.filter(|generation| generation.get("eos_token_id").is_some()).unwrap_or(json);
    let eos = says.ids("eos_token_id")?;
    if let Some(id) = eos.iter().find(|&&id| id as usize >= config.vocabulary) {
        return Err(says.wrong("eos_token_id", format!("is {id}, outside the vocabulary of {}", config.vocabulary)));
    }
    config.eos = eos;
    Ok(config)
}

/// What a family's configurations leave out.
struct Defaults {
    heads: Option<usize>,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    vocabulary: Option<usize>,
    context: usize,
    norm_eps: f64,
    theta: f64,
    window: Option<f64>,
    activation: &'static str,
}

impl Defaults {
    fn of(family: Family) -> Self {
        let plain = Self {
            heads: None,
            kv_heads: None,
            head_dim: None,
            vocabulary: None,
            context: 2048,
            norm_eps: 1e-6,
            theta: 10_000.0,
            window: Some(4096.0),
            activation: "silu",
        };
        let gemma = |context, theta| Self {
            heads: Some(8),
            kv_heads: Some(4),
            head_dim: Some(256),
            activation: "gelu_pytorch_tanh",
            context,
            theta,
            ..plain
        };
        match family {
            Family::Llama | Family::Qwen2 => plain,
            Family::Mistral => Self { context: 131_072, ..plain },
            Family::Qwen3 => Self { head_dim: Some(128), context: 32_768, ..plain },
            Family::Phi3 => Self { norm_eps: 1e-5, context: 4096, window: None, ..plain },
            Family::Gemma2 => gemma(8192, 10_000.0),
            Family::Gemma3 => Self { vocabulary: Some(262_208), ..gemma(131_072, 1_000_000.0) },
        }
    }
}

impl Json {
    fn config(&self, family: Family) -> Result<Config, LoadError> {
        let defaults = Defaults::of(family);
        let hidden = self.size("hidden_size", None)?;
        let heads = self.size("num_attention_heads", defaults.heads)?;
        let kv_heads = self.size("num_key_value_heads", Some(defaults.kv_heads.unwrap_or(heads)))?;
        let even = hidden.is_multiple_of(heads).then_some(hidden / heads);
        let head_dim = self.size("head_dim", defaults.head_dim.or(even))?;
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide num_attention_heads = {heads}");
            return Err(self.wrong("num_key_value_heads", problem));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(self.wrong("head_dim", format!("is {head_dim}; rotary positions need an even number")));
        }
        let gemma = GEMMAS.contains(&family);
        let norm_eps = self.number(&self.map, "rms_norm_eps", Some(defaults.norm_eps))?;
        if norm_eps < 0.0 {
            return Err(self.wrong("rms_norm_eps", format!("is {norm_eps}; it may not be negative")));
        }
        let cap = |key: &str, absent: f64| {
            let absent = (family == Family::Gemma2).then_some(absent);
            if gemma { self.optional(key, absent).map(|cap| cap.map(|cap| cap as f32)) } else { Ok(None) }
        };
        let scalar = if gemma { self.optional("query_pre_attn_scalar", Some(256.0))? } else { None };
        let attention_bias = self.flag("attention_bias", false)?;
        let ropes = self.ropes(family, head_dim, &defaults)?;
        Ok(Config {
            family,
            hidden,
            inner: self.size("intermediate_size", None)?,
            blocks: self.blocks(family, &defaults, ropes.len() - 1)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps,
            activation: self.activation(&defaults)?,
            query_scale: (1.0 / scalar.unwrap_or(head_dim as f64).sqrt()) as f32,
            attention_cap: cap("attn_logit_softcapping", 50.0)?,
            logit_cap: cap("final_logit_softcapping", 30.0)?,
            embedding_scale: gemma.then_some((hidden as f64).sqrt() as f32),
            qkv_bias: attention_bias || family == Family::Qwen2,
            output_bias: attention_bias,
            head_norms: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: gemma,
            ropes,
            vocabulary: self.size("vocab_size", defaults.vocabulary)?,
            context: self.size("max_position_embeddings", Some(defaults.context))?,
            tied: self.flag("tie_word_embeddings", gemma)?,
            eos: Vec::new(),
        })
    }

    fn activation(&self, defaults: &Defaults) -> Result<Activation, LoadError> {
        // Gemma's first exports name another one in `hidden_act`, and it is not used.
        let key = if defaults.activation == "silu" { "hidden_act" } else { "hidden_activation" };
        match self.get(key).map_or(Some(defaults.activation), Value::as_str) {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            _ => {
                let found = self.get(key).map(ToString::to_string).unwrap_or_default();
                Err(self.wrong(key, format!("is {found}; silu and gelu_pytorch_tanh are supported")))
            }
        }
    }

    /// Which blocks have a window, and what they turn with; the last of the ropes is for blocks that have one.
    fn blocks(&self, family: Family, defaults: &Defaults, local_rope: usize) -> Result<Vec<BlockConfig>, LoadError> {
        /// Beyond any model; a list of this length is still small.
        const MOST: usize = 1 << 12;
        let layers = self.size("num_hidden_layers", None)?;
        if layers > MOST {
            return Err(self.wrong("num_hidden_layers", format!("is {layers}; more than {MOST} are refused")));
        }
        let used = match family {
            Family::Llama => false,
            Family::Qwen2 | Family::Qwen3 => self.flag("use_sliding_window", false)?,
            _ => true,
        };
        let window = if used { self.optional("sliding_window", defaults.window)? } else { None };
        let window = window.map(|w| w as usize);
        if window == Some(0) {
            return Err(self.wrong("sliding_window", "is below 1; a query sees at least itself".into()));
        }
        let first = match family {
            Family::Qwen2 | Family::Qwen3 => self.number(&self.map, "max_window_layers", Some(28.0))? as usize,
            _ => 0,
        };
        let pattern = match family {
            Family::Gemma2 => 2,
            Family::Gemma3 => self.size("sliding_window_pattern", Some(6))?,
            _ => usize::MAX,
        };
        let listed = match self.get("layer_types") {
            None => None,
            Some(list) => Some(list.as_array().filter(|l| l.len() == layers).ok_or_else(|| {
                self.wrong("layer_types", format!("must be a list of {layers} names, one for each block"))
            })?),
        };
        let mut blocks = Vec::with_capacity(layers);
        for layer in 0..layers {
            let slides = match listed.map(|list| &list[layer]) {
                None => layer >= first && !(layer + 1).is_multiple_of(pattern),
                Some(Value::String(kind)) if kind == "sliding_attention" => true,
                Some(Value::String(kind)) if kind == "full_attention" => false,
                Some(other) => return Err(self.wrong("layer_types", format!("names {other}, which is not supported"))),
            };
            let window = window.filter(|_| slides);
            if listed.is_some() && slides && window.is_none() {
                return Err(self.wrong("sliding_window", "is missing, and layer_types wants it".into()));
            }
            blocks.push(BlockConfig { window, rope: if slides { local_rope } else { 0 } });
        }
        Ok(blocks)
    }

    /// `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`; Gemma 3 has two sets.
    fn ropes(&self, family: Family, head_dim: usize, defaults: &Defaults) -> Result<Vec<RopeConfig>, LoadError> {
        let empty = Map::new();
        let mut found = (&empty, "rope_parameters");
        for key in ["rope_parameters", "rope_scaling"] {
            if let Some(map) = self.object(key)? {
                found = (map, key);
                break;
            }
        }
        let theta = self.number(&self.map, "rope_theta", Some(defaults.theta))?;
        if family == Family::Gemma3 {
            let set = |name: &str| found.0.get(name).and_then(Value::as_object);
            let global = set("full_attention").unwrap_or(found.0);
            let local = set("sliding_attention").unwrap_or(&empty);
            let local_theta = self.number(&self.map, "rope_local_base_freq", Some(10_000.0))?;
            return Ok(vec![
                self.rope((global, found.1), theta, head_dim)?,
                self.rope((local, found.1), local_theta, head_dim)?,
            ]);
        }
        let outer = self.number(&self.map, "partial_rotary_factor", Some(1.0))?;
        let part = self.number(found.0, "partial_rotary_factor", Some(outer))?;
        let dims = (head_dim as f64 * part) as usize;
        if (family != Family::Phi3 && dims != head_dim) || dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            let problem = format!("is {part}: {dims} of {head_dim} values cannot turn");
            return Err(self.wrong("partial_rotary_factor", problem));
        }
        Ok(vec![self.rope(found, theta, dims)?])
    }
}
