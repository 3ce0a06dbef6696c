//! A loaded model, before it is served.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cascadia_core::engine::{Chunk, Engine, EngineError, ModelFacts, Rows};
use cascadia_core::toy::{ToyEngine, ToyModel};
use cascadia_node::loaded_model::LoadedModel;

/// Has logits that are no numbers.
struct Overflown(ToyEngine);

impl Engine for Overflown {
    fn facts(&self) -> &ModelFacts {
        self.0.facts()
    }

    fn progress(&self) -> Arc<AtomicU64> {
        self.0.progress()
    }

    fn forward(&mut self, batch: &[Chunk<'_>], rows: &mut Rows) -> Result<(), EngineError> {
        self.0.forward(batch, rows)?;
        rows.data[3] = f32::NAN;
        Ok(())
    }
}

fn parts(engine: impl Engine + 'static) -> LoadedModel {
    LoadedModel { engine: Box::new(engine), text: Arc::new(cascadia_text::toy::byte_level()) }
}

fn engine() -> ToyEngine {
    ToyEngine::new(ToyModel::default(), 256, 8)
}

#[test]
fn a_model_that_computes_no_numbers_does_not_begin() {
    assert_eq!(parts(engine()).warm_up(), Ok(()));
    let error = parts(Overflown(engine())).warm_up().unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn a_model_is_served_by_each_name_and_a_nameless_one_by_all() {
    let served = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        parts(engine()).served(&names).into_iter().map(|model| model.name).collect::<Vec<_>>()
    };
    assert_eq!(served(&["a", "b"]), ["a", "b"]);
    assert_eq!(served(&[]), [""]);
}
