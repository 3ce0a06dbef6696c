//! What is written is read back.

use cascadia_gguf::{ALIGNMENT, Gguf, GgufError, TensorType, Value, write_head};

#[test]
fn a_head_is_read_back() {
    let list = |values: &[&str]| Value::Array(values.iter().map(|v| Value::String((*v).into())).collect());
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("small", Value::Unsigned(7)),
        ("large", Value::Unsigned(1 << 40)),
        ("below", Value::Signed(-3)),
        ("far.below", Value::Signed(-(1 << 40))),
        ("half", Value::Float(0.5)),
        ("flag", Value::Bool(true)),
        ("tokens", list(&["a", "", "Ġb"])),
        ("kinds", Value::Array(vec![Value::Signed(1), Value::Signed(3)])),
        ("nothing", Value::Array(Vec::new())),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let tensors = [
        ("norm".to_owned(), vec![3], TensorType::F32),
        ("matrix".to_owned(), vec![5, 64], TensorType::Q8_0),
        ("last".to_owned(), vec![2, 3], TensorType::F16),
    ];
    let mut file = write_head(&metadata, &tensors).unwrap();
    assert_eq!(file.len() % ALIGNMENT, 0);
    let first = file.len();
    file.resize(first + 32 + 352 + 12, 0);
    let gguf = Gguf::read(&file).unwrap();
    assert_eq!(gguf.metadata, metadata.into_iter().collect());
    let at = |name: &str| gguf.tensors[name].bytes.clone();
    assert_eq!(at("norm"), first..first + 12);
    assert_eq!(at("matrix"), first + 32..first + 32 + 5 * 2 * 34);
    assert_eq!(at("last"), first + 32 + 352..first + 32 + 352 + 12);
    assert_eq!((&gguf.tensors["matrix"].shape[..], gguf.tensors["matrix"].kind), (&[5, 64][..], TensorType::Q8_0));
}

#[test]
fn what_the_format_does_not_have_is_refused() {
    let mixed = Value::Array(vec![Value::Bool(true), Value::Unsigned(1)]);
    let error = write_head(&[("k".into(), mixed)], &[]).unwrap_err();
    assert!(matches!(&error, GgufError::Malformed { what, .. } if what.contains("`k`")), "{error}");
    let error = write_head(&[], &[("t".into(), vec![2, 33], TensorType::Q8_0)]).unwrap_err();
    assert!(error.to_string().contains("[2, 33]"), "{error}");
}
