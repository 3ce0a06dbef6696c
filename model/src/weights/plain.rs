//! Weights as plain rows of `f32`, for engines that hold them elsewhere.

use std::path::Path;

use super::source::{Section, Source, gate_parts, qkv_parts};
use super::{Progress, open};
use crate::config::Config;
use crate::error::LoadError;
use crate::names::Part;

/// A model's weights, each a `T`: a matrix is `outputs x inputs`, row-major. Every family comes in this one form.
#[derive(Clone, Debug)]
pub struct PlainWeights<T> {
    /// The model's numbers.
    pub config: Config,
    /// `vocabulary x hidden`.
    pub embedding: T,
    /// `vocabulary x hidden`; `None` where the embedding is the head.
    pub head: Option<T>,
    /// The blocks.
    pub layers: Vec<PlainLayer<T>>,
    /// Before the head.
    pub norm: T,
    /// Hash of configuration, weights and arithmetic.
    pub fingerprint: String,
}

/// One block. Norms are what a row is multiplied with, in all families.
#[derive(Clone, Debug)]
pub struct PlainLayer<T> {
    /// Before the attention.
    pub attention_norm: T,
    /// Queries, keys, values; the halves of a head turn against each other.
    pub qkv: T,
    /// Added to them.
    pub qkv_bias: Option<T>,
    /// Of each head of the queries, and of the keys.
    pub head_norms: Option<[T; 2]>,
    /// From the attended values back.
    pub output: T,
    /// Added to it.
    pub output_bias: Option<T>,
    /// Before the feed-forward layer.
    pub mlp_norm: T,
    /// All gates, then what they gate.
    pub gate_up: T,
    /// From the gated values back.
    pub down: T,
    /// Of what the attention adds, and of what the feed-forward layer adds.
    pub post_norms: Option<[T; 2]>,
}

/// Takes values in a shape to where they are held, or says why not.
type Place<'p, T> = dyn FnMut(Vec<f32>, &[usize]) -> Result<T, String> + 'p;

/// Reads matrices and vectors one by one, so that no more than one is in memory as `f32`.
struct Reader<'a, 'p, T> {
    source: Source<'a>,
    place: &'p mut Place<'p, T>,
}

impl<T> PlainWeights<T> {
    /// Reads a Hugging Face folder or a GGUF file, quantised tensors widened, served with at most `context` positions.
    /// `arithmetic` names what is computed with it and in what type: it is part of the fingerprint.
    ///
    /// # Errors
    /// As [`super::Weights::load`], and when `place` fails.
    pub fn load<'p>(
        path: &Path,
        context: Option<usize>,
        arithmetic: &str,
        place: &'p mut Place<'p, T>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, LoadError> {
        let (checkpoint, config) = open(path, context)?;
        let source = Source::new(&checkpoint, &config, &[arithmetic], progress);
        let names = checkpoint.names(&config);
        let mut reader = Reader { source, place };
        let tokens = (config.vocabulary, config.hidden);
        let embedding = reader.matrix(&names.embedding(), tokens)?;
        let layers = (0..config.blocks.len()).map(|layer| reader.layer(layer)).collect::<Result<_, _>>()?;
        let norm = reader.norm(&names.norm(), config.hidden)?;
        let head = if config.tied { None } else { Some(reader.matrix(&names.head(), tokens)?) };
        let fingerprint = reader.source.fingerprint();
        Ok(Self { embedding, head, layers, norm, fingerprint, config: config.clone() })
    }
}

impl<T> Reader<'_, '_, T> {
    fn put(&mut self, values: Vec<f32>, shape: &[usize]) -> Result<T, LoadError> {
        (self.place)(values, shape).map_err(LoadError::Place)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<T, LoadError> {
        let weights = self.source.norm(name, width)?;
        self.put(weights, &[width])
    }

    fn matrix(&mut self, name: &str, (outputs, inputs): (usize, usize)) -> Result<T, LoadError> {
        let tensor = self.source.tensor(name, &[outputs, inputs])?;
        let mut values = vec![0.0; outputs * inputs];
        for (row, to) in values.chunks_exact_mut(inputs).enumerate() {
            tensor.row(row, to)?;
        }
        self.source.count(&[&tensor]);
        self.put(values, &[outputs, inputs])
    }

    /// Sections one below the other.
    fn stacked(&mut self, sections: &[Section<'_>], parts: &[(Part, usize)]) -> Result<T, LoadError> {
        let inputs = self.source.config.hidden;
        let outputs: usize = parts.iter().map(|(_, rows)| rows).sum();
        let mut values = vec![0.0; outputs * inputs];
        let mut rows = values.chunks_exact_mut(inputs);
        for (section, (_, count)) in sections.iter().zip(parts) {
            for (index, to) in rows.by_ref().take(*count).enumerate() {
                let (tensor, row) = section.row(index);
                tensor.row(row, to)?;
            }
        }
        self.put(values, &[outputs, inputs])
    }

    fn bias(&mut self, layer: usize, there: bool, parts: &[(Part, usize)]) -> Result<Option<T>, LoadError> {
        if !there {
            return Ok(None);
        }
        let bias = self.source.bias(layer, parts)?;
        let width = bias.len();
        self.put(bias, &[width]).map(Some)
    }

    fn norms(
        &mut self,
        layer: usize,
        there: bool,
        parts: [Part; 2],
        width: usize,
    ) -> Result<Option<[T; 2]>, LoadError> {
        if !there {
            return Ok(None);
        }
        let [first, second] = parts.map(|part| self.source.names.weight(layer, part));
        Ok(Some([self.norm(&first, width)?, self.norm(&second, width)?]))
    }

    fn layer(&mut self, layer: usize) -> Result<PlainLayer<T>, LoadError> {
        let c = self.source.config;
        let name = |this: &Self, part| this.source.names.weight(layer, part);
        let attention_norm = self.norm(&name(self, Part::AttentionNorm), c.hidden)?;
        let parts = qkv_parts(c);
        let sections = self.source.sections(layer, Part::Qkv, &parts)?;
        let qkv = self.stacked(&sections, &parts)?;
        let qkv_bias = self.bias(layer, c.qkv_bias, &parts)?;
        let head_norms = self.norms(layer, c.head_norms, [Part::QueryNorm, Part::KeyNorm], c.head_dim)?;
        let output = self.matrix(&name(self, Part::Output), (c.hidden, c.attended()))?;
        let output_bias = self.bias(layer, c.output_bias, &[(Part::Output, c.hidden)])?;
        let mlp_norm = self.norm(&name(self, Part::MlpNorm), c.hidden)?;
        let parts = gate_parts(c);
        let sections = self.source.sections(layer, Part::GateUp, &parts)?;
        let gate_up = self.stacked(&sections, &parts)?;
        let down = self.matrix(&name(self, Part::Down), (c.hidden, c.inner))?;
        let post = [Part::PostAttentionNorm, Part::PostMlpNorm];
        let post_norms = self.norms(layer, c.post_norms, post, c.hidden)?;
        Ok(PlainLayer {
            attention_norm,
            qkv,
            qkv_bias,
            head_norms,
            output,
            output_bias,
            mlp_norm,
            gate_up,
            down,
            post_norms,
        })
    }
}
