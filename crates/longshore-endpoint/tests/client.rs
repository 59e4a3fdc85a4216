//! Requests to a server in this process, which fails in every way that servers do.

#[path = "support/server.rs"]
mod server;

use longshore_endpoint::letters::{self, Letters};
use longshore_endpoint::{Address, Client, Error, Key, Prompt, Request, Result, Retry, Settings, ask};
use serde_json::{Value, json};
use server::{Reply, Server};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

const NAMES: [&str; 4] = ["A", "B", "C", "D"];
const LIMIT: u64 = 1 << 20;

fn settings() -> Settings {
    let first_wait = Duration::from_millis(1);
    Settings { timeout: Duration::from_secs(20), retries: 3, concurrency: 4, first_wait }
}

fn client(url: &str, key: Option<&str>) -> Client<'static> {
    with(url, key, settings())
}

fn with(url: &str, key: Option<&str>, settings: Settings) -> Client<'static> {
    let key = key.map(|text| Key::new(text).expect("a key"));
    Client::new(Address::parse(url).expect("an address"), key, settings, Box::new(|_| ()))
}

/// The answer to a question.
fn letters() -> Value {
    json!({"choices": [{"text": " B", "logprobs": {"top_logprobs": [{" B": -0.5, " A": -1.5, " the": -2.0}]}}]})
}

fn question(client: &Client<'_>, text: &str) -> Result<Letters> {
    let request = Request::next_token("m", Prompt::Text(text), 20);
    client.complete(&request, LIMIT, |body| letters::read(body, &NAMES))
}

/// What is wrong with the answers of this server.
fn fails(server: &Server, key: Option<&str>) -> (Error, Client<'static>) {
    let client = client(&server.url, key);
    (question(&client, "q").expect_err("a failure"), client)
}

#[test]
fn a_question_is_one_token_of_the_most_likely_and_the_connection_is_kept() {
    let server = Server::new(
        |number, _| if number == 1 { Reply::Chunked(letters().to_string()) } else { Reply::ok(&letters()) },
    );
    let client = client(&server.url, Some("sk-key"));
    for _ in 0..3 {
        assert_eq!(question(&client, "q?").expect("an answer").blank, [Some(-1.5), Some(-0.5), None, None]);
    }
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /v1/completions HTTP/1.1");
    let want = json!({"model": "m", "prompt": "q?", "max_tokens": 1, "temperature": 0, "logprobs": 20});
    assert_eq!(seen[0].body, want);
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some("Bearer sk-key")), "{seen:?}");
    assert_eq!((server.connections(), client.retried()), (1, 0));
}

#[test]
fn an_echo_is_asked_for_with_ids() {
    let server = Server::new(|_, _| Reply::ok(&letters()));
    let done = client(&server.url, None).complete(&Request::echo("m", &[7, 8], 0), LIMIT, |_| Ok(()));
    assert!(done.is_ok());
    let want = json!({"model": "m", "prompt": [7, 8], "max_tokens": 0, "temperature": 0, "logprobs": 1, "echo": true});
    assert_eq!(server.seen()[0].body, want);
    assert_eq!(server.seen()[0].header("authorization"), None);
}

#[test]
fn models_are_listed() {
    let server = Server::new(|_, _| Reply::ok(&json!({"object": "list", "data": [{"id": "a"}, {"id": "b/c"}]})));
    assert_eq!(client(&server.url, None).models().expect("models"), ["a", "b/c"]);
    assert_eq!(server.seen()[0].line, "GET /v1/models HTTP/1.1");
}

#[test]
fn what_passes_is_tried_again_after_the_time_that_the_server_asks_for() {
    for status in [408, 409, 429, 500, 502, 503, 529] {
        let server = Server::new(move |number, _| match number {
            0 => Reply::error(status, "busy").with("Retry-After: 0.03"),
            1 => Reply::error(status, "busy").with("Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"),
            _ => Reply::ok(&letters()),
        });
        let waits = Mutex::new(Vec::new());
        let note =
            |retry: &Retry<'_>| waits.lock().expect("the list").push((retry.wait, retry.what.to_owned(), retry.before));
        let client = Client::new(Address::parse(&server.url).expect("an address"), None, settings(), Box::new(note));
        question(&client, "q").expect("an answer");
        assert_eq!((client.retried(), server.seen().len()), (2, 3));
        drop(client);
        let waits = waits.into_inner().expect("the list");
        assert_eq!((waits[0].0, waits[0].2, waits[1].2), (Duration::from_millis(30), 0, 1));
        // A date is not read: the wait is this side's.
        assert!(waits[1].0 <= Duration::from_millis(2), "{waits:?}");
        assert!(waits[0].1.starts_with(&status.to_string()) && waits[0].1.ends_with(": busy"), "{waits:?}");
    }
}

#[test]
fn tries_end() {
    let server = Server::new(|_, _| Reply::error(500, "out of memory"));
    let (error, client) = fails(&server, None);
    assert_eq!((server.seen().len(), client.retried()), (4, 3));
    let said = error.to_string();
    assert!(said.contains("/v1/completions`: gave up after 4 tries: 500") && said.ends_with("out of memory"), "{said}");
}

#[test]
fn nobody_there_and_nobody_answering_are_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
    drop(listener);
    let error = question(&client(&url, None), "q").expect_err("nobody").to_string();
    assert!(error.contains("gave up after 4 tries") && error.contains("refused"), "{error}");

    let server = Server::new(|number, _| if number == 0 { Reply::Hang } else { Reply::ok(&letters()) });
    let timeout = Duration::from_millis(200);
    let client = with(&server.url, None, Settings { timeout, ..settings() });
    let began = Instant::now();
    question(&client, "q").expect("an answer");
    assert!(began.elapsed() >= timeout);
    assert_eq!(client.retried(), 1);
}

#[test]
fn a_body_that_breaks_off_is_tried_again() {
    let body = letters().to_string();
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}", body.len());
    for cut in [
        whole[..whole.len() - 9].to_owned(),
        chunked,
        "HTTP/1.1 20".to_owned(),
        "nonsense\r\n\r\n".to_owned(),
        String::new(),
    ] {
        let server =
            Server::new(
                move |number, _| {
                    if number == 0 { Reply::Raw(cut.clone().into_bytes()) } else { Reply::ok(&letters()) }
                },
            );
        let client = client(&server.url, None);
        assert!(question(&client, "q").is_ok());
        assert_eq!(client.retried(), 1);
    }
}

#[test]
fn what_lasts_is_said_at_once_in_the_servers_words_but_without_the_key() {
    for status in [400, 401, 403, 404, 402, 422] {
        let server =
            Server::new(move |_, _| Reply::error(status, &format!("wrong key sk-secret.\n{}", "long ".repeat(10_000))));
        let (error, _) = fails(&server, Some("sk-secret"));
        let said = error.to_string();
        assert!(said.contains(&format!("completions`: {status}")) && said.contains("wrong key [key]. long"), "{said}");
        assert!(said.len() < 700 && said.ends_with('…') && !said.contains("secret"), "{said}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn what_is_no_answer_is_said_at_once() {
    let deep = format!("{{\"choices\": {}", "[".repeat(500_000));
    for (body, said) in [
        ("<html>nginx</html>", "<html>nginx"),
        ("{\"choices\": []}", "no choice"),
        ("{\"choices\": [{\"logprobs\": {\"top_logprobs\": [{\" A\": NaN}]}}]}", "expected value"),
        ("{\"choices\": [{\"text\": \"x\", \"logprobs\": null}]}", "no log-probabilities"),
        (deep.as_str(), "…"),
        ("", "an empty answer"),
    ] {
        let body = body.to_owned();
        let server = Server::new(move |_, _| Reply::Status(200, Vec::new(), body.clone()));
        let (error, _) = fails(&server, None);
        let text = error.to_string();
        assert!(matches!(error, Error::Unexpected { .. }) && text.contains(said) && text.len() < 800, "{text}");
        assert_eq!(server.seen().len(), 1);
    }
    // Too large, with its length told and without.
    let large = " ".repeat(LIMIT as usize) + &letters().to_string();
    for chunked in [false, true] {
        let body = large.clone();
        let server = Server::new(move |_, _| {
            if chunked { Reply::Chunked(body.clone()) } else { Reply::Status(200, Vec::new(), body.clone()) }
        });
        let text = fails(&server, None).0.to_string();
        assert!(text.contains(&format!("more than {LIMIT} bytes")), "{text}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn a_redirect_is_followed_and_the_key_only_to_the_same_server() {
    let other = Server::new(|_, _| Reply::ok(&letters()));
    let there = format!("{}/completions", other.url);
    for status in [301, 302, 307, 308] {
        let there = there.clone();
        let server = Server::new(move |number, _| match number {
            0 => Reply::error(status, "moved").with("Location: /v2/x"),
            _ => Reply::error(status, "moved").with(&format!("Location: {there}")),
        });
        let client = client(&server.url, Some("sk-key"));
        assert!(question(&client, "q").is_ok());
        let seen = server.seen();
        assert_eq!(seen[1].line, "POST /v2/x HTTP/1.1");
        assert_eq!(seen[1].header("authorization"), Some("Bearer sk-key"));
        let arrived = other.seen().pop().expect("a request");
        assert_eq!((arrived.header("authorization"), &arrived.body["prompt"]), (None, &json!("q")));
    }
    // Where the other server wants a key, the reason is told; circles and other protocols end.
    let strict = Server::new(|_, _| Reply::error(401, "no key"));
    let there = format!("Location: {}/completions", strict.url);
    let said = |location: &str| {
        let location = location.to_owned();
        let server = Server::new(move |_, _| Reply::error(307, "moved").with(&location));
        fails(&server, Some("sk-key")).0.to_string()
    };
    assert!(said(&there).contains("which the key is not sent to): no key"), "{}", said(&there));
    assert!(said("Location: /v1/completions").contains("more than 5 redirects"));
    assert!(said("Location: ftp://x/").contains("a redirect to `ftp://x/`"));
    assert!(said("X: y").contains("a redirect to ``"));
}

#[test]
fn so_many_are_asked_at_a_time() {
    // Nobody is answered before four are there.
    let barrier = Barrier::new(4);
    let server = Server::new(move |_, seen| {
        barrier.wait();
        let x = -f64::from(seen.body["prompt"].as_str().expect("a text").parse::<u32>().expect("a number"));
        Reply::ok(&json!({"choices": [{"logprobs": {"top_logprobs": [{" C": x}]}}]}))
    });
    let client = client(&server.url, None);
    let items: Vec<usize> = (10..22).collect();
    let mut found = Vec::new();
    ask(
        &client,
        &items,
        |item| question(&client, &item.to_string()),
        |item, letters| found.push((item, letters.blank[2])),
    )
    .expect("answers");
    found.sort_by_key(|&(item, _)| item);
    let want: Vec<_> = items.iter().map(|&item| (item, Some(-(item as f64)))).collect();
    assert_eq!(found, want);
    assert_eq!(server.connections(), 4);
}

#[test]
fn after_a_lasting_failure_nothing_new_is_asked_and_what_was_under_way_counts() {
    // All four wait for each other; then the third is refused, and the others are answered or, one of them, busy.
    let barrier = Barrier::new(4);
    let server = Server::new(move |_, seen| {
        barrier.wait();
        match seen.body["prompt"].as_str() {
            Some("2") => Reply::error(403, "enough"),
            Some("3") => Reply::error(503, "busy").with("Retry-After: 500"),
            _ => Reply::ok(&letters()),
        }
    });
    let client = client(&server.url, None);
    let (items, asked) = ((0..4).collect::<Vec<_>>(), AtomicUsize::new(0));
    let mut found = Vec::new();
    let answer = |item: usize| {
        asked.fetch_add(1, Ordering::SeqCst);
        question(&client, &item.to_string())
    };
    let error = ask(&client, &items, answer, |item, _| found.push(item)).expect_err("a failure");
    found.sort_unstable();
    assert_eq!(found, [0, 1]);
    assert!(error.to_string().contains("enough"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}
