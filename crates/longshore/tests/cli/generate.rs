//! `longshore generate`: where prompts come from, and what comes out where.

use crate::harness::{Dir, model};
use crate::variant;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::process::{Output, Stdio};

const PROMPT: &str = "hello world";

fn source() -> String {
    model().display().to_string()
}

/// Compares a text with the snapshot of this name, without speeds and without numbers that a processor may round.
macro_rules! shown {
    ($name:expr, $text:expr) => {{
        let mut settings = $crate::harness::filters();
        settings.add_filter(r"[\d.]+ tokens/s  in [\d.]+s", "[RATE]  in [TIME]");
        settings.add_filter(r"after [\d.]+s", "after [TIME]");
        settings.add_filter(r"Peak  [\d.]+ .?B", "Peak  [MEMORY]");
        settings.add_filter(r"_per_second.: [\d.e+]+", "_per_second\": [RATE]");
        settings.add_filter(r"-\d+\.\d{3,}", "[LOGPROB]");
        settings.add_filter(r"needs \d+ bytes", "needs [BYTES] bytes");
        settings.bind(|| insta::assert_snapshot!($name, $text));
    }};
}

pub(crate) use shown;

/// Runs the binary with something on standard input.
fn fed(dir: &Dir, args: &[&str], input: &str) -> Output {
    let mut command = dir.command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// What a run that succeeds writes to stdout.
fn text(dir: &Dir, args: &[&str]) -> String {
    stdout(&dir.output(&[&["generate"], args].concat()))
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The object of a run on the bundled model, or of one whose first argument is another.
fn object(dir: &Dir, args: &[&str]) -> Value {
    let object = dir.json(&[&["generate"], args].concat());
    assert_eq!(object["error"], Value::Null, "{args:?}");
    object
}

/// What has to be the same whenever the arithmetic is.
fn computed(object: &Value) -> [&Value; 3] {
    assert!(object["ids"].is_array(), "{object}");
    ["prompt_ids", "ids", "logprobs"].map(|field| &object[field])
}

#[test]
fn the_text_goes_to_stdout_and_the_timing_to_stderr() {
    shown!("generate", Dir::new().ok(&["generate", &source(), PROMPT, "--max-new", "12"]));
}

#[test]
fn the_object_has_ids_text_and_log_probabilities() {
    let args = ["generate", &source(), PROMPT, "--max-new", "2", "--top-logprobs", "2", "--json", "-q"];
    shown!("generate_json", Dir::new().ok(&args));
}

#[test]
fn a_prompt_is_an_argument_a_file_standard_input_or_ids() {
    let (dir, source) = (Dir::new(), source());
    let file = |name: &str, text: &str| std::fs::write(dir.path(name), text).expect("a writable folder");
    file("unix", "hello world\n");
    file("windows", "hello world\r\n");
    file("text.jsonl", "\"hello world\"\n");
    file("prompt.jsonl", "\n{\"prompt\": \"hello world\"}\n\n");
    file("other.jsonl", "{\"text\": \"hello world\"}");
    file("ids.jsonl", "{\"input_ids\": [262, 292, 83, 1097]}");
    let expected = text(&dir, &[&source, PROMPT, "--max-new", "6"]);
    for name in ["unix", "windows", "text.jsonl", "prompt.jsonl", "other.jsonl", "ids.jsonl"] {
        assert_eq!(text(&dir, &[&source, "--prompt-file", name, "--max-new", "6"]), expected, "{name}");
    }
    assert_eq!(text(&dir, &[&source, "--prompt-ids", "262,292,83,1097", "--max-new", "6"]), expected);
    assert_eq!(text(&dir, &[&source, "--prompt-ids", " 262, 292 83 1097", "--max-new", "6"]), expected);
    let piped = fed(&dir, &["generate", &source, "--max-new", "6"], "hello world\n");
    assert_eq!(stdout(&piped), expected);
    let piped = fed(&dir, &["generate", &source, "--max-new", "6", "--prompt-file", "-"], PROMPT);
    assert_eq!(stdout(&piped), expected);
}

#[test]
fn the_checkpoint_may_come_from_the_environment() {
    let dir = Dir::new();
    let expected = text(&dir, &[&source(), "--prompt-ids", "1,17", "--max-new", "3"]);
    let dir = dir.env("MLM_MODEL_CKPT", model());
    assert_eq!(text(&dir, &["--prompt-ids", "1,17", "--max-new", "3"]), expected);
}

#[test]
fn several_prompts_end_with_a_line_each() {
    let dir = Dir::new();
    std::fs::write(dir.path("p.jsonl"), "\"hello world\"\n{\"input_ids\": [1, 17]}\n").expect("a writable folder");
    shown!("generate_several", dir.ok(&["generate", &source(), "--prompt-file", "p.jsonl", "--max-new", "5"]));
}

#[test]
fn a_chat_is_the_rendered_template() {
    let (dir, source) = (Dir::new(), source());
    let chat = object(&dir, &[&source, "Who?", "--chat", "--system", "Be brief.", "--max-new", "3"]);
    let rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(computed(&chat), computed(&object(&dir, &[&source, rendered, "--max-new", "3"])));
    let line = json!({"messages": [{"role": "user", "content": "Who?"}]}).to_string();
    std::fs::write(dir.path("p.jsonl"), line).expect("a writable folder");
    let file =
        object(&dir, &[&source, "--prompt-file", "p.jsonl", "--chat", "--system", "Be brief.", "--max-new", "3"]);
    assert_eq!(computed(&chat), computed(&file));
}

#[test]
fn the_second_turn_reads_the_first_reply() {
    let (dir, source) = (Dir::new(), source());
    let line = json!({"question_id": 81, "category": "writing", "turns": ["Who?", "And then?"]}).to_string();
    std::fs::write(dir.path("p.jsonl"), line).expect("a writable folder");
    let both = object(&dir, &[&source, "--prompt-file", "p.jsonl", "--max-new", "4"]);
    let turns = both["results"][0]["turns"].as_array().expect("turns");
    assert_eq!(turns.len(), 2, "{both}");
    let reply = turns[0]["text"].as_str().expect("a text");
    let rendered = format!(
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n\
         <|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(computed(&turns[1]), computed(&object(&dir, &[&source, &rendered, "--max-new", "4"])));
}

#[test]
fn every_reply_of_a_conversation_ends_its_line() {
    let (dir, source) = (Dir::new(), source());
    std::fs::write(dir.path("p.jsonl"), "{\"turns\": [\"Who?\", \"And then?\"]}").expect("a writable folder");
    let args = [&source, "--prompt-file", "p.jsonl", "--max-new", "4"];
    let turns = object(&dir, &args)["results"][0]["turns"].clone();
    let replies: Vec<&str> = [0, 1].map(|i| turns[i]["text"].as_str().expect("a text")).to_vec();
    assert_eq!(text(&dir, &args), format!("{}\n{}\n", replies[0], replies[1]));
}

#[test]
fn variables_reach_the_template() {
    let dir = Dir::new();
    let template = "{% if loud %}LOUD{% else %}soft{% endif %} {{ name }} {{ messages[0]['content'] }}";
    variant::with_files(&dir, "m", &[("chat_template.jinja", Some(template))]);
    let chat = ["m", "now", "--chat", "--max-new", "1", "--template-var", "loud=false", "--template-var", "name=Ann"];
    let plain = object(&dir, &["m", "soft Ann now", "--max-new", "1"]);
    assert_eq!(computed(&object(&dir, &chat)), computed(&plain));
}

#[test]
fn every_new_token_has_its_log_probability() {
    let object = object(&Dir::new(), &[&source(), PROMPT, "--osl", "7", "--top-logprobs", "100000"]);
    let list = |field: &str| object[field].as_array().expect("a list").clone();
    let (ids, logprobs, tops) = (list("ids"), list("logprobs"), list("top_logprobs"));
    assert_eq!([ids.len(), logprobs.len(), tops.len()], [7; 3]);
    for ((id, logprob), top) in ids.iter().zip(&logprobs).zip(&tops) {
        assert_eq!((&top[0]["id"], &top[0]["logprob"]), (id, logprob));
        let all: Vec<f64> =
            top.as_array().expect("a list").iter().map(|t| t["logprob"].as_f64().expect("a number")).collect();
        assert_eq!(all.len(), 4096);
        assert!(all.is_sorted_by(|a, b| a >= b));
        let sum: f64 = all.iter().map(|x| x.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    }
}

#[test]
fn both_formats_give_the_same_numbers() {
    let (dir, source) = (Dir::new(), source());
    dir.ok(&["convert", &source, "mc", "-q"]);
    let run = |checkpoint: &str| object(&dir, &[checkpoint, PROMPT, "--max-new", "16"]);
    assert_eq!(computed(&run("mc")), computed(&run(&source)));
}

#[test]
fn memory_threads_and_batches_change_no_number() {
    let (dir, source) = (Dir::new(), source());
    let base = ["--prompt-ids", "1,17,42,99,7,262,292,83,1097", "--max-new", "8"];
    let run = |more: &[&str]| object(&dir, &[&[source.as_str()], &base[..], more].concat());
    let expected = run(&["--threads", "1"]);
    for more in [
        ["--threads", "3"].as_slice(),
        &["--memory", "5M"],
        &["--memory", "5M", "--batch-tokens", "2", "--scratch", "."],
        &["--batch-tokens", "1"],
        &["--batch-tokens", "4294967295"],
    ] {
        assert_eq!(computed(&run(more)), computed(&expected), "{more:?}");
    }
    let said = dir.ok(&["generate", &source, PROMPT, "-v", "--memory", "5M"]);
    assert!(!said.contains("12 of 12 layers in memory"), "{said}");
}

/// Results without what no two runs share.
fn without_times(mut results: Value) -> Value {
    let texts = results.as_array_mut().into_iter().flatten();
    for turn in texts.filter_map(|text| text["turns"].as_array_mut()).flatten().filter_map(Value::as_object_mut) {
        turn.retain(|name, _| !name.ends_with("_seconds"));
    }
    results
}

#[test]
fn a_batch_gives_what_its_prompts_give_alone() {
    let (dir, source) = (Dir::new(), source());
    let lines = "{\"input_ids\": [1, 17, 42]}\n\"hello world\"\n{\"turns\": [\"Who?\", \"And then?\"]}\n\"The\"\n";
    std::fs::write(dir.path("p.jsonl"), lines).expect("a writable folder");
    let base = [&source, "--prompt-file", "p.jsonl", "--max-new", "5"];
    let run = |more: &[&str]| without_times(object(&dir, &[&base[..], more].concat())["results"].clone());
    let alone = run(&[]);
    assert_eq!(alone.as_array().map(Vec::len), Some(4), "{alone}");
    for more in [["--batch", "3"].as_slice(), &["--batch", "60000"], &["--batch", "3", "--memory", "8M"]] {
        assert_eq!(run(more), alone, "{more:?}");
    }
}

#[test]
fn a_text_ends_at_each_of_the_eos_ids() {
    let (dir, source) = (Dir::new(), source());
    let ids = object(&dir, &[&source, PROMPT, "--max-new", "6"])["ids"].clone();
    for at in [1, 3] {
        let eos = json!([999_999, ids[at], 4000]);
        let name = format!("eos{at}");
        variant::with_field(&dir, &name, "generation_config.json", "eos_token_id", &eos);
        let stopped = object(&dir, &[&name, PROMPT, "--max-new", "6"]);
        let expected: Vec<&Value> = ids.as_array().expect("a list").iter().take(at + 1).collect();
        assert_eq!((&stopped["ids"], &stopped["finish"]), (&json!(expected), &"stop".into()));
        let whole = object(&dir, &[&name, PROMPT, "--max-new", "6", "--ignore-eos"]);
        assert_eq!((&whole["ids"], &whole["finish"]), (&ids, &"length".into()));
    }
}

/// The model says `</s>` where it would have said its second token.
fn with_end(dir: &Dir, name: &str) {
    variant::with_tensors(dir, name, |tensors| {
        let head = &mut tensors.get_mut("lm_head.weight").expect("a head").2;
        let (end, and) = (2 * 512, 285 * 512);
        for i in 0..512 {
            head.swap(end + i, and + i);
        }
    });
}

#[test]
fn special_tokens_are_shown_on_request() {
    let dir = Dir::new();
    with_end(&dir, "m");
    assert_eq!(text(&dir, &["m", PROMPT]), ",");
    assert_eq!(text(&dir, &["m", PROMPT, "--show-special"]), ",</s>");
    assert_eq!(object(&dir, &["m", PROMPT])["ids"], json!([16, 2]));
}

#[test]
fn another_tokenizer_does_not_lose_the_models_end() {
    let dir = Dir::new();
    with_end(&dir, "m");
    std::fs::create_dir(dir.path("tokenizer")).expect("a new folder");
    std::fs::rename(dir.path("m/tokenizer.json"), dir.path("tokenizer/tokenizer.json")).expect("the tokenizer");
    assert_eq!(object(&dir, &["m", PROMPT, "--tokenizer", "tokenizer", "--max-new", "4"])["ids"], json!([16, 2]));
}

#[test]
fn the_names_of_other_programs_are_known() {
    let (dir, source) = (Dir::new(), source());
    let expected = text(&dir, &[&source, PROMPT, "--max-new", "3"]);
    for name in ["--osl", "--max-new-tokens", "--max-tokens", "--generate-output-len", "--n-predict"] {
        assert_eq!(text(&dir, &[&source, PROMPT, name, "3"]), expected, "{name}");
    }
    assert_eq!(text(&dir, &[&source, PROMPT, "--osl", "0"]), "");
}

#[test]
fn a_seed_is_a_text() {
    let (dir, source) = (Dir::new(), source());
    let run = |seed: &str| text(&dir, &[&source, PROMPT, "--max-new", "16", "--temperature", "1", "--seed", seed]);
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
    assert_ne!(run("1"), text(&dir, &[&source, PROMPT, "--max-new", "16"]));
}

#[test]
fn filters_that_leave_one_token_are_greedy() {
    let (dir, source) = (Dir::new(), source());
    let run = |more: &[&str]| text(&dir, &[&[source.as_str(), PROMPT, "--max-new", "12"], more].concat());
    let greedy = run(&[]);
    for filter in [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]] {
        assert_eq!(run(&[&["--temperature", "1.5"], &filter[..]].concat()), greedy, "{filter:?}");
    }
}

#[test]
fn a_penalty_keeps_tokens_from_coming_again() {
    let args = [&source(), PROMPT, "--max-new", "40", "--repetition-penalty", "1000", "--ignore-eos"];
    let object = object(&Dir::new(), &args);
    let mut seen = object["prompt_ids"].as_array().expect("ids").clone();
    for id in object["ids"].as_array().expect("ids") {
        assert!(!seen.contains(id), "{id} again");
        seen.push(id.clone());
    }
}

#[test]
fn rows_that_no_token_has_never_win() {
    let dir = Dir::new();
    // A row that is twice that of the second token would win where that one did.
    variant::with_tensors(&dir, "m", |tensors| {
        for name in ["backbone.embeddings.weight", "lm_head.weight"] {
            let (_, shape, data) = tensors.get_mut(name).expect("a table");
            shape[0] += 1;
            let row: Vec<u8> = data[285 * 512..286 * 512].to_vec();
            data.extend(
                row.chunks_exact(2).flat_map(|x| u16::from_le_bytes([x[0], x[1]]).wrapping_add(0x80).to_le_bytes()),
            );
        }
    });
    let config = std::fs::read_to_string(dir.path("m/config.json")).expect("a config");
    let config = config.replace("\"vocab_size\": 4096", "\"vocab_size\": 4097");
    std::fs::write(dir.path("m/config.json"), config).expect("a writable folder");
    let args = ["m", PROMPT, "--max-new", "8", "--top-logprobs", "5000"];
    let padded = object(&dir, &args);
    assert_eq!(padded["top_logprobs"][0].as_array().map(Vec::len), Some(4096));
    assert_eq!(computed(&padded), computed(&object(&dir, &[&source(), PROMPT, "--max-new", "8"])));
    std::fs::remove_file(dir.path("m/tokenizer.json")).expect("it was there");
    let all = object(&dir, &["m", "--prompt-ids", "262,292,83,1097", "--max-new", "2"]);
    assert_eq!(all["ids"][0], 4096, "without a tokenizer nothing says that it is padding");
}

#[test]
fn without_a_tokenizer_ids_come_out() {
    let dir = Dir::new();
    variant::with_files(&dir, "m", &[("tokenizer.json", None)]);
    shown!("generate_ids", dir.ok(&["generate", "m", "--prompt-ids", "1,17,42", "--max-new", "4"]));
    let object = object(&dir, &["m", "--prompt-ids", "1,17,42", "--max-new", "4"]);
    assert_eq!(object["text"], Value::Null);
    let ids: Vec<String> = object["ids"].as_array().expect("ids").iter().map(Value::to_string).collect();
    assert_eq!(text(&dir, &["m", "--prompt-ids", "1,17,42", "--max-new", "4"]), ids.join(","));
}

#[test]
fn a_given_tokenizer_beats_that_of_the_checkpoint() {
    let (dir, source) = (Dir::new(), source());
    variant::with_files(&dir, "none", &[("tokenizer.json", None)]);
    variant::with_files(&dir, "broken", &[("tokenizer.json", Some("{}"))]);
    let expected = text(&dir, &[&source, PROMPT, "--max-new", "4"]);
    for checkpoint in ["none", "broken"] {
        assert_eq!(text(&dir, &[checkpoint, PROMPT, "--max-new", "4", "--tokenizer", &source]), expected);
    }
}

#[test]
fn guesses_change_the_speed_and_not_the_text() {
    let dir = Dir::new();
    variant::with_guesses(&dir, "m");
    let plain = object(&dir, &["m", PROMPT, "--max-new", "40"]);
    let guessed = object(&dir, &["m", PROMPT, "--max-new", "40", "--mtp"]);
    assert_eq!(guessed["ids"], plain["ids"]);
    let number = |field: &str| guessed["mtp"][field].as_f64().expect("a number");
    assert!(number("guessed") > 0.0 && number("right") <= number("guessed"), "{}", guessed["mtp"]);
    assert!((number("acceptance") - number("right") / number("guessed")).abs() < 1e-12);
    let streamed = object(&dir, &["m", PROMPT, "--max-new", "40", "--mtp", "--batch-tokens", "1"]);
    assert_eq!(streamed["ids"], plain["ids"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = Dir::new();
    let args = ["generate", &source(), PROMPT, "--max-new", "1000", "--ignore-eos"];
    let mut child = dir.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut start = [0; 5];
    child.stdout.take().expect("a pipe").read_exact(&mut start).expect("some text");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    shown!("generate_pipe", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn weights_that_are_no_numbers_still_give_text() {
    let dir = Dir::new();
    variant::with_tensors(&dir, "m", |tensors| {
        let norm = &mut tensors.get_mut("backbone.layers.3.norm.weight").expect("a norm").2;
        norm[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    });
    let object = object(&dir, &["m", PROMPT, "--max-new", "2", "--top-logprobs", "1"]);
    assert_eq!((&object["ids"], &object["logprobs"]), (&json!([0, 0]), &json!([null, null])));
    let drawn = ["generate", "m", PROMPT, "--max-new", "2", "--temperature", "1", "--top-k", "3", "--top-p", "0.5"];
    shown!("generate_nan", dir.ok(&drawn));
}
