//! Packed types against the `gguf` Python package, value for value; `fixtures/gguf_files.py` made the fixtures.

use std::path::Path;

use safetensors::SafeTensors;

use super::Checkpoint;

#[test]
fn packed_types_widen_as_the_gguf_package_does() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let mut types = std::collections::BTreeSet::new();
    for name in ["mixed", "llama", "qwen3"] {
        let checkpoint = Checkpoint::open(&fixtures.join(format!("{name}.gguf"))).unwrap();
        let bytes = std::fs::read(fixtures.join(format!("{name}.safetensors"))).unwrap();
        for (key, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let Some(tensor) = key.strip_prefix("first_row.") else { continue };
            let shape = checkpoint.shape(tensor).unwrap().to_vec();
            let tensor = checkpoint.tensor(tensor, &shape).unwrap();
            let mut row = vec![0.0; shape[1]];
            tensor.row(0, &mut row).unwrap();
            let wanted: Vec<u32> =
                view.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            // A minimum of zero times zero may have either sign, and both are zero.
            let same = row.iter().zip(&wanted).all(|(a, &b)| a.to_bits() == b || *a == 0.0 && f32::from_bits(b) == 0.0);
            assert!(same && row.len() == wanted.len(), "{name}: {} as {:?}", tensor.name, tensor.stored);
            types.insert(format!("{:?}", tensor.stored));
        }
    }
    let all = ["BF16", "F16", "Packed(Q4K)", "Packed(Q4_0)", "Packed(Q5K)", "Packed(Q6K)", "Q8_0"];
    assert_eq!(types.iter().map(String::as_str).collect::<Vec<_>>(), all);
}
