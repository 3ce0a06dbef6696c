//! A model folder or GGUF file becomes an engine and a tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cascadia_core::engine::Engine;
use cascadia_core::kv_memory::Need;
use cascadia_core::limits::PAGE_TOKENS;
use cascadia_model::Config as ModelConfig;
use cascadia_node::engine_config::EngineConfig;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_text::Tokenizer;

use crate::device::{self, Loaded};
use crate::progress::{Report, Stages, follow};
use crate::terminal::Failure;
use crate::{locate, terminal};

/// A loaded model; engines made from it share its weights.
#[derive(Clone)]
pub struct Model {
    /// Where it was loaded from.
    pub folder: PathBuf,
    /// Its weights, where they compute.
    pub weights: Loaded,
    /// Its tokenizer and chat template.
    pub tokenizer: Arc<Tokenizer>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model {}", self.folder.display())
    }
}

impl Model {
    /// Loads a Hugging Face folder or a GGUF file, with a progress bar on standard error while it takes long enough to be
    /// seen, and a line in the log for each stage.
    ///
    /// # Errors
    /// When a file is missing, truncated, or of a model that this binary does not know, or the tokenizer has ids that the
    /// weights do not: one sentence with the cure.
    pub fn load(model: &Path, dtype: &str) -> Result<Self, Failure> {
        let (model, dtype) = (model.to_owned(), dtype.to_owned());
        Self::configured(&EngineConfig { model, dtype, ..EngineConfig::default() }, &mut |_, _, _| {})
    }

    /// The model that a node is configured to have. `report` hears each stage with its bytes. A model of the hub is
    /// fetched first.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn configured(config: &EngineConfig, report: &mut Report<'_>) -> Result<Self, Failure> {
        device::check(config)?;
        let EngineConfig { model, device, context: asked, .. } = config;
        let mut stages = Stages::default();
        let mut say = |stage: &str, done: u64, total: u64| {
            report(stage, done, total);
            stages.log(stage, done, total);
        };
        let folder = &locate::locate(model, &mut say)?;
        // What is cheap to check first: weights take minutes.
        let tokenizer = read(folder)?;
        if let Err(error) = tokenizer.chat_template() {
            tracing::warn!(folder = %folder.display(), "{error}");
        }
        let (begun, path) = (Instant::now(), folder.display());
        tracing::info!(%path, tokens = tokenizer.vocabulary(), "tokenizer read, loading weights");
        let bar = terminal::bar(0, "{msg} {bar:30} {percent:>3}%");
        bar.set_message(format!("loading {}", folder_name(model)));
        let weights = Loaded::load(folder, config, &mut |progress| {
            follow(&bar, progress);
            say(progress.stage, progress.done, progress.total);
        })?;
        bar.finish_and_clear();
        let (numbers, dtype) = (weights.config(), weights.dtype());
        let (family, context) = (numbers.family, numbers.context);
        if context < *asked {
            tracing::warn!(asked, context, "the model was made for a shorter context");
        }
        let (seconds, millions) = (begun.elapsed().as_secs_f32(), numbers.parameters() / 1_000_000);
        tracing::info!(%path, ?family, millions, device, dtype, context, seconds, "weights loaded");
        Ok(Self { folder: model.to_owned(), weights, tokenizer: Arc::new(tokenizer) })
    }

    /// Its parameters, tied weights once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.weights.config().parameters()
    }

    /// An engine with KV pages of its own, one of `engines` in this process.
    ///
    /// # Errors
    /// When the cache that is asked for means nothing, or the system has no room for it.
    pub fn engine(&self, config: &EngineConfig, engines: usize) -> Result<Box<dyn Engine>, Failure> {
        self.weights.engine(self.pages(config, engines)?, config)
    }

    /// How many KV pages an engine gets.
    fn pages(&self, config: &EngineConfig, engines: usize) -> Result<usize, Failure> {
        let (page_bytes, context) = (self.weights.page_bytes(&config.kv_dtype)?, self.weights.config().context);
        let free = self.weights.free_memory();
        let pages = match config.kv_pages {
            0 => {
                let need = Need { page_bytes, context, max_sessions: config.max_sessions };
                config.kv_memory.pages(free, engines, need)?
            }
            pages => pages,
        };
        let (tokens, bytes) = (pages.saturating_mul(PAGE_TOKENS), pages.saturating_mul(page_bytes));
        tracing::info!(pages, tokens, bytes, dtype = config.kv_dtype, "KV cache");
        if let Some(free) = free.filter(|&free| bytes as u64 > free) {
            tracing::warn!(bytes, free, "the KV cache may grow beyond what memory is free; lower --kv-memory");
        }
        if tokens < context {
            tracing::warn!(
                tokens,
                context,
                "the KV cache holds less than one session of the model's context; raise --kv-memory for longer ones"
            );
        }
        Ok(pages)
    }

    /// The parts of a node, one of `engines` in this process.
    ///
    /// # Errors
    /// As [`Model::engine`].
    pub fn parts(&self, config: &EngineConfig, engines: usize) -> Result<LoadedModel, Failure> {
        Ok(LoadedModel { engine: self.engine(config, engines)?, text: self.tokenizer.clone() })
    }
}

/// A drafter and an expert that can work together.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The small model.
    pub drafter: Model,
    /// The large one.
    pub expert: Model,
}

impl Pair {
    /// Pairs two models.
    ///
    /// # Errors
    /// When their tokenizers differ.
    pub fn new(drafter: Model, expert: Model) -> Result<Self, Failure> {
        one_tokenizer((&drafter.folder, &drafter.tokenizer), (&expert.folder, &expert.tokenizer))?;
        Ok(Self { drafter, expert })
    }
}

/// Whether two models can work together.
///
/// # Errors
/// When their tokenizers differ: one sentence with the cure.
pub fn one_tokenizer(drafter: (&Path, &Tokenizer), expert: (&Path, &Tokenizer)) -> Result<(), Failure> {
    let ((drafter, d), (expert, e)) = (drafter, expert);
    if d.fingerprint() == e.fingerprint() {
        return Ok(());
    }
    Err(format!(
        "{} and {} have different tokenizers ({} and {}), so no draft of one means anything to the other; choose two \
         models of one family",
        drafter.display(),
        expert.display(),
        d.fingerprint(),
        e.fingerprint()
    )
    .into())
}

/// Checks what of a model's folder is cheap to check: its configuration and its tokenizer, not its weights. Nothing is
/// known of a model of the hub that is not in the cache.
///
/// # Errors
/// When a file is missing or says what this binary does not know: one sentence with the cure.
pub fn check(config: &EngineConfig) -> Result<Option<Tokenizer>, Failure> {
    device::check(config)?;
    locate::on_disk(&config.model)?.map(|folder| read(&folder)).transpose()
}

/// Configuration and tokenizer of a model on this machine.
fn read(folder: &Path) -> Result<Tokenizer, Failure> {
    let (config, tokenizer) = (ModelConfig::read(folder)?, Tokenizer::load(folder)?);
    fits(folder, &tokenizer, &config)?;
    Ok(tokenizer)
}

/// Every id of the tokenizer has a row in the weights.
fn fits(path: &Path, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<(), Failure> {
    if tokenizer.vocabulary() <= config.vocabulary {
        return Ok(());
    }
    Err(format!(
        "{}: the tokenizer has ids up to {}, and the weights have rows for {} tokens; take both from one export",
        path.display(),
        tokenizer.vocabulary() - 1,
        config.vocabulary
    )
    .into())
}

/// The name a model is served under unless another is given.
#[must_use]
pub fn folder_name(folder: &Path) -> String {
    if let Some(name) = locate::name(folder) {
        return name;
    }
    // `.` and `..` have names too, once they are resolved.
    let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
    name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// The folder of the shipped pair: where it was built, in the working folder, or beside the binary.
///
/// # Errors
/// When it is in none of these places.
pub fn shipped_pair() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|folder| folder.join("demo/pair")));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/pair");
    let places = [Some(built), Some("demo/pair".into()), beside];
    let found =
        places.into_iter().flatten().find(|place| place.join("expert").is_dir() && place.join("drafter").is_dir());
    found.map(|place| std::fs::canonicalize(&place).unwrap_or(place)).ok_or_else(|| {
        "the shipped pair is not here; run this in a clone of the repository, or put its demo/pair beside the binary".into()
    })
}

#[cfg(test)]
mod tests {
    use cascadia_core::kv_memory::KvMemory;

    use super::*;

    #[test]
    fn the_shipped_pair_is_found() {
        let folder = shipped_pair().expect("this is a clone of the repository");
        assert!(folder.join("expert/config.json").is_file() && folder.join("drafter/config.json").is_file());
    }

    /// A GGUF file is all that a model is.
    #[test]
    fn one_file_is_a_model() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/gguf/qwen3.gguf");
        let config = EngineConfig {
            model: file.clone(),
            dtype: "q4_k".into(),
            context: 64,
            kv_dtype: "f16".into(),
            kv_memory: "1MiB".parse().expect("an amount"),
            max_sessions: 1000,
            threads: 1,
            ..EngineConfig::default()
        };
        check(&config).expect("configuration and tokenizer are inside");
        let model = Model::configured(&config, &mut |_, _, _| {}).expect("so are the weights");
        assert_eq!((folder_name(&file).as_str(), model.weights.config().context), ("qwen3", 64));
        assert!(model.tokenizer.chat_template().is_ok() && model.tokenizer.eos_ids() == [2]);
        let ids = model.tokenizer.encode("a tooth", false).expect("it is text");
        assert_eq!(model.tokenizer.decode(&ids), "a tooth");
        let facts = model.engine(&config, 4).expect("there is room").facts().clone();
        assert_eq!((facts.vocabulary, facts.pages), (80, (1 << 20) / facts.page_bytes));
        let whole = EngineConfig { kv_dtype: "auto".into(), ..config.clone() };
        assert_ne!(facts.fingerprint, model.engine(&whole, 4).expect("there is room").facts().fingerprint);
        let error =
            model.engine(&EngineConfig { kv_memory: KvMemory::Bytes(9), ..config }, 4).err().expect("not one page");
        assert!(error.to_string().contains(&facts.page_bytes.to_string()), "{error}");
    }

    #[test]
    fn a_tokenizer_beyond_the_weights_is_refused() {
        let expert = shipped_pair().expect("this is a clone of the repository").join("expert");
        let folder = std::env::temp_dir().join(format!("cascadia-load-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::copy(expert.join("config.json"), folder.join("config.json")).expect("a copy");
        let read = std::fs::read(expert.join("tokenizer.json")).expect("a tokenizer");
        let mut tokenizer: serde_json::Value = serde_json::from_slice(&read).expect("JSON");
        let rows = ModelConfig::read(&expert).expect("a configuration").vocabulary;
        for token in 0..=rows {
            tokenizer["model"]["vocab"][format!("more {token}")] = serde_json::json!(rows + token);
        }
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("room");
        let error = check(&EngineConfig { model: folder.clone(), ..EngineConfig::default() })
            .expect_err("there are too many tokens")
            .to_string();
        assert!(error.contains(&format!("rows for {rows} tokens")) && error.contains("cascadia-load"), "{error}");
        std::fs::remove_dir_all(&folder).expect("it goes");
    }

    #[test]
    fn a_folder_that_is_none_is_one_sentence() {
        let error = Model::load(Path::new("/no/such/model"), "q8_0").expect_err("no folder").to_string();
        assert!(error.contains("/no/such/model") && !error.contains('\n'), "{error}");
    }
}
