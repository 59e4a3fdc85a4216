//! One request, repeated where that may help.

use crate::address::{Address, origin, redirected};
use crate::error::{Error, Result};
use crate::request::Request;
use crate::stop::Stop;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ureq::Agent;
use ureq::http::{HeaderValue, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Longest wait between two tries, whatever the server asks for.
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// Longest wait that this side decides on.
const LONGEST_BACK_OFF: Duration = Duration::from_mins(1);
const MAX_REDIRECTS: usize = 5;
/// Bytes of an answer that says no.
const MAX_REFUSAL: u64 = 64 << 10;
/// Bytes of a list of models.
const MAX_MODELS: u64 = 4 << 20;
/// Characters of what a server says that are shown.
const QUOTED: usize = 400;

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For one try, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Requests at a time.
    pub concurrency: usize,
    /// The wait before the second try, without its jitter; each further one is twice as long.
    pub first_wait: Duration,
}

/// What authorises requests. It is shown nowhere.
#[derive(Clone)]
pub struct Key {
    text: String,
    header: HeaderValue,
}

impl Key {
    /// A key that a header can carry; `None` for others.
    pub fn new(text: &str) -> Option<Self> {
        let mut header = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        header.set_sensitive(true);
        text.bytes().all(|b| b.is_ascii_graphic()).then(|| Self { text: text.to_owned(), header })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A try that failed and is repeated.
#[derive(Debug)]
pub struct Retry<'a> {
    /// Why.
    pub what: &'a str,
    /// When.
    pub wait: Duration,
    /// How many there were before, in all requests of this client.
    pub before: u64,
}

/// A server, and how it is asked.
pub struct Client<'a> {
    agent: Agent,
    address: Address,
    key: Option<Key>,
    pub(crate) settings: Settings,
    retried: AtomicU64,
    pub(crate) stop: Stop,
    on_retry: Box<dyn Fn(&Retry<'_>) + Sync + 'a>,
}

/// What a try came to that gave no answer.
enum Failure {
    /// Another may give one, after this time if the server says.
    Passing(String, Option<Duration>),
    Lasting(Error),
}

impl<'a> Client<'a> {
    /// A client of a server. The roots of trust are the system's (`SSL_CERT_FILE` names others).
    pub fn new(
        address: Address,
        key: Option<Key>,
        settings: Settings,
        on_retry: Box<dyn Fn(&Retry<'_>) + Sync + 'a>,
    ) -> Self {
        let idle = settings.concurrency.max(1);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here: a key must not follow.
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(settings.timeout))
            .max_idle_connections(idle)
            .max_idle_connections_per_host(idle)
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls());
        let (retried, stop) = (AtomicU64::new(0), Stop::default());
        Self { agent: config.build().new_agent(), address, key, settings, retried, stop, on_retry }
    }

    /// The server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Tries that were repeated so far.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// The names of the models that the server lists.
    pub fn models(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let url = self.address.models();
        let body = self.send(&url, None, MAX_MODELS)?;
        let models: Models = self.parse(&url, &body)?;
        Ok(models.data.into_iter().map(|model| model.id).collect())
    }

    /// Asks for a completion, of which `read` makes the result or says what is wrong with it. An answer has at most `limit` bytes.
    pub fn complete<T>(
        &self,
        request: &Request<'_>,
        limit: u64,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T> {
        let url = self.address.completions();
        let body = serde_json::to_vec(request).map_err(|e| Error::Invalid(e.to_string()))?;
        let answer = self.send(&url, Some(&body), limit)?;
        read(&answer).map_err(|what| self.unexpected(&url, &what, &answer))
    }

    /// JSON of this form.
    fn parse<T: for<'de> Deserialize<'de>>(&self, url: &str, body: &[u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|error| self.unexpected(url, &error.to_string(), body))
    }

    /// What is wrong, with the beginning of the answer.
    fn unexpected(&self, url: &str, what: &str, body: &[u8]) -> Error {
        let said = self.shown(&String::from_utf8_lossy(&body[..body.len().min(4 * QUOTED)]));
        let what = if said.is_empty() { format!("{what}: an empty answer") } else { format!("{what}: {said}") };
        Error::Unexpected { url: url.to_owned(), what }
    }

    /// Sends until there is an answer, or none can be hoped for.
    fn send(&self, url: &str, body: Option<&[u8]>, limit: u64) -> Result<Vec<u8>> {
        let mut tries = 0;
        loop {
            let (what, asked) = match self.send_once(url, body, limit) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(what, asked)) => (what, asked),
            };
            tries += 1;
            if tries > self.settings.retries {
                return Err(Error::GaveUp { url: url.to_owned(), tries, last: what });
            }
            let wait = asked.unwrap_or_else(|| back_off(self.settings.first_wait, tries - 1)).min(LONGEST_WAIT);
            if self.stop.is_stopped() {
                return Err(Error::Stopped);
            }
            let before = self.retried.fetch_add(1, Ordering::Relaxed);
            (self.on_retry)(&Retry { what: &what, wait, before });
            if !self.stop.wait(wait) {
                return Err(Error::Stopped);
            }
        }
    }

    /// One try, redirects included: with the same method and body, but with the key only for the server that it is for.
    fn send_once(&self, url: &str, body: Option<&[u8]>, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut to = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let own = origin(&to) == origin(url);
            let key = self.key.as_ref().filter(|_| own);
            let sent = match body {
                Some(body) => {
                    let mut request = self.agent.post(&to).content_type("application/json");
                    if let Some(key) = key {
                        request = request.header(header::AUTHORIZATION, &key.header);
                    }
                    request.send(body)
                }
                None => {
                    let mut request = self.agent.get(&to);
                    if let Some(key) = key {
                        request = request.header(header::AUTHORIZATION, &key.header);
                    }
                    request.call()
                }
            };
            let mut answer = sent.map_err(|error| self.failure(&to, &error))?;
            let status = answer.status();
            if status.is_success() {
                let read = answer.body_mut().with_config().limit(limit).read_to_vec();
                return read.map_err(|error| self.failure(&to, &error));
            }
            let text = |name: header::HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
            if matches!(status.as_u16(), 301 | 302 | 307 | 308) {
                let location = text(header::LOCATION).unwrap_or_default();
                let Some(next) = redirected(&to, location) else {
                    let what = format!("{}: a redirect to `{}`", named(status), self.shown(location));
                    return Err(Failure::Lasting(Error::Failed { url: to, what }));
                };
                to = next;
                continue;
            }
            let asked = text(header::RETRY_AFTER).and_then(|text| text.trim().parse::<f64>().ok());
            let asked = asked.and_then(|seconds| Duration::try_from_secs_f64(seconds.min(1e6)).ok());
            // Whatever is wrong with the rest of it, the status says enough.
            let said = answer.body_mut().with_config().limit(MAX_REFUSAL).read_to_vec().unwrap_or_default();
            let said = self.shown(&message(&said));
            if matches!(status.as_u16(), 408 | 409 | 429) || status.is_server_error() {
                let what = if said.is_empty() { named(status) } else { format!("{}: {said}", named(status)) };
                return Err(Failure::Passing(what, asked));
            }
            let mut reason = status.canonical_reason().unwrap_or_default().to_owned();
            if self.key.is_some() && !own {
                reason += " (after a redirect to another server, which the key is not sent to)";
            }
            return Err(Failure::Lasting(Error::Refused { url: to, status: status.as_u16(), reason, text: said }));
        }
        Err(Failure::Lasting(Error::Failed { url: to, what: format!("more than {MAX_REDIRECTS} redirects") }))
    }

    /// What a failed connection means.
    fn failure(&self, url: &str, error: &ureq::Error) -> Failure {
        let lasting = |what| Failure::Lasting(Error::Failed { url: url.to_owned(), what });
        match error {
            ureq::Error::Timeout(_) => {
                Failure::Passing(format!("no answer within {} s", self.settings.timeout.as_secs_f64()), None)
            }
            // A certificate that is refused will be again.
            ureq::Error::Io(error) if is_tls(error) => lasting(error.to_string()),
            ureq::Error::Io(error) => Failure::Passing(error.to_string(), None),
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => {
                Failure::Passing(error.to_string(), None)
            }
            ureq::Error::BodyExceedsLimit(limit) => lasting(format!("the answer has more than {limit} bytes")),
            _ => lasting(error.to_string()),
        }
    }

    /// What a server says, in one line of bounded length and without the key, which some repeat.
    fn shown(&self, text: &str) -> String {
        let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(key) = self.key.as_ref().filter(|key| !key.text.is_empty()) {
            text = text.replace(&key.text, "[key]");
        }
        match text.char_indices().nth(QUOTED) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Whether the handshake failed.
fn is_tls(error: &std::io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<rustls::Error>())
}

/// The certificates that the system trusts.
fn tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs().certs;
    let roots: Vec<_> = found.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

fn named(status: StatusCode) -> String {
    status.to_string()
}

/// The message in an error's body: `error.message`, as OpenAI has it, or what other servers have in its place; else the text.
fn message(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let found = places.iter().find_map(|place| json.pointer(place)?.as_str());
    found.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}

/// Twice as long after every try, and between half of that and all of it, so that many clients do not come at the same time.
fn back_off(first: Duration, tries: u32) -> Duration {
    let longest = first.saturating_mul(1u32.checked_shl(tries).unwrap_or(u32::MAX)).min(LONGEST_BACK_OFF);
    // Each state is seeded anew.
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    longest.mul_f64(random.mul_add(0.5, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_jitter_up_to_a_minute() {
        let first = Duration::from_millis(500);
        for (tries, most) in [(0, 0.5), (1, 1.0), (4, 8.0), (7, 60.0), (31, 60.0), (99, 60.0)] {
            let waits = [(); 20].map(|()| back_off(first, tries).as_secs_f64());
            assert!(waits.iter().all(|&wait| wait >= most / 2.0 && wait <= most), "{tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
        }
    }

    #[test]
    fn the_message_is_found_where_servers_put_it() {
        for (body, said) in [
            (r#"{"error": {"message": "a", "code": 1}}"#, "a"),
            (r#"{"object": "error", "message": "b"}"#, "b"),
            (r#"{"detail": "c"}"#, "c"),
            (r#"{"error": "d"}"#, "d"),
            (r#"{"detail": [1]}"#, r#"{"detail": [1]}"#),
            ("<html>", "<html>"),
        ] {
            assert_eq!(message(body.as_bytes()), said);
        }
    }

    #[test]
    fn a_key_is_one_line_of_visible_characters_and_not_shown() {
        let key = Key::new("sk-secret").expect("a key");
        assert!(!format!("{key:?} {:?}", key.header).contains("secret"));
        assert!(["a b", "a\nb", "ä", "a\0"].iter().all(|text| Key::new(text).is_none()));
    }
}
