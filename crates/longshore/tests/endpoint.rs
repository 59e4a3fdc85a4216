//! `eval --endpoint` against a server in this process, whose answers follow from the prompts.

#[path = "support/program.rs"]
mod program;
#[path = "../../longshore-endpoint/tests/support/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the client, which use all of it")]
mod server;

use program::{Dir, LONGSHORE};
use serde_json::{Value, json};
use server::{Reply, Seen, Server};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

fn models(names: &[&str]) -> Reply {
    let data: Vec<Value> = names.iter().map(|name| json!({"id": name})).collect();
    Reply::ok(&json!({"object": "list", "data": data}))
}

/// The log-probabilities that a prompt's length gives its letters; D is sometimes missing, and once in a while all are.
fn scores(prompt: &str) -> [Option<f64>; 4] {
    let n = prompt.len();
    if n.is_multiple_of(11) {
        return [None; 4];
    }
    [0, 1, 2, 3].map(|i| (i < 3 || !n.is_multiple_of(3)).then(|| -0.25 - ((n + 3 * i) % 7) as f64))
}

/// The answer to a question.
fn letters(seen: &Seen) -> Reply {
    let prompt = seen.body["prompt"].as_str().expect("a text");
    let mut top = serde_json::Map::new();
    // Other tokens, and a letter without the blank, which counts nowhere.
    top.insert("\n".into(), json!(-0.125));
    top.insert("A".into(), json!(-0.1));
    for (letter, x) in LETTERS.iter().zip(scores(prompt)) {
        top.extend(x.map(|x| (format!(" {letter}"), json!(x))));
    }
    Reply::ok(&json!({"choices": [{"text": " A", "logprobs": {"top_logprobs": [top], "token_logprobs": [-0.1]}}]}))
}

/// The likelihood that ids have here.
fn nll(ids: &[u64], at: usize) -> f64 {
    (ids[at] * 7 + ids[at - 1]) as f64 % 5.0 + 0.5
}

/// The answer to an echo.
fn echo(seen: &Seen) -> Reply {
    let ids: Vec<u64> = seen.body["prompt"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect();
    let new = seen.body["max_tokens"].as_u64().expect("a number");
    let mut found: Vec<Value> =
        (0..ids.len()).map(|at| if at == 0 { Value::Null } else { json!(-nll(&ids, at)) }).collect();
    found.extend((0..new).map(|_| json!(-0.5)));
    Reply::ok(&json!({"choices": [{"logprobs": {"token_logprobs": found}}]}))
}

/// A server of one model.
fn served(answer: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Server {
    Server::new(
        move |number, seen| if seen.line.starts_with("GET") { models(&["served"]) } else { answer(number, seen) },
    )
}

struct Bench {
    dir: Dir,
    env: Vec<(&'static str, &'static str)>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: Dir::new(), env: Vec::new() }
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = self.dir.command(LONGSHORE, &[&["eval"], args].concat());
        command.envs(self.env.iter().copied()).output().expect("the binary runs")
    }

    /// The object that a command prints, which must succeed.
    fn json(&self, args: &[&str]) -> Value {
        let output = self.output(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("an object")
    }

    /// What a command says that must fail.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path(name)).expect("the lines");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Folders with saved answers.
    fn saved(&self) -> usize {
        let left = std::fs::read_dir(self.dir.path(".")).expect("a folder").flatten();
        left.filter(|entry| entry.file_name().to_string_lossy().contains(".answers-")).count()
    }
}

fn mmlu<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    [&["mmlu", "--data", "bundled", "--endpoint", &server.url][..], more].concat()
}

fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn letters_are_scored_as_the_server_names_them_in_the_prompts_of_the_engine() {
    let bench = Bench::new();
    let server = served(|_, seen| letters(seen));
    let args = mmlu(&server, &["--few-shots", "1", "--concurrency", "1", "--per-question", "lines.jsonl"]);
    let found = bench.json(&args);
    let lines = bench.lines("lines.jsonl");
    let asked: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.line.starts_with("POST")).collect();
    assert_eq!((lines.len(), asked.len()), (60, 60));
    let (mut right, mut absent, mut none) = (0, 0, 0);
    for (line, seen) in lines.iter().zip(&asked) {
        let scores = scores(seen.body["prompt"].as_str().expect("a text"));
        let best = scores.iter().flatten().copied().reduce(f64::max);
        let choice = best.and_then(|best| scores.iter().position(|x| *x == Some(best)));
        assert_eq!(line["logprobs"], json!(scores));
        assert_eq!(line["choice"], json!(choice.map(|i| LETTERS[i])));
        assert_eq!(line["correct"], json!(choice.is_some_and(|i| line["answer"] == LETTERS[i])));
        right += usize::from(line["correct"] == true);
        absent += scores.iter().filter(|x| x.is_none()).count();
        none += usize::from(choice.is_none());
        assert_eq!((&seen.body["model"], &seen.body["logprobs"]), (&json!("served"), &json!(20)));
    }
    assert!(none > 0 && absent > 4 * none, "{none} {absent}");
    let want = json!({
        "url": server.url, "model": "served", "retries": 0, "top_logprobs": 20, "letters": "blank", "absent_letters": absent,
        "questions_without_letter": none,
    });
    assert_eq!(found["endpoint"], want);
    assert_eq!((&found["scores"]["all"]["correct"], &found["precision"]), (&json!(right), &Value::Null));
    // The engine asks the same.
    let local =
        ["eval", "mmlu", &model(), "--data", "bundled", "--few-shots", "1", "--limit", "3", "--per-question", "local"];
    bench.dir.json(LONGSHORE, &local);
    let hashes =
        |lines: Vec<Value>| lines.into_iter().take(3).map(|line| line["prompt_hash"].clone()).collect::<Vec<_>>();
    assert_eq!(hashes(bench.lines("local")), hashes(lines));
    assert_eq!(bench.saved(), 0);

    let said = String::from_utf8(bench.output(&args).stderr).expect("text");
    assert!(
        said.contains(&format!("Absent  {absent} letters not among the 20 most likely tokens; {none} question")),
        "{said}"
    );
    assert!(said.contains("Endpoint  http://127.0.0.1:") && said.contains("Asked  60 questions in "), "{said}");
    assert!(said.contains("question 30 of 60, ") && said.contains("s left"), "{said}");
}

#[test]
fn letters_without_a_blank_count_where_there_are_no_others() {
    let bench = Bench::new();
    let server = served(|_, _| {
        Reply::ok(&json!({"choices": [{"logprobs": {"content": [{"token": "C", "top_logprobs": [
            {"id": 1, "token": "C", "logprob": -0.5}, {"id": 2, "token": "A", "logprob": -1.5}]}]}}]}))
    });
    let found = bench.json(&mmlu(&server, &["--limit", "5", "--per-question", "lines"]));
    assert_eq!(found["endpoint"]["letters"], "bare");
    assert!(
        bench
            .lines("lines")
            .iter()
            .all(|line| line["logprobs"] == json!([-1.5, null, -0.5, null]) && line["choice"] == "C")
    );
}

#[test]
fn a_server_that_names_fewer_tokens_is_asked_for_fewer() {
    let bench = Bench::new();
    let most = |most: u64| {
        served(move |_, seen| match seen.body["logprobs"].as_u64() {
            Some(n) if n > most => Reply::error(400, &format!("Requested sample logprobs of {n}, max allowed: {most}")),
            _ => letters(seen),
        })
    };
    let server = most(5);
    let output = bench.output(&mmlu(&server, &["--limit", "9", "--top-logprobs", "100", "--json"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("asking for 20 tokens instead of 100, since the server says") && said.contains("instead of 20"),
        "{said}"
    );
    let found: Value = serde_json::from_slice(&output.stdout).expect("an object");
    assert_eq!(found["endpoint"]["top_logprobs"], 5);
    let asked = server.seen().iter().filter_map(|seen| seen.body["logprobs"].as_u64()).collect::<Vec<_>>();
    assert_eq!(asked, [&[100, 20][..], &[5; 9]].concat());
    let server = most(1);
    let said = bench.fails(&mmlu(&server, &[]));
    assert!(said.contains("400 Bad Request: Requested sample logprobs of 5, max allowed: 1"), "{said}");
    assert_eq!(bench.saved(), 0);
}

#[test]
fn a_killed_run_goes_on_with_the_questions_that_are_not_answered() {
    let bench = Bench::new();
    let (hangs, (sender, reached)) = (Arc::new(AtomicBool::new(true)), mpsc::channel());
    let (hanging, sender) = (Arc::clone(&hangs), Mutex::new(sender));
    let server = served(move |number, seen| {
        // The first request is for the models.
        if number == 8 && hanging.load(Ordering::SeqCst) {
            sender.lock().expect("a sender").send(()).expect("the test listens");
            return Reply::Hang;
        }
        letters(seen)
    });
    let args = mmlu(&server, &["--concurrency", "1", "--per-question", "lines"]);
    let mut command = bench.dir.command(LONGSHORE, &[&["eval"], &args[..]].concat());
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    reached.recv().expect("the eighth question");
    let held = bench.fails(&args);
    assert!(held.contains("another run holds"), "{held}");
    first.kill().expect("it runs");
    first.wait().expect("it is gone");
    assert_eq!(bench.saved(), 1);

    hangs.store(false, Ordering::SeqCst);
    let before = server.seen().len();
    let output = bench.output(&[&args[..], &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    // The last answer may have been on its way to the file.
    assert!(said.contains("Resumed  7 of 60") || said.contains("Resumed  6 of 60"), "{said}");
    let asked = server.seen().len() - before;
    assert!((54..=55).contains(&asked), "{asked} requests");
    let resumed: Value = serde_json::from_slice(&output.stdout).expect("an object");
    let resumed_lines = bench.lines("lines");
    let whole = bench.json(&args);
    assert_eq!((&resumed["scores"], &resumed["endpoint"]), (&whole["scores"], &whole["endpoint"]));
    assert_eq!(resumed_lines, bench.lines("lines"));
    assert_eq!(bench.saved(), 0);
}

#[test]
fn a_refusal_after_some_answers_says_how_many_are_saved() {
    let bench = Bench { dir: Dir::new(), env: vec![("OPENAI_API_KEY", "sk-key")] };
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = Arc::clone(&refuses);
    let server = served(move |number, seen| {
        if number > 20 && refusing.load(Ordering::SeqCst) { Reply::error(401, "quota sk-key") } else { letters(seen) }
    });
    let args = mmlu(&server, &["--concurrency", "1", "-v"]);
    let said = bench.fails(&args);
    assert!(said.contains("401 Unauthorized: quota [key]; 20 of 60 answers are saved"), "{said}");
    assert!(
        said.contains("hint: the key is read from $OPENAI_API_KEY") && said.contains("same command goes on"),
        "{said}"
    );
    refuses.store(false, Ordering::SeqCst);
    let output = bench.output(&args);
    let all = [&output.stdout[..], &output.stderr].concat();
    let all = String::from_utf8_lossy(&all);
    assert!(output.status.success() && all.contains("Resumed  20 of 60 answers") && !all.contains("sk-key"), "{all}");
    assert_eq!(server.seen().len(), 2 + 21 + 40);
    // Every request, that for the models too, has the key; with another variable, that one's.
    assert!(server.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer sk-key")));
    let more = ["--limit", "1", "--api-key-env", "OTHER"];
    assert!(bench.fails(&mmlu(&server, &more)).contains("`$OTHER` is not set"));
    let bench = Bench { dir: bench.dir, env: vec![("OTHER", "two"), ("BAD", "a\nb")] };
    bench.json(&mmlu(&server, &more));
    assert_eq!(server.seen().pop().expect("a request").header("authorization"), Some("Bearer two"));
    let said = bench.fails(&mmlu(&server, &["--api-key-env", "BAD"]));
    assert!(said.contains("`$BAD` is not a key") && !said.contains("a\nb"), "{said}");
}

#[test]
fn tries_that_fail_for_the_moment_are_counted() {
    let bench = Bench::new();
    let server = served(|number, seen| match number {
        3 | 5 => Reply::error(429, "slow down").with("Retry-After: 0"),
        8 => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec()),
        _ => letters(seen),
    });
    let output = bench.output(&mmlu(&server, &["--json"]));
    let said = String::from_utf8_lossy(&output.stderr);
    let found: Value = serde_json::from_slice(&output.stdout).expect("an object");
    assert_eq!(found["endpoint"]["retries"], 3, "{said}");
    assert!(said.matches("Retrying").count() == 1 && said.contains(", 3 tries repeated"), "{said}");
    let server = served(|_, _| Reply::error(503, "loading"));
    let said = bench.fails(&mmlu(&server, &["--retries", "0"]));
    assert!(
        said.contains("gave up after 1 try: 503 Service Unavailable: loading")
            && said.contains("hint: is the server up?"),
        "{said}"
    );
    let server = served(|_, _| Reply::Hang);
    let said = bench.fails(&mmlu(&server, &["--retries", "0", "--timeout", "1"]));
    assert!(said.contains("no answer within 1 s"), "{said}");
}

#[test]
fn the_perplexity_of_ids_is_that_of_the_servers_log_probabilities() {
    let bench = Bench::new();
    let streams: Vec<Vec<u64>> = vec![(0..50).map(|i| i * i % 97).collect(), vec![5, 6, 7]];
    let lines: String = streams.iter().map(|ids| json!({"input_ids": ids}).to_string() + "\n").collect();
    std::fs::write(bench.dir.path("ids.jsonl"), lines).expect("ids");
    let least = |least: u64| {
        served(move |_, seen| match seen.body["max_tokens"].as_u64() {
            Some(n) if n < least => Reply::error(422, "max_tokens must be positive"),
            _ => echo(seen),
        })
    };
    let windows = streams.iter().flat_map(|ids| ids.chunks(16));
    let nlls: Vec<f64> = windows.flat_map(|ids| (1..ids.len()).map(|at| nll(ids, at))).collect();
    let mean = nlls.iter().sum::<f64>() / nlls.len() as f64;
    for new_tokens in [0, 1] {
        let server = least(new_tokens);
        let found = bench.json(&["ppl", "--endpoint", &server.url, "--data", "ids.jsonl", "--ctx", "16"]);
        assert_eq!(
            found["endpoint"],
            json!({"url": server.url, "model": "served", "retries": 0, "new_tokens": new_tokens})
        );
        assert_eq!((&found["figures"]["tokens"], &found["figures"]["windows"]), (&json!(nlls.len()), &json!(5)));
        assert!((found["figures"]["nll"].as_f64().expect("a number") - mean).abs() < 1e-12, "{found} {mean}");
    }
    // The windows of a text are those of its ids, and the text is measured too.
    std::fs::write(bench.dir.path("text.txt"), "Once upon a time there was a whale. ".repeat(9)).expect("a text");
    let server = least(0);
    let text = |more: &str| {
        let args = ["ppl", "--endpoint", &server.url, "--data", "text.txt", "--ctx", "16"];
        args.into_iter().chain(more.split_whitespace()).map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |more: &str| bench.json(&text(more).iter().map(String::as_str).collect::<Vec<_>>());
    let (tokenizer, checkpoint) = (run(&format!("--tokenizer {}", model())), run(&model()));
    assert_eq!(tokenizer["figures"], checkpoint["figures"]);
    assert!(tokenizer["figures"]["bits_per_byte"].as_f64().is_some_and(|x| x > 0.0), "{tokenizer}");
    let said = bench.fails(&text("").iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        said.contains("`text.txt` is a text; there is no tokenizer") && said.contains("hint: `--tokenizer DIR`"),
        "{said}"
    );
    assert_eq!(bench.saved(), 0);
}

#[test]
fn a_window_that_is_not_answered_is_asked_again_and_no_echo_is_named() {
    let bench = Bench::new();
    std::fs::write(bench.dir.path("ids.jsonl"), "{\"input_ids\": [1, 2, 3, 4, 5, 6, 7]}\n").expect("ids");
    let server = served(|number, seen| if number == 2 { Reply::error(400, "too long") } else { echo(seen) });
    let args = ["ppl", "--endpoint", &server.url, "--data", "ids.jsonl", "--ctx", "3", "--concurrency", "1"];
    let said = bench.fails(&args);
    assert!(said.contains("too long; 1 of 2 answers are saved"), "{said}");
    bench.json(&args);
    let deaf = served(|_, _| Reply::ok(&json!({"choices": [{"text": "x", "logprobs": {"token_logprobs": [-1.0]}}]})));
    let said = bench.fails(&["ppl", "--endpoint", &deaf.url, "--data", "ids.jsonl", "--ctx", "3"]);
    assert!(said.contains("does not echo prompts with their log-probabilities: 1 for 3 tokens"), "{said}");
    assert_eq!(bench.saved(), 0);
}

#[test]
fn what_goes_wrong_before_the_first_answer_is_named() {
    let bench = Bench::new();
    let two = Server::new(|_, _| models(&["a", "b\u{1b}[2J"]));
    let said = bench.fails(&mmlu(&two, &[]));
    assert!(said.contains("lists 2 models: a, b\\u{1b}[2J") && said.contains("hint: `--model NAME`"), "{said}");
    let none = Server::new(|_, _| models(&[]));
    assert!(bench.fails(&mmlu(&none, &[])).contains("lists no model"));
    let missing = Server::new(|_, _| Reply::error(404, "no such path"));
    let said = bench.fails(&mmlu(&missing, &["--model", "x"]));
    assert!(said.contains("404 Not Found: no such path") && said.contains("hint: --endpoint takes the base"), "{said}");
    for (more, said) in [
        (&["--precision", "f32"][..], "cannot be used with"),
        (&["--save-every", "5"], "cannot be used with"),
        (&["--tokenizer", "x"], "cannot be used with"),
        (&["ckpt"], "cannot be used with"),
    ] {
        let text = bench.fails(&mmlu(&missing, more));
        assert!(text.contains(said), "{more:?}: {text}");
    }
    let text =
        bench.fails(&["mmlu", "--data", "bundled", "x", "--precision", "f32", "--model", "y", "--top-logprobs", "5"]);
    assert!(text.contains("--model, --top-logprobs have no effect without --endpoint"), "{text}");
    let text = bench.fails(&["mmlu", "--data", "bundled", "--endpoint", "http://me:secret@h/v1"]);
    assert!(text.contains("holds a user or a password") && !text.contains("secret"), "{text}");
    // A dry run asks nobody.
    let output = bench.output(&["mmlu", "--data", "bundled", "--endpoint", "http://127.0.0.1:1/v1", "--dry-run"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.saved(), 0);
}
