//! The modules of a crate, from the files of its `src`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::source::{self, File};

/// A module by its path within the crate; the crate's root has none.
pub type Module = Vec<String>;

/// All modules of a crate.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// What each of them says.
    pub files: BTreeMap<Module, File>,
}

impl Modules {
    /// Reads all of a crate's `src`.
    pub fn read(source: &Path) -> Self {
        let mut files = Vec::new();
        rust_files(source, &mut files);
        let mut texts: BTreeMap<Module, String> = BTreeMap::new();
        for file in files {
            let module = module_of(file.strip_prefix(source).expect("it lies there"));
            // A library and a program share the root.
            *texts.entry(module).or_default() += &std::fs::read_to_string(&file).expect("a source file is text");
        }
        Self::of(texts.iter().map(|(module, text)| (module.clone(), text.as_str())))
    }

    /// The same of texts.
    pub fn of<'a>(texts: impl IntoIterator<Item = (Module, &'a str)>) -> Self {
        Self { files: texts.into_iter().map(|(module, text)| (module, source::read(text))).collect() }
    }

    /// Whether a module is compiled for tests alone.
    pub fn is_for_tests(&self, module: &[String]) -> bool {
        let declared = |length: usize| {
            let (parent, name) = (&module[..length], &module[length]);
            self.files.get(parent).is_some_and(|file| file.test_modules.contains(name))
        };
        (0..module.len()).any(declared)
    }
}

/// A module within a module.
pub fn child(module: &[String], name: &str) -> Module {
    [module, &[name.to_owned()]].concat()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// `a/b.rs` and `a/b/mod.rs` are `a::b`; `lib.rs` and `main.rs` are the root.
fn module_of(file: &Path) -> Module {
    let mut module: Module =
        file.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let is_root = module.len() == 1 && matches!(module[0].as_str(), "lib" | "main");
    if is_root || module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}
