//! What the tensors of a model are called, which a configuration asks for, and that a checkpoint has them.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Family};
use crate::error::LoadError;

/// A tensor of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    AttentionNorm,
    Queries,
    Keys,
    Values,
    /// Queries, keys and values in one.
    Qkv,
    QueryNorm,
    KeyNorm,
    Output,
    PostAttentionNorm,
    MlpNorm,
    Gate,
    Up,
    /// Gates and what they gate in one.
    GateUp,
    Down,
    PostMlpNorm,
}

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    HuggingFace,
    Gguf,
}

/// Names in one style.
pub(crate) struct Names {
    style: Style,
    post_norms: bool,
}

impl Names {
    pub(crate) fn new(style: Style, config: &Config) -> Self {
        Self { style, post_norms: config.post_norms }
    }

    fn choose(&self, hugging_face: &str, gguf: &str) -> String {
        if self.style == Style::HuggingFace { hugging_face.into() } else { gguf.into() }
    }

    pub(crate) fn embedding(&self) -> String {
        self.choose("model.embed_tokens.weight", "token_embd.weight")
    }

    pub(crate) fn norm(&self) -> String {
        self.choose("model.norm.weight", "output_norm.weight")
    }

    pub(crate) fn head(&self) -> String {
        self.choose("lm_head.weight", "output.weight")
    }

    pub(crate) fn weight(&self, layer: usize, part: Part) -> String {
        let (hugging_face, gguf) = self.part(part);
        self.choose(&format!("model.layers.{layer}.{hugging_face}.weight"), &format!("blk.{layer}.{gguf}.weight"))
    }

    pub(crate) fn bias(&self, layer: usize, part: Part) -> String {
        let (hugging_face, gguf) = self.part(part);
        self.choose(&format!("model.layers.{layer}.{hugging_face}.bias"), &format!("blk.{layer}.{gguf}.bias"))
    }

    fn part(&self, part: Part) -> (&'static str, &'static str) {
        match part {
            Part::AttentionNorm => ("input_layernorm", "attn_norm"),
            Part::Queries => ("self_attn.q_proj", "attn_q"),
            Part::Keys => ("self_attn.k_proj", "attn_k"),
            Part::Values => ("self_attn.v_proj", "attn_v"),
            Part::Qkv => ("self_attn.qkv_proj", "attn_qkv"),
            Part::QueryNorm => ("self_attn.q_norm", "attn_q_norm"),
            Part::KeyNorm => ("self_attn.k_norm", "attn_k_norm"),
            Part::Output => ("self_attn.o_proj", "attn_output"),
            Part::PostAttentionNorm => ("post_attention_layernorm", "post_attention_norm"),
            // Where there is no norm after attention, the one before the feed-forward layer has its name.
            Part::MlpNorm if self.post_norms => ("pre_feedforward_layernorm", "ffn_norm"),
            Part::MlpNorm => ("post_attention_layernorm", "ffn_norm"),
            Part::Gate => ("mlp.gate_proj", "ffn_gate"),
            Part::Up => ("mlp.up_proj", "ffn_up"),
            Part::GateUp => ("mlp.gate_up_proj", "ffn_up"),
            Part::Down => ("mlp.down_proj", "ffn_down"),
            Part::PostMlpNorm => ("post_feedforward_layernorm", "post_ffw_norm"),
        }
    }

    /// All tensors that a checkpoint of this configuration has, with their shapes.
    pub(crate) fn expected(&self, c: &Config) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![(self.embedding(), vec![c.vocabulary, c.hidden]), (self.norm(), vec![c.hidden])];
        if !c.tied {
            all.push((self.head(), vec![c.vocabulary, c.hidden]));
        }
        for layer in 0..c.blocks.len() {
            for part in parts(c) {
                let shape = shape(c, part);
                let biased = match part {
                    Part::Queries | Part::Keys | Part::Values => c.qkv_bias,
                    Part::Output => c.output_bias,
                    _ => false,
                };
                let outputs = shape[0];
                all.push((self.weight(layer, part), shape));
                if biased {
                    all.push((self.bias(layer, part), vec![outputs]));
                }
            }
        }
        all
    }
}

impl Checkpoint {
    fn style(&self) -> Style {
        if self.gguf().is_some() { Style::Gguf } else { Style::HuggingFace }
    }

    /// What the tensors of a model of this configuration are called here.
    pub(crate) fn names(&self, config: &Config) -> Names {
        Names::new(self.style(), config)
    }

    /// Whether the weights of norms are stored less one.
    pub(crate) fn norms_less_one(&self, config: &Config) -> bool {
        self.style() == Style::HuggingFace && matches!(config.family, Family::Gemma2 | Family::Gemma3)
    }

    /// Whether the two halves of each head of queries and keys are stored interleaved: GGUF's Llamas turn neighbours.
    pub(crate) fn interleaved(&self, config: &Config) -> bool {
        self.style() == Style::Gguf && config.family == Family::Llama
    }

    /// All tensors are there in the right shapes, and no other that would change the result.
    pub(crate) fn check(&self, config: &Config) -> Result<(), LoadError> {
        let expected = self.names(config).expected(config);
        for (name, shape) in &expected {
            self.tensor(name, shape)?;
        }
        // Frequencies are computed, or were read with the configuration.
        let ignored = |name: &str| {
            name.ends_with("rotary_emb.inv_freq")
                || config.tied && name == "lm_head.weight"
                || ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&name)
        };
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        match self.tensor_names().find(|name| !known.contains(name) && !ignored(name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::Unknown { path: self.path().into(), tensor: tensor.into() }),
        }
    }
}

/// The tensors of a block.
pub(crate) fn parts(c: &Config) -> Vec<Part> {
    let mut parts = vec![Part::AttentionNorm];
    match c.family {
        Family::Phi3 => parts.extend([Part::Qkv, Part::GateUp]),
        _ => parts.extend([Part::Queries, Part::Keys, Part::Values, Part::Gate, Part::Up]),
    }
    parts.extend([Part::Output, Part::MlpNorm, Part::Down]);
    if c.head_norms {
        parts.extend([Part::QueryNorm, Part::KeyNorm]);
    }
    if c.post_norms {
        parts.extend([Part::PostAttentionNorm, Part::PostMlpNorm]);
    }
    parts
}

/// The shape that a configuration gives a tensor.
pub(crate) fn shape(c: &Config, part: Part) -> Vec<usize> {
    let keys = c.kv_heads * c.head_dim;
    match part {
        Part::AttentionNorm | Part::PostAttentionNorm | Part::MlpNorm | Part::PostMlpNorm => vec![c.hidden],
        Part::QueryNorm | Part::KeyNorm => vec![c.head_dim],
        Part::Queries => vec![c.attended(), c.hidden],
        Part::Keys | Part::Values => vec![keys, c.hidden],
        Part::Qkv => vec![c.qkv(), c.hidden],
        Part::Output => vec![c.hidden, c.attended()],
        Part::Gate | Part::Up => vec![c.inner, c.hidden],
        Part::GateUp => vec![2 * c.inner, c.hidden],
        Part::Down => vec![c.hidden, c.inner],
    }
}
