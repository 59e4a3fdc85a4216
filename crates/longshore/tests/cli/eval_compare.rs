//! Saved runs: what their reports hold, and `longshore eval compare`.

use crate::harness::{Dir, model};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn source() -> String {
    model().to_str().expect("UTF-8").to_owned()
}

fn read(dir: &Dir, name: &str) -> Value {
    let text = std::fs::read_to_string(dir.path(name)).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

fn sha256(path: &std::path::Path) -> String {
    format!("{:x}", Sha256::digest(std::fs::read(path).expect("a file")))
}

const MMLU: [&str; 6] = ["--data", "bundled", "--precision", "f32", "--subjects", "*"];

/// A checkpoint of other weights in the folder `q`.
fn quantized(dir: &Dir) {
    let args =
        ["quantize", &source(), "q", "--quant-cfg", "mxfp4", "--to", "hf", "--skip-generate", "--skip-report", "-q"];
    dir.ok(&args);
}

/// Reports `a.json` and `b.json`, of which the second answers every third question right where the first is wrong, and wrong where it is right.
fn two_reports(dir: &Dir) -> [Value; 2] {
    dir.ok(&[&["eval", "mmlu", &source(), "--report", "a.json"][..], &MMLU].concat());
    let a = read(dir, "a.json");
    let mut b = a.clone();
    for record in b["records"].as_array_mut().expect("records").iter_mut().step_by(3) {
        let wrong = if record["answer"] == "B" { "C" } else { "B" };
        let right = record["answer"].as_str().expect("a letter").to_owned();
        let choice = if record["correct"] == true { wrong } else { &right };
        record["logits"] = json!(["A", "B", "C", "D"].map(|letter| if letter == choice { 2.5 } else { -1.0 }));
        record["correct"] = (record["answer"] == choice).into();
        record["choice"] = choice.into();
    }
    std::fs::write(dir.path("b.json"), b.to_string()).expect("a report");
    [a, b]
}

#[test]
fn a_report_says_where_its_figures_come_from() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    let args = [&MMLU[..], &["--report", "r.json", "--per-question", "r.jsonl"]].concat();
    let printed = dir.json(&[&["eval", "mmlu", &source()], &args[..]].concat());
    let report = read(&dir, "r.json");
    let provenance = &report["provenance"];
    assert_eq!(provenance["program"], concat!("longshore ", env!("CARGO_PKG_VERSION")));
    let checkpoint = &provenance["checkpoints"][0];
    assert_eq!((&checkpoint["name"], &checkpoint["format"]), (&"nemotron-h-10m".into(), &"safetensors".into()));
    assert_eq!((&checkpoint["precision"], &checkpoint["quantized_weights"]), (&"f32".into(), &Value::Null));
    assert_eq!(checkpoint["weights"]["from"], "data");
    assert_eq!(provenance["tokenizer"]["sha256"], sha256(&model().join("tokenizer.json")));
    assert_eq!(provenance["questions"]["data_sha256"], report["data_sha256"]);
    assert_eq!(
        (&provenance["questions"]["style"], &provenance["questions"]["ties"]),
        (&"lm-eval".into(), &"first".into())
    );
    // The report is what --json prints, and the questions.
    let mut without = report.clone();
    let records = without.as_object_mut().expect("an object").remove("records").expect("records");
    without["peak_memory"] = printed["peak_memory"].clone();
    assert_eq!(without, printed);
    let lines = std::fs::read_to_string(dir.path("r.jsonl")).expect("lines");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(records, Value::from(lines));
    // A conversion knows its checksums, the data has the same, and another format another hash.
    let hash = |checkpoint: &str, more: &[&str]| {
        let args = [&["eval", "mmlu", checkpoint, "--limit", "1"], &MMLU[..], more].concat();
        dir.json(&args)["provenance"]["checkpoints"][0]["weights"].clone()
    };
    let listed = hash("mc", &[]);
    std::fs::remove_file(dir.path("mc/release/longshore.json")).expect("a manifest");
    let found = hash("mc", &["--threads", "1"]);
    assert_eq!((&listed["from"], &found["from"]), (&"manifest".into(), &"data".into()));
    assert_eq!(listed["sha256"], found["sha256"]);
    assert_ne!(listed["sha256"], checkpoint["weights"]["sha256"]);
    assert_eq!(hash("mc", &["--no-weights-hash"]), Value::Null);
}

#[test]
fn runs_stand_side_by_side_with_paired_errors() {
    let dir = Dir::new();
    let [a, b] = two_reports(&dir);
    let object = dir.json(&["eval", "compare", "a.json", "b.json", "--html", "page.html"]);
    let [first, second] = [&object["runs"][0]["questions"], &object["runs"][1]["questions"]];
    assert_eq!((&first["scores"], &first["difference"]), (&a["scores"], &Value::Null));
    let right = |report: &Value| {
        let records = report["records"].as_array().expect("records").iter();
        records.map(|record| record["correct"] == true).collect::<Vec<_>>()
    };
    let pairs: Vec<(bool, bool)> = right(&a).into_iter().zip(right(&b)).collect();
    let count = |pair| pairs.iter().filter(|&&p| p == pair).count();
    let difference = &second["difference"];
    let (lost, won) = (count((true, false)), count((false, true)));
    assert!(lost > 0 && won > 0, "{lost} {won}");
    assert_eq!((&difference["only_first"], &difference["only_second"]), (&lost.into(), &won.into()));
    assert_eq!(difference["flips"].as_array().map(Vec::len), Some(lost + won));
    let page = std::fs::read_to_string(dir.path("page.html")).expect("a page");
    assert!(page.contains("Accuracy by category") && page.contains("McNemar"), "{page}");
    let said = dir.ok(&["eval", "compare", "a.json", "b.json", "--flips", "2", "-v"]);
    assert!(said.contains(&format!("2 of {} questions that one answers right", lost + won)), "{said}");
    assert!(!dir.ok(&["eval", "compare", "a.json", "b.json", "--flips", "0"]).contains("that one answers right"));
    // A list of questions has the same figures, and does not say more.
    let lines: Vec<String> = b["records"].as_array().expect("records").iter().map(Value::to_string).collect();
    std::fs::write(dir.path("b.jsonl"), lines.join("\n")).expect("lines");
    let listed = dir.json(&["eval", "compare", "a.json", "b.jsonl"]);
    assert_eq!(listed["runs"][1]["questions"], *second);
    assert!(
        listed["warnings"][0].as_str().is_some_and(|w| w.contains("does not say with which checkpoint")),
        "{listed}"
    );
}

#[test]
fn what_was_asked_otherwise_is_warned_of_and_other_questions_are_refused() {
    let dir = Dir::new();
    let [a, _] = two_reports(&dir);
    let mut other = a.clone();
    other["provenance"]["questions"]["style"] = "modelopt".into();
    other["provenance"]["tokenizer"]["sha256"] = "f".repeat(64).into();
    other["records"][0]["prompt_hash"] = "other".into();
    let save = |name: &str, report: &Value| std::fs::write(dir.path(name), report.to_string()).expect("a report");
    save("c.json", &other);
    let said = dir.ok(&["eval", "compare", "a.json", "c.json"]);
    for part in [
        "tokenizer (SHA-256) ffffffffffff; the first",
        "style modelopt; the first has lm-eval",
        "1 of 60 questions were asked in other words",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let answer = if a["records"][3]["answer"] == "A" { "D" } else { "A" };
    other["records"][3]["answer"] = answer.into();
    other["records"][3]["correct"] = (other["records"][3]["choice"] == answer).into();
    save("d.json", &other);
    save("e.json", &json!({"schema": 1, "command": "eval", "task": "ppl", "windows": [{"nll": 1.0, "tokens": 2}]}));
    let said = dir.run(&["eval", "compare", "a.json", "d.json", "e.json", "--html", "page.html"]);
    assert!(said.starts_with("exit 2\n"), "{said}");
    for part in [
        "run 2 (`d.json`): style modelopt",
        "has different right answers",
        "run 3 (`e.json`): task ppl; the first has mmlu",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!dir.path("page.html").exists());
    save("f.json", &json!({"schema": 1, "command": "eval", "task": "mmlu"}));
    let said = dir.run(&["eval", "compare", "a.json", "f.json"]);
    assert!(said.starts_with("exit 2\n") && said.contains("f.json: there is no `records`"), "{said}");
    std::fs::write(dir.path("g.json"), "<html>").expect("a page");
    let said = dir.run(&["eval", "compare", "f.json", "a.json", "g.json"]);
    assert!(said.contains("f.json: there is no") && said.contains("g.json: expected a report of `eval`"), "{said}");
    let said = dir.run(&["eval", "compare", "a.json"]);
    assert!(said.starts_with("exit 2\n") && said.contains("2 values required"), "{said}");
    let said = dir.run(&["eval", "mmlu", &source(), "--data", "bundled", "--report", "none/r.json"]);
    assert!(said.contains("none`: no such folder") && !said.contains("Evaluat"), "{said}");
}

#[test]
fn likelihoods_and_divergences_are_compared_by_window() {
    let dir = Dir::new();
    quantized(&dir);
    std::fs::write(dir.path("text.txt"), "Once upon a time there was a whale. ".repeat(40)).expect("a text");
    let windows = ["--data", "text.txt", "--ctx", "48", "--precision", "f32"];
    let eval = |task: &[&str], report: &str| {
        dir.ok(&[&["eval"], task, &windows, &["--report", report]].concat());
    };
    eval(&["ppl", &source()], "a.json");
    eval(&["ppl", "q"], "b.json");
    eval(&["kl", &source(), "q"], "kl.json");
    eval(&["kl", &source(), &source()], "same.json");
    let object = dir.json(&["eval", "compare", "a.json", "b.json"]);
    // The difference of two runs is that of the one pass over both.
    let paired = &object["runs"][1]["likelihood"]["difference"];
    let direct = &read(&dir, "kl.json")["summary"]["nll_difference"];
    for field in ["mean", "error"] {
        let [a, b] = [paired, direct].map(|mean| mean[field].as_f64().expect("a number"));
        assert!((a - b).abs() < 1e-9, "{field} {a} {b}");
    }
    let object = dir.json(&["eval", "compare", "same.json", "kl.json", "--html", "kl.html"]);
    let kl = &object["runs"][1]["divergences"]["kl"];
    assert_eq!(kl["value"]["mean"], kl["difference"]["mean"]);
    assert_eq!(kl["value"]["mean"], read(&dir, "kl.json")["summary"]["kl"]["mean"]);
    dir.ok(&[
        "eval",
        "ppl",
        &source(),
        "--data",
        "text.txt",
        "--ctx",
        "32",
        "--precision",
        "f32",
        "--report",
        "c.json",
    ]);
    let said = dir.run(&["eval", "compare", "a.json", "c.json"]);
    assert!(
        said.starts_with("exit 2\n") && said.contains("windowing {\"whole\":{\"length\":32}}; the first has"),
        "{said}"
    );
    assert!(!said.contains("data (SHA-256)"), "{said}");
}

#[test]
fn a_divergence_asks_the_questions_of_mmlu_in_the_same_pass() {
    let (dir, source) = (Dir::new(), source());
    quantized(&dir);
    std::fs::write(dir.path("text.txt"), "Once upon a time there was a whale. ".repeat(20)).expect("a text");
    let text = ["--data", "text.txt", "--ctx", "48", "--precision", "f32"];
    let args =
        [&["eval", "kl", &source, "q", "--mmlu", "bundled", "--few-shots", "1", "--report", "kl.json"], &text[..]]
            .concat();
    let printed = dir.json(&args);
    assert_eq!(printed["summary"], dir.json(&[&["eval", "kl", &source, "q"], &text[..]].concat())["summary"]);
    let report = read(&dir, "kl.json");
    for (i, checkpoint) in [source.as_str(), "q"].into_iter().enumerate() {
        let args = [
            "eval",
            "mmlu",
            checkpoint,
            "--data",
            "bundled",
            "--few-shots",
            "1",
            "--precision",
            "f32",
            "--report",
            "m.json",
        ];
        dir.ok(&args);
        assert_eq!(report["mmlu"]["records"][i], read(&dir, "m.json")["records"], "{checkpoint}");
    }
    assert_eq!(printed["questions"]["questions"], 60);
    assert_eq!(report["provenance"]["checkpoints"][1]["name"], "q");
    let said = dir.ok(&args);
    assert!(said.contains("McNemar's p") && said.contains("60 questions (lm-eval)"), "{said}");
    let refused = |more: &[&str]| dir.run(&[&["eval", "kl", &source, "q"], &text[..], more].concat());
    assert!(refused(&["--few-shots", "2"]).contains("`--mmlu` names none"));
    assert!(refused(&["--limit-questions", "2"]).contains("--mmlu"));
}

#[test]
fn padding_has_no_part_in_a_distribution() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "--make-vocab-size-divisible-by", "1000", "-q"]);
    std::fs::remove_dir_all(dir.path("mc/release/hf")).expect("configs");
    std::fs::remove_file(dir.path("mc/release/longshore.json")).expect("a manifest");
    // Megatron's null tokenizers do not say how many rows are padding.
    patch(&dir.path("mc/release/common.pt"), b"HuggingFaceTokenizer", b"NullTokenizerNothing");
    std::fs::write(dir.path("text.txt"), "Once upon a time there was a whale. ".repeat(20)).expect("a text");
    let text = ["--data", "text.txt", "--ctx", "48", "--precision", "f32"];
    let json = |args: &[&str]| dir.json(&[&["eval"], args, &text].concat());
    for args in [&["kl", &source(), "mc"][..], &["kl", "mc", &source(), "--tokenizer", &source()]] {
        let summary = json(args)["summary"].clone();
        assert_eq!((&summary["kl_max"], &summary["reverse_kl"]["mean"]), (&0.0.into(), &0.0.into()), "{summary}");
    }
    let figures = json(&["ppl", &source()])["figures"].clone();
    assert_eq!(json(&["ppl", "mc", "--tokenizer", &source()])["figures"], figures);
    dir.model_of_size("wide", 5000);
    let said = dir.run(&[&["eval", "kl", &source(), "wide"], &text[..]].concat());
    assert!(said.starts_with("exit 2\n") && said.contains("the vocabularies have 4096 and 5000 rows"), "{said}");
    assert!(!said.contains("Evaluat"), "{said}");
}

/// Replaces bytes in the pickle of a zip archive, and its checksum.
fn patch(path: &std::path::Path, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(path).expect("an archive");
    let number = |bytes: &[u8]| usize::try_from(u32::from_le_bytes(bytes.try_into().expect("4 bytes"))).expect("small");
    let name = bytes.windows(8).position(|w| w == b"data.pkl").expect("a pickle");
    let header = bytes[..name].windows(4).rposition(|w| w == b"PK\x03\x04").expect("a header");
    let extra = usize::from(u16::from_le_bytes(bytes[header + 28..header + 30].try_into().expect("2 bytes")));
    let (sum, len) = (bytes[header + 14..header + 18].to_vec(), number(&bytes[header + 18..header + 22]));
    let begin = name + 8 + extra;
    let at = bytes[begin..begin + len].windows(old.len()).position(|w| w == old).expect("what is replaced") + begin;
    bytes[at..at + new.len()].copy_from_slice(new);
    let new_sum = crc32fast::hash(&bytes[begin..begin + len]).to_le_bytes();
    let sums: Vec<usize> = (0..bytes.len() - 3).filter(|&i| bytes[i..i + 4] == sum[..]).collect();
    for at in sums {
        bytes[at..at + 4].copy_from_slice(&new_sum);
    }
    std::fs::write(path, bytes).expect("a writable file");
}

#[test]
fn the_example_in_the_documents_runs() {
    let dir = Dir::new();
    let document = include_str!("../../../../docs/evaluation.md");
    let section = document.split("\n## ").find(|part| part.starts_with("Comparing runs")).expect("the section");
    let block = section.split("```").nth(1).expect("an example");
    let commands: Vec<&str> = block.lines().filter(|line| !line.is_empty()).collect();
    assert!(commands.len() >= 3 && commands.iter().any(|line| line.contains("eval compare")), "{commands:?}");
    for line in commands {
        let line = line.replace("models/nemotron-h-10m", &source());
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        dir.ok(&words);
    }
    assert!(dir.path("compare.html").exists());
}
