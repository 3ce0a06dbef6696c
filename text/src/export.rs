//! What a GGUF file says of a folder's tokenizer and chat template.

use std::path::Path;

use cascadia_gguf::Value as Meta;
use serde_json::Value;

use crate::error::LoadError;
use crate::files::ModelFiles;
use crate::gguf::{kind, pre_tokenizer};
use crate::template::SpecialTokens;
use crate::tokenizer::Tokenizer;

/// The metadata of the folder's tokenizer, for a model whose embedding has `rows`. Rows without a token become unused ones.
///
/// # Errors
/// When the folder cannot be read, or its tokenizer is not byte-level BPE that cuts text in one of the ways GGUF has names for.
pub fn gguf_metadata(folder: &Path, rows: usize) -> Result<Vec<(String, Meta)>, LoadError> {
    let files = ModelFiles::read(folder)?;
    let file = folder.join("tokenizer.json");
    let unsupported = |what: &str| LoadError::Unsupported { file: file.clone(), what: what.into() };
    let tokenizer: Value = serde_json::from_slice(&files.tokenizer)
        .map_err(|e| LoadError::Broken { file: file.clone(), reason: e.to_string() })?;
    let model = &tokenizer["model"];
    let (Some("BPE"), Some(vocabulary)) = (model["type"].as_str(), model["vocab"].as_object()) else {
        return Err(unsupported("writing a tokenizer other than BPE to GGUF"));
    };
    let pre = pre_tokenizer(&tokenizer).ok_or_else(|| unsupported("writing this pre-tokenizer to GGUF"))?;
    let mut tokens: Vec<(String, u64)> = (0..rows).map(|id| (format!("[PAD{id}]"), kind::UNUSED)).collect();
    let added = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let plain = vocabulary.iter().map(|(token, id)| (id.as_u64(), token.clone(), kind::NORMAL));
    let added = added.iter().map(|token| {
        let of = if token["special"] == true { kind::CONTROL } else { kind::USER_DEFINED };
        (token["id"].as_u64(), token["content"].as_str().unwrap_or_default().to_owned(), of)
    });
    for (id, token, of) in plain.chain(added) {
        let place = id.and_then(|id| tokens.get_mut(id as usize));
        *place.ok_or_else(|| unsupported("a token without a row in the embedding"))? = (token, of);
    }
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice).iter().map(|merge| match merge {
        Value::String(merge) => Some(merge.clone()),
        pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
    });
    let merges: Option<Vec<String>> = merges.collect();
    let merges = merges.ok_or_else(|| unsupported("a merge that is no pair"))?;
    let text = |texts: Vec<String>| Meta::Array(texts.into_iter().map(Meta::String).collect());
    let mut metadata = vec![
        ("model", Meta::String("gpt2".into())),
        ("pre", Meta::String(pre.into())),
        ("token_type", Meta::Array(tokens.iter().map(|(_, of)| Meta::Signed(*of as i64)).collect())),
        ("add_bos_token", Meta::Bool(false)),
        ("merges", text(merges)),
    ];
    let loaded = Tokenizer::new(&files)?;
    let special = SpecialTokens::of(&files.tokenizer_config);
    let id = |token: &Option<String>| tokens.iter().position(|(text, _)| Some(text) == token.as_ref());
    let ids = [
        ("bos_token_id", loaded.bos_id().map(|id| id as usize)),
        ("eos_token_id", loaded.eos_ids().first().map(|&id| id as usize)),
        ("unknown_token_id", id(&special.unk)),
        ("padding_token_id", id(&special.pad)),
    ];
    metadata.extend(ids.into_iter().filter_map(|(key, id)| Some((key, Meta::Unsigned(id? as u64)))));
    metadata.push(("tokens", text(tokens.into_iter().map(|(token, _)| token).collect())));
    let mut metadata: Vec<_> =
        metadata.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    let inline = files.tokenizer_config["chat_template"].as_str().map(ToOwned::to_owned);
    if let Some(template) = files.chat_template.or(inline) {
        metadata.push(("tokenizer.chat_template".into(), Meta::String(template)));
    }
    Ok(metadata)
}
