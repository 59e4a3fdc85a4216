use super::*;
use crate::cli::Global;
use crate::cli::run::EngineArgs;
use crate::options::Env;
use crate::report::Report;
use clap::Parser;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    calib: CalibArgs,
}

fn parse(words: &[&str]) -> Result<CalibArgs, clap::Error> {
    Line::try_parse_from([&["longshore"], words].concat()).map(|line| line.calib)
}

fn args(words: &str) -> CalibArgs {
    parse(&words.split_whitespace().collect::<Vec<_>>()).unwrap()
}

/// A tokenizer of the words a to f, whose ids are 3 to 8; `template` says what stands around texts.
pub(super) fn tokenizer_with(template: &str) -> Tokenizer {
    let special = |id: u32, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let piece = |word: &str| match word {
        "$A" => json!({"Sequence": {"id": "A", "type_id": 0}}),
        token => json!({"SpecialToken": {"id": token, "type_id": 0}}),
    };
    let single: Vec<_> = template.split(' ').map(piece).collect();
    let file = json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": [piece("$A")], "special_tokens": {
            "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
        }},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {
            "<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5, "d": 6, "e": 7, "f": 8,
        }},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::load(folder.path()).unwrap().unwrap()
}

pub(super) fn tokenizer() -> Tokenizer {
    tokenizer_with("$A")
}

pub(super) fn pieces(tokenizer: Option<&Tokenizer>) -> Pieces<'_> {
    Pieces { vocab: 9, folder: Path::new("model"), tokenizer, template: Ok(None), end: Some(2) }
}

fn bundled_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m")
}

fn opened(tokenizer: Option<&Path>) -> Opened {
    let env = Env::of(&[]);
    let report = Report::new(&Global { quiet: true, ..Global::default() }, &env);
    let engine = EngineArgs { tokenizer: tokenizer.map(Path::to_owned), ..EngineArgs::default() };
    Opened::new(&bundled_model(), &engine, &env, &report).unwrap()
}

fn load_args(args: &CalibArgs, pieces: &Pieces) -> Result<CalibrationSet> {
    load(args, pieces, &Env::default())
}

/// Loads a file of this name and content.
fn load_file(name: &str, content: &[u8], words: &str, pieces: &Pieces) -> Result<CalibrationSet> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    load_args(&CalibArgs { calib: Some(path), ..args(words) }, pieces)
}

fn jsonl(content: &str, words: &str) -> CalibrationSet {
    load_file("c.jsonl", content.as_bytes(), words, &pieces(Some(&tokenizer()))).unwrap()
}

/// The message without the folder's name.
fn refused(name: &str, content: &[u8], words: &str, pieces: &Pieces) -> String {
    let error = load_file(name, content, words, pieces).unwrap_err().to_string();
    match error.find(name) {
        Some(at) => format!("`{}", &error[at..]),
        None => error,
    }
}

#[test]
fn the_defaults_are_those_of_the_scripts() {
    let args = args("");
    assert_eq!((args.calib_size, args.calib_seq, args.calib_batch), (512, 512, 1));
    assert_eq!((args.calib, args.pack, args.seed), (None, Pack::Off, 0));
    for wrong in [["--calib-size", "0"], ["--calib-seq", "0"], ["--calib-batch", "0"], ["--pack", "yes"]] {
        assert!(parse(&wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(parse(&["--calib_size", "3", "--pack", "on"]).unwrap().pack, Pack::On);
}

#[test]
fn lines_of_all_kinds_are_the_first_samples_in_order() {
    let content = "{\"text\": \"a b\"}\n\n{\"input_ids\": [8, 7]}\n{\"prompt\": \"c\", \"id\": 1}\n{\"text\": \"d\"}\n";
    let set = jsonl(content, "--calib-size 3");
    assert_eq!(set.samples, [vec![3, 4], vec![8, 7], vec![5]]);
    let report = &set.report;
    assert_eq!((report.available, report.samples, report.tokens, report.longest), (Some(4), 3, 5, 2));
    assert_eq!(report.crc32, Some(crc32fast::hash(content.as_bytes())));
    assert!(report.warnings.is_empty());
    let text = report.to_string();
    assert!(text.starts_with("3 samples of `"), "{text}");
    let end = format!("c.jsonl`, 5 tokens, the first of 4, CRC-32 {:08x}", crc32fast::hash(content.as_bytes()));
    assert!(text.ends_with(&end), "{text}");
}

#[test]
fn long_samples_are_cut_and_empty_ones_left_out_and_both_are_counted() {
    let content = "{\"text\": \"a b c\"}\n{\"text\": \"\"}\n{\"input_ids\": [3, 4, 5, 6]}\n{\"text\": \"a b\"}\n{\"text\": \"e\"}";
    let set = jsonl(content, "--calib-seq 2 --calib-size 4");
    // As in ModelOpt nothing replaces the empty one.
    assert_eq!(set.samples, [vec![3, 4], vec![3, 4], vec![3, 4]]);
    assert_eq!((set.report.truncated, set.report.skipped), (2, 1));
    assert_eq!(set.report.warnings.len(), 1);
    assert!(set.report.warnings[0].ends_with(" gives 3 of the 4 samples of --calib-size"));
    assert!(set.report.to_string().contains(", 6 tokens, 2 cut to 2 tokens, 1 empty left out, the first of 5, "));
}

#[test]
fn a_seed_draws_samples_and_their_order() {
    let line = |n: u32| format!("{{\"input_ids\": [{}, {}]}}\n", n / 10 % 9, n % 9);
    let content = (0..100).map(line).collect::<Vec<_>>().concat();
    let draw = |seed: u64| jsonl(&content, &format!("--calib-size 20 --seed {seed}"));
    assert_eq!(draw(1).samples, draw(1).samples);
    assert_ne!(draw(1).samples, draw(2).samples);
    assert_ne!(draw(1).samples, draw(0).samples);
    assert!(draw(1).report.to_string().contains(", drawn from 100 with seed 1, "));
}

#[test]
fn all_that_is_wrong_with_a_file_is_said_at_once() {
    let tokenizer = tokenizer();
    let content =
        b"{\"text\": \"a\"}\n{\"text\": }\n{\"id\": 1}\n\xff\n{\"input_ids\": [9]}\n{\"text\": \" \"}\n{\"id\": 2}\n\
        {\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n";
    let error = refused("c.jsonl", content, "", &pieces(Some(&tokenizer)));
    assert_eq!(
        error,
        "`c.jsonl`:\n  line 2: column 10: not JSON: expected value\n  \
           line 3 and 1 more: expected `text`, `prompt`, `messages` or `input_ids`, found `id`\n  \
           line 4: not UTF-8 text (byte 35 of the file)\n  \
           line 5: `input_ids`, item 0: expected an id below 9, the model's vocabulary, found 9\n  \
           line 6: the text has no tokens\n  \
           line 8: messages, and the tokenizer in `model` has no chat template"
    );
}

#[test]
fn a_file_without_samples_is_refused() {
    let tokenizer = tokenizer();
    for content in ["", "\n \n", "{\"text\": \"\"}\n"] {
        assert_eq!(
            refused("c.jsonl", content.as_bytes(), "", &pieces(Some(&tokenizer))),
            "`c.jsonl` holds no calibration sample"
        );
    }
    assert_eq!(refused("c.txt", b"\n", "", &pieces(Some(&tokenizer))), "`c.txt` holds no calibration sample");
}

#[test]
fn without_tokenizer_there_are_only_ids() {
    let none = pieces(None);
    let ids = load_file("c.jsonl", b"{\"input_ids\": [3]}\n", "--pack on", &none).unwrap();
    assert_eq!(ids.samples, [[3, 2]]);
    let text = refused("c.jsonl", b"{\"input_ids\": [3]}\n{\"text\": \"a\"}\n", "", &none);
    assert!(
        text.ends_with(
            "line 2: text, which only a tokenizer makes ids of, and there is no `tokenizer.json` in `model`"
        )
    );
    let text = refused("c.txt", b"a", "", &none);
    assert_eq!(text, "`c.txt` must be tokenized, and there is no `tokenizer.json` in `model`");
    let error = load_args(&args(""), &none).unwrap_err();
    assert_eq!(error.to_string(), "the bundled text must be tokenized, and there is no `tokenizer.json` in `model`");
    let hint = error.downcast_ref::<CalibrationError>().and_then(CalibrationError::hint);
    assert!(hint.is_some_and(|hint| hint.contains("--calib random")));
}

#[test]
fn random_ids_are_the_seeds_own_and_come_with_a_warning() {
    let draw = |seed: u64| {
        load_args(&args(&format!("--calib random --calib-size 50 --calib-seq 40 --seed {seed}")), &pieces(None))
    };
    let set = draw(0).unwrap();
    assert!(set.samples.len() == 50 && set.samples.iter().all(|row| row.len() == 40));
    assert!((0..9).all(|id| set.samples.iter().flatten().filter(|&&other| other == id).count() > 150));
    assert!(set.samples.iter().flatten().all(|&id| id < 9));
    assert_eq!(set.samples, draw(0).unwrap().samples);
    assert_ne!(set.samples, draw(1).unwrap().samples);
    assert!(set.report.warnings[0].contains("for smoke tests only"));
    assert_eq!(set.report.to_string(), "50 samples of random ids with seed 0, 2,000 tokens");
    let error = load_args(&args("--calib random --calib-size 1048576 --calib-seq 1048576"), &pieces(None)).unwrap_err();
    assert!(error.to_string().ends_with("expected at most 268435456 random ids"));
}

#[test]
fn packed_samples_are_joined_with_the_token_that_ends_texts() {
    let content = "{\"text\": \"a b c\"}\n{\"text\": \"\"}\n{\"input_ids\": [4]}\n{\"text\": \"c d\"}\n";
    let tokenizer = tokenizer_with("<s> $A </s>");
    let pack = |size: u32, end| {
        let pieces = Pieces { end, ..pieces(Some(&tokenizer)) };
        let words = format!("--pack on --calib-seq 4 --calib-size {size}");
        load_file("c.jsonl", content.as_bytes(), &words, &pieces).unwrap()
    };
    let set = pack(3, Some(2));
    // The last row is shorter: nothing is padded.
    assert_eq!(set.samples, [vec![3, 4, 5, 2], vec![4, 2, 5, 6], vec![2]]);
    assert_eq!((set.report.truncated, set.report.skipped), (0, 1));
    assert!(set.report.to_string().starts_with("3 packed rows of "));
    assert_eq!(pack(1, Some(2)).samples, [vec![3, 4, 5, 2]]);
    let without = pack(9, None);
    assert_eq!(without.samples, [vec![3, 4, 5, 4], vec![5, 6]]);
    assert!(without.report.warnings.iter().any(|warning| warning.contains("no token that ends texts")));
}

#[test]
fn sixteen_documents_are_drawn_for_a_packed_row() {
    let content = "{\"text\": \"a\"}\n".repeat(40);
    assert_eq!(jsonl(&content, "--pack on --calib-size 1 --calib-seq 512").report.tokens, 32);
}

#[test]
fn a_text_file_is_gathered_by_paragraphs() {
    let text = b"a\nb\n\nc\n\nd\ne\n\nf\n";
    let tokenizer = tokenizer_with("<s> $A");
    let load = |words: &str| load_file("c.txt", text, words, &pieces(Some(&tokenizer))).unwrap();
    // A line counts two tokens here, and the first token of a sample one.
    let set = load("--calib-seq 7");
    assert_eq!(set.samples, [vec![1, 3, 4, 5], vec![1, 6, 7, 8]]);
    assert_eq!((set.report.truncated, set.report.available), (0, Some(2)));
    assert_eq!(load("--calib-seq 6").samples, [vec![1, 3, 4], vec![1, 5], vec![1, 6, 7], vec![1, 8]]);
    let first = load("--calib-seq 7 --calib-size 1");
    assert_eq!((first.samples.len(), first.report.available), (1, None));
    assert_eq!(first.report.crc32, Some(crc32fast::hash(text)));
}

#[test]
fn the_name_tells_lines_of_json_from_text() {
    for name in ["c.jsonl", "c.JSONL", "c.ndjson", "c.json"] {
        assert!(is_json_lines(Path::new(name)), "{name}");
    }
    for name in ["c.txt", "jsonl", "c.md"] {
        assert!(!is_json_lines(Path::new(name)), "{name}");
    }
    assert!(load_args(&args("--calib ./random"), &pieces(None)).is_err());
}

#[test]
fn the_bundled_text_fits_the_bundled_model() {
    let opened = opened(None);
    let pieces = Pieces::of(&opened).unwrap();
    assert_eq!((pieces.vocab, pieces.end), (4096, Some(2)));
    let set = load_args(&args(""), &pieces).unwrap();
    let report = &set.report;
    assert_eq!((report.samples, report.skipped), (BUNDLED.lines().count() as u64, 0));
    assert_eq!(report.crc32, Some(crc32fast::hash(BUNDLED.as_bytes())));
    assert!(report.warnings.is_empty());
    assert!(set.samples.iter().all(|row| !row.is_empty() && row.len() <= 512));
    let packed = load_args(&args("--pack on --calib-seq 256"), &pieces).unwrap().samples;
    let (last, whole) = packed.split_last().unwrap();
    assert!(whole.iter().all(|row| row.len() == 256) && last.len() <= 256 && packed.len() > 50);
}

/// What ModelOpt 0.47's `get_dataset_dataloader` gives for these lines with this tokenizer and template, without the
/// places that its attention mask names padding.
#[test]
fn rows_are_those_of_modelopt_without_padding() {
    let opened = opened(None);
    let pieces = Pieces::of(&opened).unwrap();
    let content = r#"{"prompt": "What is", "completion": "this", "output": "and that?"}
{"text": ""}
{"text": "The ship sailed at dawn, and nobody on the quay looked back twice."}
{"input": "Ask", "output": "Answer"}
{"messages": [{"role": "user", "content": "Good morning"}, {"role": "assistant", "content": "Good evening."}], "text": "ignored"}
{"text": "<|im_start|>x</s>"}
{"prompt": null, "text": "never"}
"#;
    let load_rows = |words: &str| load_file("c.jsonl", content.as_bytes(), words, &pieces).unwrap().samples;
    let expected: [&[u32]; 5] = [
        &[1129, 367, 203, 423, 276, 203, 411, 317],
        &[589, 1297, 1953, 278, 359, 290, 69, 597],
        &[37, 1113, 203, 3013, 1002, 273],
        &[3, 443, 273, 203, 4042, 1195, 4, 203],
        &[3, 92, 2],
    ];
    assert_eq!(load_rows("--calib-size 6 --calib-seq 8"), expected);
    let expected: [[u32; 8]; 4] = [
        [1129, 367, 203, 423, 276, 203, 411, 317],
        [35, 2, 589, 1297, 1953, 278, 359, 290],
        [69, 597, 16, 285, 450, 1310, 332, 267],
        [509, 337, 835, 780, 3681, 18, 2, 37],
    ];
    assert_eq!(load_rows("--calib-size 4 --calib-seq 8 --pack on"), expected);

    // The bundled text, as rows of a length and ids, 32 bits each.
    let crc32 = |words: &str| {
        let mut crc = crc32fast::Hasher::new();
        for row in load_args(&args(words), &pieces).unwrap().samples {
            crc.update(&(row.len() as u32).to_le_bytes());
            for id in row {
                crc.update(&id.to_le_bytes());
            }
        }
        crc.finalize()
    };
    assert_eq!(crc32("--calib-seq 256"), 0x2bb9_bcac);
    assert_eq!(crc32("--calib-seq 256 --pack on"), 0x28dd_e441);
}

#[test]
fn templates_are_told_the_same_day_every_day() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(bundled_model().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ strftime_now('%d.%m.%Y') }}").unwrap();
    let opened = opened(Some(folder.path()));
    let pieces = Pieces::of(&opened).unwrap();
    let rows = load_file("c.jsonl", br#"[{"role": "user", "content": "a"}]"#, "", &pieces).unwrap().samples;
    assert_eq!(pieces.tokenizer.unwrap().decode(&rows[0], false).unwrap(), "01.01.2026");
    // No file here names the token that ends texts, so the checkpoint's does.
    assert_eq!(pieces.end, Some(2));
}

#[test]
fn a_broken_template_matters_only_to_conversations() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(bundled_model().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let opened = opened(Some(folder.path()));
    let pieces = Pieces::of(&opened).unwrap();
    assert!(load_file("c.jsonl", br#"{"text": "a"}"#, "", &pieces).is_ok());
    assert!(load_args(&args(""), &pieces).is_ok());
    let error = refused("c.jsonl", br#"[{"role": "user", "content": "a"}]"#, "", &pieces);
    assert!(error.contains("line 1: ") && error.contains("chat_template.jinja:1: "), "{error}");
}

#[test]
fn bundled_conversations_are_rendered_by_the_models_template() {
    let opened = opened(None);
    let mut pieces = Pieces::of(&opened).unwrap();
    let text = |pieces: &Pieces| {
        let set = load_args(&args("--calib-seq 4096"), pieces).unwrap();
        let decode = |row: &Vec<u32>| pieces.tokenizer.unwrap().decode(row, false).unwrap();
        set.samples.iter().map(decode).collect::<Vec<_>>().join("\n")
    };
    assert!(text(&pieces).contains("<|im_start|>assistant\n"));
    pieces.template = Ok(None);
    let transcript = text(&pieces);
    assert!(!transcript.contains("<|im_start|>") && transcript.contains("\n\nAssistant: "));
}

#[test]
fn the_bundled_text_is_large_and_has_many_scripts() {
    assert!((45_000..=80_000).contains(&BUNDLED.len()), "{}", BUNDLED.len());
    let mut chats = 0;
    for line in BUNDLED.lines() {
        let record = record::Record::of(line).unwrap();
        chats += u32::from(matches!(record, record::Record::Chat(_)));
    }
    assert!(chats >= 8, "{chats}");
    // Chinese, Japanese, Russian, Arabic, Hindi, Korean, Greek.
    for letter in ['的', 'の', 'и', 'ا', 'क', '다', 'α'] {
        assert!(BUNDLED.contains(letter), "{letter}");
    }
    let mut lines: Vec<&str> = BUNDLED.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), BUNDLED.lines().count());
}

mod sets;
