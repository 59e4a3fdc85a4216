//! Reports read back, hostile ones included.

use longshore_eval::saved::{Outcome, read};
use serde_json::{Value, json};
use std::path::PathBuf;

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

fn record(index: usize, choice: &str) -> Value {
    let logits = ["A", "B", "C", "D"].map(|letter| if letter == choice { 1.5 } else { 0.25 });
    json!({
        "subject": "s", "index": index, "prompt_hash": "h", "logits": logits, "choice": choice, "answer": "B",
        "correct": choice == "B",
    })
}

fn report(task: &str, more: &Value) -> Value {
    let mut report = json!({"schema": 1, "command": "eval", "task": task, "figures": {"nll": 1.0}});
    if let (Value::Object(report), Value::Object(more)) = (&mut report, more) {
        report.extend(more.clone());
    }
    report
}

#[test]
fn reports_and_lists_of_questions_are_read_in_any_layout() {
    let dir = tempfile::tempdir().unwrap();
    let records = [record(0, "A"), record(1, "B")];
    let report = report("mmlu", &json!({"records": records}));
    let whole = read(&file(&dir, "a.json", &format!("{report:#}"))).unwrap();
    assert_eq!(whole, read(&file(&dir, "b.json", &report.to_string())).unwrap());
    let lines = format!("\n{}\n{}\n", records[0], records[1]);
    assert_eq!(whole.outcome, read(&file(&dir, "c.jsonl", &lines)).unwrap().outcome);
    assert_eq!(whole.outcome, read(&file(&dir, "d", &lines)).unwrap().outcome);
    let Outcome::Mmlu(records) = whole.outcome else { panic!("answers") };
    assert_eq!((records.len(), records[1].correct), (2, true));
}

#[test]
fn windows_are_read_with_their_sums() {
    let dir = tempfile::tempdir().unwrap();
    let windows = json!({"windows": [{"nll": 3.5, "tokens": 2}]});
    let read = |name: &str, task: &str, more: &Value| {
        longshore_eval::saved::read(&file(&dir, name, &report(task, more).to_string())).unwrap().outcome
    };
    let Outcome::Perplexity(found) = read("p", "ppl", &windows) else { panic!("likelihoods") };
    assert_eq!((found[0].nll, found[0].tokens), (3.5, 2));
    let window = json!({"positions": 2, "kl": 0.5, "reverse_kl": 0.25, "same_top": 1.0, "nll_difference": -0.5});
    let both = json!({"windows": [window], "mmlu": {"records": [[record(0, "A")], [record(0, "B")]]}});
    let Outcome::Divergence(found, Some([a, b])) = read("k", "kl", &both) else { panic!("divergences") };
    assert_eq!((found[0].sums(), a[0].correct, b[0].correct), ([0.5, 0.25, 1.0, -0.5], false, true));
}

#[test]
fn what_no_run_can_have_found_is_refused_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let said = |text: &str| read(&file(&dir, "r.json", text)).unwrap_err().to_string();
    let of = |task: &str, more: &Value| said(&report(task, more).to_string());
    let mut wrong = record(0, "A");
    wrong["choice"] = "C".into();
    let mut lied = record(1, "A");
    lied["correct"] = true.into();
    let text = of("mmlu", &json!({"records": [wrong, lied, record(2, "B"), record(2, "B")]}));
    for part in [
        "3 malformed rows",
        "r.json:1: choice C is not",
        "r.json:2: `correct` is true",
        "r.json:4: s 2 is in line 3 too",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut nan = record(0, "A");
    nan["logits"][1] = Value::Null;
    assert!(of("mmlu", &json!({"records": [nan.clone()]})).contains("null"));
    nan["logits"][1] = 1e39.into();
    assert!(of("mmlu", &json!({"records": [nan]})).contains("is not that of the logits"));
    assert!(of("mmlu", &json!({"records": []})).contains("there are no questions"));
    assert!(of("mmlu", &json!({"records": 3})).contains("expected a sequence"));
    assert!(of("mmlu", &json!({})).contains("there is no `records`, which `--report` writes"));
    assert!(of("ppl", &json!({})).contains("there is no `windows`"));
    assert!(of("best", &json!({})).contains("found one of `best`"));
    let window = |nll: f64, tokens: u64| json!({"nll": nll, "tokens": tokens});
    let text = of("ppl", &json!({"windows": [window(1.0, 0), window(1e300, 5), window(1.0, 1 << 40), window(1.0, 1)]}));
    for part in [
        "3 malformed rows",
        ":1: a window of 0 tokens",
        ":2: 1e300 over 5 tokens",
        ":3: a window of 1099511627776 tokens",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let big =
        report("ppl", &json!({"windows": [window(1.0, 1)]})).to_string().replace("\"nll\":1.0,", "\"nll\":1e999,");
    assert!(said(&big).contains("number out of range"), "{big}");
    assert!(said("{\"schema\":1,\"command\":\"generate\",\"task\":\"mmlu\"}").contains("found `generate` of 1"));
    assert!(said("{\"schema\":2,\"command\":\"eval\",\"task\":\"mmlu\"}").contains("found `eval` of 2"));
    for garbage in ["", "{", "[1, 2]", "<html>", "{\"task\": \"mmlu\"}", "\u{0}\u{1}"] {
        assert!(said(garbage).contains("expected a report of `eval`, or its questions as JSON lines"), "{garbage}");
    }
    assert!(said(&"[".repeat(100_000)).contains("expected a report of `eval`"));
    assert!(said(&"{\"x\":".repeat(100_000)).contains("EOF while parsing"));
    let huge = dir.path().join("huge");
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    assert!(read(&huge).unwrap_err().to_string().contains("expected at most"));
    assert!(read(dir.path()).is_err() && read(&dir.path().join("none")).is_err());
}
