//! Tokenizers against transformers (`tokenizer/nemotron-h-10m.json`), text piece by piece, stop tokens, wrong files.
#![expect(clippy::unwrap_used, reason = "a test's helpers are part of it")]

use longshore_infer::tokenizer::{Tokenizer, TokenizerError, special_tokens, stop_ids};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A tokenizer from the text of its file.
fn parse(text: &str) -> Result<Tokenizer, TokenizerError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
    Tokenizer::load(folder.path()).map(Option::unwrap)
}

/// As Llama's: the blank before a word is `▁`, unknown characters are byte tokens, the first blank is cut.
fn sentencepiece() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocabulary.insert(token.to_owned(), vocabulary.len().into());
    }
    for byte in 0..=255_u8 {
        vocabulary.insert(format!("<0x{byte:02X}>"), vocabulary.len().into());
    }
    for token in ["▁", "a", "b", "é", "▁a", "\u{fffd}", "▁▁"] {
        vocabulary.insert(token.to_owned(), vocabulary.len().into());
    }
    let special = |id: u32, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": ["▁ a", "▁ ▁"]},
    });
    parse(&file.to_string()).unwrap()
}

/// All pieces, and whether each is what it should be: not empty.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text = String::new();
    for &id in ids {
        if let Some(piece) = stream.push(id).unwrap() {
            assert!(!piece.is_empty());
            text += &piece;
        }
    }
    text + &stream.finish().unwrap()
}

#[test]
fn ids_and_texts_equal_transformers() {
    let tokenizer = Tokenizer::load(&bundled()).unwrap().unwrap();
    let cases: Vec<Value> = serde_json::from_str(include_str!("tokenizer/nemotron-h-10m.json")).unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["plain"]), "{text:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), case["decoded"], "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), case["skipped"], "{text:?}");
    }
}

#[test]
fn tokens_and_ids_are_each_others_inverse() {
    let tokenizer = Tokenizer::load(&bundled()).unwrap().unwrap();
    for id in 0..tokenizer.vocab_size() as u32 {
        let token = tokenizer.token(id).unwrap();
        assert_eq!(tokenizer.token_id(&token), Some(id));
    }
    assert_eq!(tokenizer.token(tokenizer.vocab_size() as u32), None);
    assert_eq!(tokenizer.token_id("</s>"), Some(2));
}

#[test]
fn an_id_without_a_token_is_an_error_that_names_it() {
    let tokenizer = Tokenizer::load(&bundled()).unwrap().unwrap();
    let size = tokenizer.vocab_size();
    for id in [size as u32, u32::MAX] {
        let expected = format!("the id {id}: expected a token of the vocabulary, whose ids are below {size}");
        assert_eq!(tokenizer.decode(&[5, id], true).unwrap_err().to_string(), expected);
        assert_eq!(tokenizer.stream(true).push(id).unwrap_err().to_string(), expected);
    }
}

proptest! {
    #[test]
    fn pieces_of_bytes_make_the_whole_text(ids in prop::collection::vec(0..600_u32, 0..60), skip: bool) {
        let tokenizer = Tokenizer::load(&bundled()).unwrap().unwrap();
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    #[test]
    fn pieces_of_any_text_make_it(text in ".{0,40}") {
        for tokenizer in [Tokenizer::load(&bundled()).unwrap().unwrap(), sentencepiece()] {
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids, false), tokenizer.decode(&ids, false).unwrap());
        }
    }

    #[test]
    fn pieces_of_byte_tokens_make_the_whole_text(
        ids in prop::collection::vec(prop_oneof![0..266_u32, 259..266_u32, Just(3 + 0xc3), Just(3 + 0xa9), Just(3 + 0xe2)], 0..40),
        skip: bool,
    ) {
        let tokenizer = sentencepiece();
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }
}

#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let tokenizer = Tokenizer::load(&bundled()).unwrap().unwrap();
    let byte = |byte: char| tokenizer.token_id(&byte.to_string()).unwrap();
    let mut stream = tokenizer.stream(false);
    // é is c3 a9, which GPT-2's alphabet writes `Ã©`.
    assert_eq!(stream.push(byte('Ã')).unwrap(), None);
    assert_eq!(stream.push(byte('©')).unwrap().as_deref(), Some("é"));
    assert_eq!(stream.push(byte('Ã')).unwrap(), None);
    assert_eq!(stream.push(byte('a')).unwrap().as_deref(), Some("\u{fffd}a"));
    assert_eq!(stream.push(byte('Ã')).unwrap(), None);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");

    let tokenizer = sentencepiece();
    let mut stream = tokenizer.stream(true);
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    let pieces: Vec<_> = ["<s>", "▁a", "▁a", "<0xC3>", "<0xA9>", "</s>", "b", "<0xC3>"]
        .iter()
        .map(|token| stream.push(id(token)).unwrap())
        .collect();
    let expected = [None, Some("a"), Some(" a"), None, None, None, Some("éb"), None];
    assert_eq!(pieces.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn stop_ids_come_from_the_first_file_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    let found = || stop_ids(folder.path()).unwrap();
    assert!(found().is_empty());
    write("config.json", json!({"eos_token_id": [7, 8, 7]}));
    assert_eq!(found(), [7, 8]);
    write("tokenizer_config.json", json!({"eos_token": {"content": "</s>"}}));
    assert_eq!(found(), [7, 8]);
    std::fs::copy(bundled().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(found(), [2]);
    write("generation_config.json", json!({"eos_token_id": null}));
    assert_eq!(found(), [2]);
    write("generation_config.json", json!({"eos_token_id": [2, 11]}));
    assert_eq!(found(), [2, 11]);
    write("generation_config.json", json!({"eos_token_id": -1}));
    let error = stop_ids(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("`eos_token_id`: expected an id or a list of ids, found `-1`"), "{error}");
}

#[test]
fn special_tokens_are_texts_or_objects() {
    let folder = tempfile::tempdir().unwrap();
    assert!(special_tokens(folder.path()).unwrap().is_empty());
    let config = json!({"add_bos_token": true, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null,
        "tokenizer_class": "x", "model_max_length": 1e30});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("special_tokens_map.json"), r#"{"eos_token": "x", "unk_token": "<unk>"}"#)
        .unwrap();
    let found = Value::Object(special_tokens(folder.path()).unwrap());
    assert_eq!(found, json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}));
}

#[test]
fn a_wrong_file_is_an_error() {
    assert!(Tokenizer::load(Path::new("/nothing")).unwrap().is_none());
    let good = std::fs::read_to_string(bundled().join("tokenizer.json")).unwrap();
    let model = |model: &str| format!(r#"{{"added_tokens": [], "model": {model}}}"#);
    for text in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        good[..good.len() / 2].to_owned(),
        "[".repeat(100_000),
        format!(r#"{{"model": {}"#, r#"{"a":"#.repeat(100_000)),
        model(r#"{"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}"#),
        model(r#"{"type": "BPE", "vocab": {"a": 99999999999999999999}, "merges": []}"#),
        model(r#"{"type": "BPE", "vocab": {"a": -1}, "merges": []}"#),
        model(r#"{"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}"#),
        model(r#"{"type": "BPE", "vocab": [], "merges": []}"#),
        model(r#"{"type": "BPE", "vocab": {"a": 4294967294}, "merges": []}"#),
        model(r#"{"type": "WordLevel", "vocab": {"a": 4000000000}, "unk_token": "a"}"#),
        model(r#"{"type": "Unigram", "vocab": [], "unk_id": 5}"#),
        model(r#"{"type": "nothing"}"#),
        format!("{good} x"),
    ] {
        assert!(matches!(parse(&text), Err(TokenizerError::Malformed { .. })), "{text:.200}");
    }
}
