//! Rotary positions as configurations describe them.

use serde_json::{Map, Value};

use super::json::Json;
use crate::error::LoadError;

/// Rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Values of a head that turn, from its first; the others stay.
    pub dims: usize,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
    /// What cosines and sines are multiplied with.
    pub attention_factor: f32,
}

/// How a context was made longer.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// It was not.
    None,
    /// `linear`: all waves are slowed by a factor.
    Linear(f32),
    /// `llama3`: long waves are slowed, short ones kept, a blend between.
    Llama3 {
        /// How much longer the context became.
        factor: f32,
        /// Waves longer than `original_context / low_freq_factor` are slowed by `factor`.
        low_freq_factor: f32,
        /// Waves shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// The context before.
        original_context: usize,
    },
    /// Each frequency is divided by a number of its own: what GGUF makes of `llama3`.
    Factors(Vec<f32>),
    /// `longrope`: a factor for each frequency. Which list is used depends on the context the model is served with and
    /// on nothing else, because a key has one value.
    Long {
        /// For contexts up to the original one.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
        /// The context before.
        original_context: usize,
    },
}

impl Json {
    /// One set of frequencies from `map` (found at `key`), with what stands beside it where it says nothing.
    pub(super) fn rope(
        &self,
        (map, key): (&Map<String, Value>, &str),
        theta: f64,
        dims: usize,
    ) -> Result<RopeConfig, LoadError> {
        let theta = self.number(map, "rope_theta", Some(theta))?;
        if theta <= 0.0 {
            return Err(self.wrong("rope_theta", format!("is {theta}; it must be above zero")));
        }
        let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str).unwrap_or("default");
        let mut rope = RopeConfig { theta, dims, scaling: RopeScaling::None, attention_factor: 1.0 };
        let field = |name: &str| self.number(map, name, None).map(|x| x as f32);
        match kind {
            "default" => {}
            "linear" => {
                let factor = field("factor")?;
                if factor <= 0.0 {
                    return Err(self.wrong(key, format!("has the factor {factor}; it must be above zero")));
                }
                rope.scaling = RopeScaling::Linear(factor);
            }
            "llama3" => {
                let (low_freq_factor, high_freq_factor) = (field("low_freq_factor")?, field("high_freq_factor")?);
                let factor = field("factor")?;
                let original_context = field("original_max_position_embeddings")? as usize;
                let positive = factor > 0.0 && low_freq_factor > 0.0 && original_context > 0;
                if !positive || high_freq_factor <= low_freq_factor {
                    let problem = "has factors that are no llama3 scaling; take them from the model";
                    return Err(self.wrong(key, problem.into()));
                }
                rope.scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
            }
            // Phi-3's first exports say `su`, and some say `yarn` and mean this.
            "longrope" | "su" | "yarn" if map.contains_key("long_factor") => self.long_rope((map, key), &mut rope)?,
            other => {
                let problem = format!(
                    "has the type `{other}`; default, linear, llama3 and longrope are supported, so choose another model"
                );
                return Err(self.wrong(key, problem));
            }
        }
        Ok(rope)
    }

    fn long_rope(&self, (map, key): (&Map<String, Value>, &str), rope: &mut RopeConfig) -> Result<(), LoadError> {
        let outer = self.number(&self.map, "original_max_position_embeddings", Some(4096.0))?;
        let original = self.number(map, "original_max_position_embeddings", Some(outer))?;
        let context = self.size("max_position_embeddings", None)? as f64;
        if !(2.0..=1e9).contains(&original) {
            return Err(
                self.wrong("original_max_position_embeddings", format!("is {original}; take it from the model"))
            );
        }
        let factors = |name: &str| {
            let numbers =
                |list: &Vec<Value>| list.iter().map(|v| v.as_f64().map(|x| x as f32)).collect::<Option<Vec<_>>>();
            let list = map.get(name).and_then(Value::as_array).and_then(numbers);
            list.filter(|l| l.len() == rope.dims / 2 && l.iter().all(|x| x.is_finite() && *x > 0.0)).ok_or_else(|| {
                let problem = format!("needs `{name}`, a list of {} numbers above zero", rope.dims / 2);
                self.wrong(key, problem)
            })
        };
        let (short, long) = (factors("short_factor")?, factors("long_factor")?);
        let factor = self.number(map, "factor", Some(context / original))?;
        let computed = if factor <= 1.0 { 1.0 } else { libm::sqrt(1.0 + libm::log(factor) / libm::log(original)) };
        rope.attention_factor = self.number(map, "attention_factor", Some(computed))? as f32;
        rope.scaling = RopeScaling::Long { short, long, original_context: original as usize };
        Ok(())
    }
}
