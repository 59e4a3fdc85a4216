//! `longshore eval`.

use crate::harness::{Dir, model};
use serde_json::Value;

fn source() -> String {
    model().to_str().expect("UTF-8").to_owned()
}

#[test]
fn mmlu_gives_the_same_logits_however_it_is_cut_and_in_both_formats() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    let mut first: Option<(Value, String)> = None;
    for (checkpoint, how) in [
        (source().as_str(), &[][..]),
        (source().as_str(), &["--batch-tokens", "33", "--threads", "1", "--memory", "8M"]),
        ("mc", &["--save-every", "0", "--scratch", "."]),
        (source().as_str(), &["--no-prefix-reuse"]),
    ] {
        let args = ["eval", "mmlu", checkpoint, "--data", "bundled", "--few-shots", "1", "--precision", "f32"];
        let args = [&args[..], &["--per-question", "lines.jsonl"], how].concat();
        let scores = dir.json(&args)["scores"].clone();
        let lines = std::fs::read_to_string(dir.path("lines.jsonl")).expect("the lines");
        assert_eq!(lines.lines().count(), 60);
        let line: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        let letter = |name: &str| line[name].as_str().expect("a letter").to_owned();
        assert_eq!(line["correct"].as_bool(), Some(letter("choice") == letter("answer")), "{line}");
        assert_eq!(scores["all"]["total"], 60);
        let (want_scores, want_lines) = first.get_or_insert_with(|| (scores.clone(), lines.clone()));
        assert!(scores == *want_scores && lines == *want_lines, "{how:?}");
    }
    let left = std::fs::read_dir(dir.path(".")).expect("a folder").flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("pass-")), "the pass is over");
}

#[test]
fn an_accuracy_below_the_bound_fails_and_a_dry_run_runs_nothing() {
    let dir = Dir::new();
    let args = ["eval", "mmlu", &source(), "--data", "bundled", "--subjects", "*", "--limit", "20"];
    for (bound, exit) in [("0", "exit 0\n"), ("1", "exit 1\n")] {
        let said = dir.run(&[&args[..], &["--lower-bound", bound]].concat());
        assert!(said.starts_with(exit) && said.contains("micro average"), "{said}");
    }
    let said = dir.ok(&[&args[..], &["--style", "modelopt-exact"]].concat());
    let last = said.lines().find(|line| line.starts_with("average ")).expect("the reference's last line");
    assert!(last.contains("/   20"), "{said}");
    let said = dir.ok(&[&args[..], &["--dry-run"]].concat());
    assert!(said.contains("20 questions (lm-eval, 0 shots)") && !said.contains("Evaluat"), "{said}");
}

#[test]
fn perplexity_of_a_text_is_that_of_its_ids() {
    let dir = Dir::new();
    std::fs::write(dir.path("text.txt"), "Once upon a time there was a whale. ".repeat(40)).expect("a text");
    let ppl = |data: &str, more: &[&str]| {
        dir.json(&[&["eval", "ppl", &source(), "--data", data, "--ctx", "64", "--precision", "f32"], more].concat())["figures"].clone()
    };
    let whole = ppl("text.txt", &[]);
    assert!(whole["perplexity"].as_f64().is_some_and(|x| x > 1.0 && x < 1000.0), "{whole}");
    assert!(whole["bits_per_byte"].as_f64().is_some_and(|x| x > 0.0), "{whole}");
    let ids = dir.json(&["generate", &source(), "--prompt-file", "text.txt", "--max-new", "1"])["prompt_ids"].clone();
    std::fs::write(dir.path("ids.jsonl"), format!("{{\"input_ids\": {ids}}}\n")).expect("ids");
    let [text, ids] = ["text.txt", "ids.jsonl"].map(|data| ppl(data, &["--stride", "16"]));
    assert_eq!(text["nll"], ids["nll"]);
    assert_eq!(text["nll"], ppl("ids.jsonl", &["--stride", "16", "--batch-tokens", "7", "--threads", "1"])["nll"]);
    // Every token but the first is scored.
    assert!(text["tokens"].as_u64() > whole["tokens"].as_u64(), "{text} {whole}");
}

#[test]
fn a_checkpoint_does_not_diverge_from_itself() {
    let dir = Dir::new();
    std::fs::write(dir.path("text.txt"), "Once upon a time there was a whale. ".repeat(20)).expect("a text");
    dir.ok(&[
        "quantize",
        &source(),
        "q",
        "--quant-cfg",
        "mxfp4",
        "--to",
        "hf",
        "--skip-generate",
        "--skip-report",
        "-q",
    ]);
    let kl = |b: &str| {
        let args = ["eval", "kl", &source(), b, "--data", "text.txt", "--ctx", "48", "--precision", "f32"];
        dir.json(&args)["summary"].clone()
    };
    let same = kl(&source());
    assert_eq!((&same["kl_max"], &same["same_top"]["mean"]), (&0.0.into(), &1.0.into()), "{same}");
    let other = kl("q");
    assert!(other["kl"]["mean"].as_f64().is_some_and(|x| x > 1e-3 && x < 10.0), "{other}");
}

#[test]
fn what_cannot_be_scored_is_refused_with_its_place() {
    let dir = Dir::new();
    std::fs::write(
        dir.path("bad.jsonl"),
        "{\"question\": \"a\", \"subject\": \"b\", \"choices\": [\"1\"], \"answer\": 9}\n{}\n",
    )
    .expect("rows");
    std::fs::write(dir.path("ids.jsonl"), "{\"input_ids\": [1, 2, 999999]}\n").expect("ids");
    std::fs::write(dir.path("short.txt"), "a b").expect("a text");
    for (args, said) in [
        (&["mmlu", "--data", "bad.jsonl"][..], "bad.jsonl:1: expected 4 choices"),
        (&["mmlu", "--data", "none"], "none"),
        (&["mmlu", "--data", "bundled", "--style", "best"], "no style `best`"),
        (&["mmlu", "--data", "bundled", "--subjects", "x*"], "no subject matches x*"),
        (&["mmlu", "--data", "bundled", "--few-shots", "6"], "expected 6 dev questions"),
        (&["ppl", "--data", "ids.jsonl"], "999999"),
        (&["ppl", "--data", "short.txt"], "too short for a window of 2048"),
    ] {
        let [task, rest @ ..] = args else { continue };
        let text = dir.run(&[&["eval", task, &source()], rest].concat());
        assert!(text.starts_with("exit 2\n") && text.contains(said), "{args:?}: {text}");
    }
}

#[test]
fn the_data_set_is_found_in_the_cache_and_by_its_variable() {
    let dir = Dir::new();
    let question = r#"{"question": "a", "subject": "b", "choices": ["1", "2", "3", "4"], "answer": 1}"#;
    let snapshot = dir.path("cache/datasets--cais--mmlu/snapshots/0123");
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::write(snapshot.join("mmlu_test.jsonl"), question).expect("a row");
    std::fs::write(dir.path("two.jsonl"), format!("{question}\n{question}\n")).expect("rows");
    let mut dir = dir.env("HF_HUB_CACHE", "cache");
    let args = ["eval", "mmlu", &source()];
    let total = |dir: &Dir, more: &[&str]| dir.json(&[&args[..], more].concat())["scores"]["all"]["total"].as_u64();
    assert_eq!(total(&dir, &[]), Some(1));
    assert_eq!(total(&dir, &["--data", "cais/mmlu"]), Some(1));
    dir = dir.env("MMLU_DATASET", "two.jsonl");
    assert_eq!(total(&dir, &[]), Some(2));
    assert_eq!(total(&dir, &["--data", "bundled", "--limit", "7"]), Some(7));
    let said = dir.env("HF_HUB_CACHE", "none").env("MMLU_DATASET", "").run(&args);
    let hint = "`hf download cais/mmlu --repo-type dataset`";
    assert!(said.starts_with("exit 2\n") && said.contains("neither a folder nor in") && said.contains(hint), "{said}");
}
