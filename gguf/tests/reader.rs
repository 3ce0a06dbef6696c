//! Good files are read whole; whatever is done to them, the reader answers and never panics.

use cascadia_gguf::{Gguf, GgufError, TensorType, Value};
use proptest::prelude::*;

/// Writes a file as the format's description says.
#[derive(Default)]
struct Writer {
    pairs: u64,
    tensors: u64,
    head: Vec<u8>,
    table: Vec<u8>,
    data: Vec<u8>,
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

impl Writer {
    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        string(&mut self.head, key);
        self.head.extend(kind.to_le_bytes());
        self.head.extend(value);
        self.pairs += 1;
    }

    fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, bytes: &[u8]) {
        string(&mut self.table, name);
        self.table.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| self.table.extend(d.to_le_bytes()));
        self.table.extend(kind.to_le_bytes());
        self.table.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.pairs.to_le_bytes());
        file.extend(self.head);
        file.extend(self.table);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

fn file() -> Vec<u8> {
    let mut w = Writer::default();
    let mut name = Vec::new();
    string(&mut name, "llama");
    w.pair("general.architecture", 8, &name);
    w.pair("llama.block_count", 4, &2_u32.to_le_bytes());
    w.pair("llama.rope.freq_base", 6, &1e6_f32.to_le_bytes());
    w.pair("flag", 7, &[1]);
    w.pair("below", 5, &(-3_i32).to_le_bytes());
    let mut tokens = 8_u32.to_le_bytes().to_vec();
    tokens.extend(2_u64.to_le_bytes());
    string(&mut tokens, "<s>");
    string(&mut tokens, "é");
    w.pair("tokenizer.ggml.tokens", 9, &tokens);
    w.tensor("a.weight", &[4, 2], 0, &[7; 32]);
    w.tensor("b.weight", &[64, 3], 8, &[9; 6 * 34]);
    w.finish()
}

#[test]
fn a_file_is_read_whole() {
    let file = file();
    let gguf = Gguf::read(&file).unwrap();
    assert_eq!(gguf.get("general.architecture").unwrap().as_str(), Some("llama"));
    assert_eq!(gguf.get("llama.block_count").unwrap().as_u64(), Some(2));
    assert_eq!(gguf.get("llama.rope.freq_base").unwrap().as_f64(), Some(1e6));
    assert_eq!(gguf.get("flag").unwrap().as_bool(), Some(true));
    assert_eq!(gguf.get("below"), Some(&Value::Signed(-3)));
    let tokens = gguf.get("tokenizer.ggml.tokens").unwrap().as_array().unwrap();
    assert_eq!(tokens[1].as_str(), Some("é"));
    let (a, b) = (&gguf.tensors["a.weight"], &gguf.tensors["b.weight"]);
    assert_eq!((&a.shape[..], a.kind, &file[a.bytes.clone()]), (&[2, 4][..], TensorType::F32, &[7; 32][..]));
    assert_eq!((&b.shape[..], b.kind, b.bytes.len()), (&[3, 64][..], TensorType::Q8_0, 6 * 34));
    assert!(file[b.bytes.clone()].iter().all(|&byte| byte == 9));
}

#[test]
fn every_shorter_file_is_refused() {
    let file = file();
    for length in 0..file.len() - 20 {
        assert!(Gguf::read(&file[..length]).is_err(), "{length} of {} bytes", file.len());
    }
}

#[test]
fn what_is_wrong_is_named() {
    let with = |change: &dyn Fn(&mut Writer)| {
        let mut w = Writer::default();
        change(&mut w);
        Gguf::read(&w.finish()).unwrap_err()
    };
    let mut other = file();
    other[0] = b'X';
    assert_eq!(Gguf::read(&other), Err(GgufError::Magic));
    other[..8].copy_from_slice(b"GGUF\x01\0\0\0");
    assert_eq!(Gguf::read(&other), Err(GgufError::Version(1)));
    // A list, a text and a table of 2^60 things.
    let list = [8_u32.to_le_bytes().to_vec(), (1_u64 << 60).to_le_bytes().to_vec()].concat();
    let error = with(&|w| w.pair("tokenizer.ggml.tokens", 9, &list));
    assert!(matches!(&error, GgufError::Absurd { what, .. } if what == "tokenizer.ggml.tokens"), "{error}");
    let error = with(&|w| w.pair("general.name", 8, &(1_u64 << 60).to_le_bytes()));
    assert!(matches!(&error, GgufError::Absurd { what, .. } if what == "general.name"), "{error}");
    assert!(matches!(with(&|w| w.tensors = 1 << 60), GgufError::Absurd { .. }));
    let error = with(&|w| w.tensor("big.weight", &[1 << 62, 1 << 62], 0, &[])).to_string();
    assert!(error.contains("big.weight"), "{error}");
    let error = with(&|w| w.tensor("far.weight", &[1 << 20], 0, &[0; 32])).to_string();
    assert!(error.contains("far.weight") && error.contains("ends"), "{error}");
    let error = with(&|w| w.tensor("odd.weight", &[33], 8, &[0; 68])).to_string();
    assert!(error.contains("odd.weight") && error.contains("Q8_0"), "{error}");
    let error = with(&|w| w.tensor("new.weight", &[32], 77, &[0; 68])).to_string();
    assert!(error.contains("new.weight") && error.contains("77"), "{error}");
    let error = with(&|w| w.tensor("a\nb", &[8], 0, &[0; 32])).to_string();
    assert!(error.contains("name") && !error.contains('\n'), "{error}");
    assert!(matches!(with(&|w| w.tensor(&"x".repeat(300), &[8], 0, &[0; 32])), GgufError::Absurd { .. }));
    let twice = |w: &mut Writer| (0..2).for_each(|_| w.tensor("same.weight", &[8], 0, &[0; 32]));
    assert!(with(&twice).to_string().contains("same.weight"));
}

/// `PROPTEST_CASES` sets another number, for a longer search.
fn cases(usual: u32) -> ProptestConfig {
    let given = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { given } else { ProptestConfig { cases: usual, ..given } }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn a_damaged_file_is_answered(changes in prop::collection::vec((0..1000_usize, any::<u8>()), 1..6), cut in 0..1000_usize) {
        let mut file = file();
        let length = file.len();
        for (at, byte) in changes {
            file[at % length] = byte;
        }
        file.truncate(length - cut % 50);
        if let Ok(gguf) = Gguf::read(&file) {
            prop_assert!(gguf.tensors.values().all(|t| t.bytes.end <= file.len()));
        }
    }

    #[test]
    fn noise_is_answered(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(noise);
        let _ = Gguf::read(&file);
    }
}
