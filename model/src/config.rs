//! `config.json` of a Llama model: what is supported, and a refusal of all else that would change the result.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::LoadError;

/// The numbers of a Llama model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in a norm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The `llama3` stretching of the rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Tokens.
    pub vocabulary: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Tokens that end a text, from `generation_config.json`, else from `config.json`.
    pub eos: Vec<u32>,
}

/// `rope_type: llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// How much longer the context became.
    pub factor: f32,
    /// Waves longer than `original_context / low_freq_factor` are slowed by `factor`.
    pub low_freq_factor: f32,
    /// Waves shorter than `original_context / high_freq_factor` are kept.
    pub high_freq_factor: f32,
    /// The context before.
    pub original_context: usize,
}

/// Keys that change the result, and what they must say to change nothing.
const NEUTRAL: [(&str, &[&str]); 13] = [
    ("hidden_act", &["\"silu\"", "\"swish\""]),
    ("attention_bias", &["false"]),
    ("mlp_bias", &["false"]),
    ("quantization_config", &[]),
    ("sliding_window", &[]),
    ("partial_rotary_factor", &["1", "1.0"]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("query_pre_attn_scalar", &[]),
    ("attention_multiplier", &[]),
    ("embedding_multiplier", &[]),
    ("residual_multiplier", &[]),
    ("logits_scaling", &[]),
];

impl Config {
    /// Reads `config.json` and, if there, `generation_config.json` of a model folder.
    ///
    /// # Errors
    /// When a file cannot be read, or names something that is not supported.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let json = Json { map: read_json(&path)?, path };
        let architectures = json.map.get("architectures");
        let llama = |names: &Value| names.as_array().is_some_and(|a| a.iter().any(|n| n == "LlamaForCausalLM"));
        if !architectures.is_some_and(llama) {
            let found = architectures.map_or_else(|| "(none)".to_owned(), ToString::to_string);
            return Err(LoadError::Architecture { path: json.path, found });
        }
        for (key, allowed) in NEUTRAL {
            let value = json.map.get(key).filter(|v| !v.is_null());
            if let Some(found) = value.map(ToString::to_string).filter(|f| !allowed.contains(&f.as_str())) {
                return Err(json.wrong(key, format!("is {found}, which is not supported; use a plain Llama model")));
            }
        }
        let mut config = json.config()?;
        let path = folder.join("generation_config.json");
        let generation = if path.exists() { Some(Json { map: read_json(&path)?, path }) } else { None };
        let eos = match generation {
            Some(g) if g.map.get("eos_token_id").is_some_and(|v| !v.is_null()) => g.ids("eos_token_id")?,
            _ => json.ids("eos_token_id")?,
        };
        if let Some(id) = eos.iter().find(|&&id| id as usize >= config.vocabulary) {
            return Err(json.wrong("eos_token_id", format!("is {id}, outside the vocabulary of {}", config.vocabulary)));
        }
        config.eos = eos;
        Ok(config)
    }

    /// Parameters, as a model card counts them: tied weights once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let (hidden, inner) = (self.hidden as u64, self.inner as u64);
        let attention = 2 * (self.heads + self.kv_heads) as u64 * self.head_dim as u64 * hidden;
        let block = attention + 3 * hidden * inner + 2 * hidden;
        let heads = if self.tied { 1 } else { 2 };
        self.layers as u64 * block + heads * self.vocabulary as u64 * hidden + hidden
    }

    /// All that a result depends on, for the fingerprint.
    pub(crate) fn canonical(&self) -> String {
        format!("{:?}", Self { eos: Vec::new(), ..self.clone() })
    }
}

/// A JSON object and where it is from.
struct Json {
    path: PathBuf,
    map: Map<String, Value>,
}

pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|e| LoadError::Json { path: path.into(), problem: e.to_string() })
}

impl Json {
    fn wrong(&self, key: &str, problem: String) -> LoadError {
        LoadError::Key { path: self.path.clone(), key: key.into(), problem }
    }

    fn config(&self) -> Result<Config, LoadError> {
        let (hidden, heads) = (self.size("hidden_size", None)?, self.size("num_attention_heads", None)?);
        let kv_heads = self.size("num_key_value_heads", Some(heads))?;
        let even = hidden.is_multiple_of(heads).then_some(hidden / heads);
        let head_dim = self.size("head_dim", even)?;
        if !heads.is_multiple_of(kv_heads) {
            let problem = format!("is {kv_heads}, which does not divide num_attention_heads = {heads}");
            return Err(self.wrong("num_key_value_heads", problem));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(self.wrong("head_dim", format!("is {head_dim}; rotary positions need an even number")));
        }
        let (rope_theta, rope_scaling) = self.rope()?;
        let tied = match self.map.get("tie_word_embeddings") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(tied)) => *tied,
            Some(other) => return Err(self.wrong("tie_word_embeddings", format!("is {other}; use true or false"))),
        };
        let norm_eps = self.number(&self.map, "rms_norm_eps", Some(1e-6))?;
        if norm_eps < 0.0 {
            return Err(self.wrong("rms_norm_eps", format!("is {norm_eps}; it may not be negative")));
        }
        Ok(Config {
            hidden,
            inner: self.size("intermediate_size", None)?,
            layers: self.size("num_hidden_layers", None)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps,
            rope_theta,
            rope_scaling,
            vocabulary: self.size("vocab_size", None)?,
            context: self.size("max_position_embeddings", Some(2048))?,
            tied,
            eos: Vec::new(),
        })
    }

    /// `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.
    fn rope(&self) -> Result<(f64, Option<RopeScaling>), LoadError> {
        let empty = Map::new();
        let mut found = (&empty, "rope_parameters");
        for key in ["rope_parameters", "rope_scaling"] {
            match self.map.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(map)) => {
                    found = (map, key);
                    break;
                }
                Some(other) => return Err(self.wrong(key, format!("is {other}; it must be an object"))),
            }
        }
        let (map, key) = found;
        let outer = self.number(&self.map, "rope_theta", Some(10_000.0))?;
        let theta = self.number(map, "rope_theta", Some(outer))?;
        if theta <= 0.0 {
            return Err(self.wrong("rope_theta", format!("is {theta}; it must be above zero")));
        }
        let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str).unwrap_or("default");
        match kind {
            "default" => Ok((theta, None)),
            "llama3" => {
                let field = |name: &str| self.number(map, name, None).map(|x| x as f32);
                let scaling = RopeScaling {
                    factor: field("factor")?,
                    low_freq_factor: field("low_freq_factor")?,
                    high_freq_factor: field("high_freq_factor")?,
                    original_context: field("original_max_position_embeddings")? as usize,
                };
                let positive = scaling.factor > 0.0 && scaling.low_freq_factor > 0.0 && scaling.original_context > 0;
                if !positive || scaling.high_freq_factor <= scaling.low_freq_factor {
                    return Err(
                        self.wrong(key, "has factors that are no llama3 scaling; take them from the model".into())
                    );
                }
                Ok((theta, Some(scaling)))
            }
            other => Err(self.wrong(key, format!("has the type `{other}`; only `default` and `llama3` are supported"))),
        }
    }

    /// A whole number above zero.
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize, LoadError> {
        /// Beyond any model, and far from overflow in products of two.
        const MOST: u64 = 1 << 28;
        match self.map.get(key).filter(|v| !v.is_null()) {
            None => default.ok_or_else(|| self.wrong(key, "is missing; take config.json from the same export".into())),
            Some(value) => match value.as_u64().filter(|n| (1..=MOST).contains(n)) {
                Some(n) => Ok(n as usize),
                None => Err(self.wrong(key, format!("is {value}; it must be a whole number above zero"))),
            },
        }
    }

    fn number(&self, map: &Map<String, Value>, key: &str, default: Option<f64>) -> Result<f64, LoadError> {
        match map.get(key).filter(|v| !v.is_null()) {
            None => default.ok_or_else(|| self.wrong(key, "is missing; take config.json from the same export".into())),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(x),
                None => Err(self.wrong(key, format!("is {value}; it must be a number"))),
            },
        }
    }

    /// An id or a list of ids.
    fn ids(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, format!("is {value}; it must be a token id or a list of them")))
    }
}
