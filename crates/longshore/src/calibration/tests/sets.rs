//! Data sets: folders, the Hugging Face cache, ModelOpt's names. `tests/fixtures/calibration` has what ModelOpt makes of
//! small ones, with the bundled model's tokenizer.

use super::*;
use std::fs;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/calibration")
}

fn load_set(calib: impl Into<PathBuf>, words: &str, pieces: &Pieces, env: &Env) -> Result<CalibrationSet> {
    load(&CalibArgs { calib: Some(calib.into()), ..args(words) }, pieces, env)
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn error(calib: impl Into<PathBuf>, env: &Env) -> (String, Option<String>) {
    let tokenizer = tokenizer();
    let error = load_set(calib, "", &pieces(Some(&tokenizer)), env).unwrap_err();
    (error.to_string(), crate::hint::hint(&error))
}

#[test]
fn rows_of_folders_are_those_of_modelopt() {
    let opened = opened(None);
    let pieces = Pieces::of(&opened).unwrap();
    let cases: serde_json::Value =
        serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let name = case["folder"].as_str().unwrap();
        let words = format!("--calib-size {} --calib-seq {}", case["size"], case["seq"]);
        let set = load_set(fixtures().join(name), &words, &pieces, &Env::default()).unwrap();
        assert_eq!(json!(set.samples), case["rows"], "{name} {words}");
    }
}

#[test]
fn parquet_and_json_of_the_same_rows_give_the_same_samples() {
    let opened = opened(None);
    let pieces = Pieces::of(&opened).unwrap();
    let load = |name: &str| load_set(fixtures().join(name), "--calib-size 4", &pieces, &Env::default()).unwrap();
    let (table, lines) = (load("table"), load("table_as_lines"));
    assert_eq!(table.samples, lines.samples);
    assert!(table.report.source.starts_with("`train` of `") && table.report.source.ends_with("table` (4 rows)"));
}

#[test]
fn repositories_in_the_cache_are_found_by_their_id_and_by_modelopts_name() {
    let cache = tempfile::tempdir().unwrap();
    let env = Env::of(&[("HF_HUB_CACHE", cache.path().to_str().unwrap())]);
    let article = cache.path().join("datasets--abisee--cnn_dailymail/snapshots/a/3.0.0/train.jsonl");
    write(&article, "{\"article\": \"a b\"}\n{\"article\": \"c\"}\n");
    write(&cache.path().join("datasets--o--n/snapshots/a/data/train.jsonl"), "{\"text\": \"d\"}\n");
    let tokenizer = tokenizer();
    let load = |name: &str, words: &str| load_set(name, words, &pieces(Some(&tokenizer)), &env).unwrap();
    for name in ["cnn_dailymail", "abisee/cnn_dailymail"] {
        let set = load(name, "--calib-size 1");
        assert_eq!(set.samples, [[3, 4]]);
        assert_eq!(set.report.source, "`train` of `abisee/cnn_dailymail` (1 row)");
    }
    let both = load("cnn_dailymail,o/n", "--calib-size 3");
    assert_eq!(both.samples, [vec![3, 4], vec![5], vec![6]]);
    assert_eq!(both.report.splits.iter().map(|split| split.rows).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(both.report.crc32, Some(crc32fast::hash(b"{\"text\":\"a b\"}\n{\"text\":\"c\"}\n{\"text\": \"d\"}\n")));
    assert_eq!(reference_set(&env), None);
    write(&cache.path().join("datasets--nvidia--Nemotron-Post-Training-Dataset-v2/snapshots/a/README.md"), "");
    assert!(reference_set(&env).is_some());
}

#[test]
fn what_is_not_cached_is_named_with_its_download() {
    let (error, hint) = error("cnn_nemotron_v2_mix,o/n", &Env::default());
    assert_eq!(error.lines().count(), 3, "{error}");
    assert!(error.contains("`abisee/cnn_dailymail` is neither a folder nor in the Hugging Face cache"), "{error}");
    assert_eq!(
        hint.unwrap(),
        "`hf download abisee/cnn_dailymail --repo-type dataset`, \
         `hf download nvidia/Nemotron-Post-Training-Dataset-v2 --repo-type dataset`, \
         `hf download o/n --repo-type dataset`; without --calib there is a bundled text"
    );
}

#[test]
fn a_registered_set_gives_the_same_from_each_split_and_the_rest_from_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("Nemotron-Science-v1");
    for (split, word) in [("MCQ", "a"), ("RQA", "b")] {
        write(&root.join(format!("data/{split}.jsonl")), format!("{{\"text\": \"{word}\"}}\n").repeat(9));
    }
    let tokenizer = tokenizer();
    let load = |words: &str| load_set(&root, words, &pieces(Some(&tokenizer)), &Env::default()).unwrap();
    assert_eq!(load("--calib-size 5").samples, [[3], [3], [4], [4], [4]]);
    assert_eq!(load("--calib-size 1").samples, [[4]]);
    assert_eq!(load("--calib-size 5").report.available, None);
    assert_eq!(load("--calib-size 40").report.available, Some(18));
    assert_eq!(load("--pack on --calib-size 1 --calib-seq 64").report.tokens, 32);
}

#[test]
fn json_comes_in_lines_compressed_or_as_one_array() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let load = |name: &str| load_set(folder.path().join(name), "", &pieces(Some(&tokenizer)), &Env::default());
    write(&folder.path().join("array/a.json"), r#" [{"text": "a"}, {"text": "b"}]"#);
    assert_eq!(load("array").unwrap().samples, [[3], [4]]);
    write(&folder.path().join("lines/a.json"), "{\"text\": \"a\"}\n\n{\"text\": \"c\"}\n");
    assert_eq!(load("lines").unwrap().samples, [[3], [5]]);
    fs::copy(fixtures().join("two.jsonl.gz"), folder.path().join("two.jsonl.gz")).unwrap();
    assert_eq!(load("two.jsonl.gz").unwrap().samples, [[3], [4]]);
    let whole = fs::read(fixtures().join("two.jsonl.gz")).unwrap();
    write(&folder.path().join("cut.jsonl.gz"), &whole[..whole.len() - 9]);
    assert!(load("cut.jsonl.gz").unwrap_err().to_string().contains("cut.jsonl.gz` as gzip"));
}

#[test]
fn wrong_rows_of_all_files_are_named_together() {
    let folder = tempfile::tempdir().unwrap();
    let shard = |at: u8| folder.path().join(format!("data/train-0000{at}-of-00003.jsonl"));
    write(&shard(0), "{\"text\": \"a\"}\n{\"id\": 1}\n");
    write(&shard(1), "x\n");
    let (message, _) = error(folder.path(), &Env::default());
    assert!(message.contains("train-00000-of-00003.jsonl`:\n  line 2: expected `text`"), "{message}");
    assert!(message.contains("train-00001-of-00003.jsonl`:\n  line 1: column 1: not JSON"), "{message}");
    write(&shard(0), "{\"text\": \"a\"}\n");
    write(&shard(1), "{\"text\": \"b\"}\n");
    let tokenizer = tokenizer();
    let set = load_set(folder.path(), "--calib-size 2", &pieces(Some(&tokenizer)), &Env::default()).unwrap();
    assert!(set.report.warnings[0].ends_with("2 of the 3 files of `train` are there"), "{:?}", set.report.warnings);
}

#[test]
fn damaged_parquet_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(fixtures().join("table/data/train-00000-of-00002.parquet")).unwrap();
    let path = folder.path().join("a.parquet");
    let tokenizer = tokenizer();
    let load = || load_set(&path, "", &pieces(Some(&tokenizer)), &Env::default());
    for len in (0..good.len()).step_by(61) {
        fs::write(&path, &good[..len]).unwrap();
        assert!(load().unwrap_err().to_string().contains("a.parquet"), "{len}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        fs::write(&path, &bad).unwrap();
        let _ = load();
    }
}

#[test]
fn folders_without_the_split_or_any_rows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (message, hint) = error(folder.path(), &Env::default());
    assert!(message.ends_with("expected .parquet, .jsonl, .jsonl.gz or .json files, found none") && hint.is_none());
    write(&folder.path().join("data/chat-00000-of-00001.jsonl"), "");
    assert!(error(folder.path(), &Env::default()).0.ends_with("no files of the split `train`, found `chat`"));
    let twice = folder.path().join("data/chat-00000-of-00001.jsonl");
    let twice = format!("{0},{0}", twice.display());
    assert!(error(twice, &Env::default()).0.ends_with("is named twice"));
}

#[test]
fn the_note_about_the_gated_set_names_it() {
    assert!(in_place_of_the_gated_set().contains(super::super::registered::REFERENCE));
}
