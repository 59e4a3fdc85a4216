//! What `generate` and `logits` refuse, and what they say to do about it.

use crate::generate::shown;
use crate::harness::{Dir, model};
use crate::variant;
use serde_json::json;

fn source() -> String {
    model().display().to_string()
}

/// What several commands say, each after its arguments.
fn said(dir: &Dir, commands: &[&[&str]]) -> String {
    let source = source();
    let say = |args: &&[&str]| {
        let shown = args.join(" ").replace(&source, "[MODEL]");
        format!("$ longshore {shown}\n{}", dir.run(args))
    };
    commands.iter().map(say).collect::<Vec<_>>().join("\n")
}

/// What `generate` says of each of these prompt files.
fn said_of_files(files: &[(&str, &str)]) -> String {
    let (dir, source) = (Dir::new(), source());
    let say = |(name, text): &(&str, &str)| {
        std::fs::write(dir.path(name), text).expect("a writable folder");
        said(&dir, &[&["generate", &source, "--prompt-file", name, "--max-new", "1"]])
    };
    files.iter().map(say).collect::<Vec<_>>().join("\n")
}

#[test]
fn help_of_the_running_commands() {
    let dir = Dir::new();
    shown!("help_of_the_running_commands", ["generate", "logits"].map(|name| dir.ok(&[name, "--help"])).join("\n"));
}

#[test]
fn no_prompt_or_an_empty_one() {
    let (dir, source) = (Dir::new(), source());
    shown!(
        "refused_empty",
        said(
            &dir,
            &[
                &["generate", &source],
                &["generate", &source, ""],
                &["generate", &source, "--prompt-ids", ""],
                &["logits", &source, "--prompt", ""],
            ],
        )
    );
    shown!("refused_empty_files", said_of_files(&[("p.txt", ""), ("p.jsonl", "\n\n"), ("q.jsonl", "\"one\"\n\"\"")]));
}

#[test]
fn a_bad_line_is_named_with_its_file() {
    let files = [
        ("a.jsonl", "\"one\"\nnope\n"),
        ("b.jsonl", "\n{\"a\": 1}"),
        ("c.jsonl", "{\"input_ids\": [1, -1]}"),
        ("d.jsonl", "{\"turns\": [\"a\", 1]}"),
        ("e.jsonl", "{\"messages\": [{\"content\": \"a\"}]}"),
        ("f.jsonl", &"[".repeat(1000)),
    ];
    shown!("refused_lines", said_of_files(&files));
}

#[test]
fn ids_that_are_no_tokens_are_refused_before_anything_is_read() {
    let (dir, source) = (Dir::new(), source());
    std::fs::write(dir.path("p.jsonl"), "\"one\"\n{\"input_ids\": [1, 4096]}").expect("a writable folder");
    shown!(
        "refused_ids",
        said(
            &dir,
            &[
                &["generate", &source, "--prompt-file", "p.jsonl"],
                &["generate", &source, "--prompt-ids", "4294967295"],
                &["generate", &source, "--prompt-ids", "1,a"],
                &["generate", &source, "--prompt-ids", "1", "--chat"],
                &["logits", &source, "--prompt-ids", "1,4096"],
            ],
        )
    );
}

#[test]
fn files_that_are_no_prompts() {
    let (dir, source) = (Dir::new(), source());
    std::fs::write(dir.path("binary"), [0xff, 0xfe]).expect("a writable folder");
    let generate = |name: &str| said(&dir, &[&["generate", &source, "--prompt-file", name]]);
    shown!("refused_files", ["binary", "none", "."].map(generate).join("\n"));
}

#[test]
fn text_needs_a_tokenizer_of_the_models_size() {
    let dir = Dir::new();
    variant::with_files(&dir, "none", &[("tokenizer.json", None)]);
    variant::with_files(&dir, "bad", &[("tokenizer.json", Some("{}"))]);
    let large = json!({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"hi": 4096}, "unk_token": "hi"}});
    variant::with_files(&dir, "large", &[("tokenizer.json", Some(&large.to_string()))]);
    shown!(
        "refused_tokenizer",
        said(
            &dir,
            &[
                &["generate", "none", "hi"],
                &["generate", "none", "hi", "--chat"],
                &["generate", &source(), "hi", "--tokenizer", "none"],
                &["generate", "bad", "hi"],
                &["generate", "large", "hi"],
                &["logits", "none", "--prompt", "hi"],
            ],
        )
    );
}

#[test]
fn templates_that_are_absent_or_fail() {
    let dir = Dir::new();
    variant::with_files(&dir, "none", &[("chat_template.jinja", None)]);
    let raises = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}";
    for (name, text) in [
        ("raises", raises),
        ("syntax", "{% if %}"),
        ("fails", "\n{{ messages[3]['content'] }}"),
        ("grows", "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"),
    ] {
        variant::with_files(&dir, name, &[("chat_template.jinja", Some(text))]);
    }
    let chat = |name: &str| said(&dir, &[&["generate", name, "hi", "--chat", "--system", "S"]]);
    shown!("refused_templates", ["none", "raises", "syntax", "fails", "grows"].map(chat).join("\n"));
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let (dir, source) = (Dir::new(), source());
    shown!(
        "refused_memory",
        said(
            &dir,
            &[
                &["generate", &source, "hi", "--memory", "100K"],
                &["generate", &source, "hi", "--memory", "2M"],
                &["generate", &source, "hi", "--memory", "64M", "--max-new", "4294967295"],
                &["logits", &source, "--memory", "1M"],
            ],
        )
    );
}

#[test]
fn a_checkpoint_that_is_not_what_its_config_says() {
    let dir = Dir::new();
    variant::with_field(&dir, "gelu", "config.json", "mlp_hidden_act", &"gelu".into());
    variant::with_field(&dir, "window", "config.json", "sliding_window", &128.into());
    variant::with_field(&dir, "eos", "generation_config.json", "eos_token_id", &json!([2, "x"]));
    variant::with_tensors(&dir, "missing", |tensors| {
        tensors.remove("backbone.layers.4.norm.weight").expect("a norm");
    });
    let generate = |name: &str| said(&dir, &[&["generate", name, "hi"]]);
    shown!("refused_checkpoint", ["gelu", "window", "eos", "missing"].map(generate).join("\n"));
}

#[test]
fn options_out_of_range() {
    let (dir, source) = (Dir::new(), source());
    let generate = |args: &[&str]| said(&dir, &[&[&["generate", &source, "hi"], args].concat()]);
    let all = [
        generate(&["--temperature", "nan", "--top-p", "2", "--min-p=-1", "--repetition-penalty", "0"]),
        generate(&["--mtp"]),
        generate(&["--mtp", "--top-k", "3"]),
        generate(&["--top-logprobs", "3"]),
        generate(&["--system", "S"]),
        generate(&["--dt-min", "-1"]),
        said(&dir, &[&["logits", &source, "--tolerance", "0.1"], &["logits", &source, "--per-layer"]]),
    ];
    shown!("refused_options", all.join("\n"));
}

#[test]
fn models_of_other_shapes_are_not_compared() {
    let dir = Dir::new();
    variant::with_tensors(&dir, "wide", |tensors| {
        for name in ["backbone.embeddings.weight", "lm_head.weight"] {
            let (_, shape, data) = tensors.get_mut(name).expect("a table");
            shape[0] += 1;
            data.extend([0; 512]);
        }
    });
    let config = std::fs::read_to_string(dir.path("wide/config.json")).expect("a config");
    let config = config.replace("\"vocab_size\": 4096", "\"vocab_size\": 4097");
    std::fs::write(dir.path("wide/config.json"), config).expect("a writable folder");
    shown!("refused_shapes", said(&dir, &[&["logits", &source(), "wide"], &["logits", "wide", "none"]]));
}
