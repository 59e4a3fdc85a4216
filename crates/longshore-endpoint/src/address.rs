//! Where a server is.

use crate::{Error, Result};
use std::fmt;
use ureq::http::Uri;

/// The base of a server's addresses, such as `http://host:8000/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    base: String,
}

impl Address {
    /// Parses a base, also one with `/completions` on it. What names no server, or holds a password or a query, is refused;
    /// the error does not show a password.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.contains('@') {
            return Err(Error::Invalid(
                "the endpoint's URL holds a user or a password: a key belongs in a variable".into(),
            ));
        }
        let expected = |what: &str| Error::Invalid(format!("expected {what} as endpoint, found `{text}`"));
        let url = "a URL such as http://host:8000/v1";
        let uri: Uri = text.parse().map_err(|_| expected(url))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(expected(url));
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(expected("a URL without a query"));
        }
        let base = text.trim_end_matches('/');
        if base.ends_with("/chat/completions") {
            return Err(expected("the base of the completions, such as http://host:8000/v1,"));
        }
        let base = base.strip_suffix("/completions").unwrap_or(base).trim_end_matches('/');
        Ok(Self { base: base.to_owned() })
    }

    /// Where completions are asked for.
    pub fn completions(&self) -> String {
        format!("{}/completions", self.base)
    }

    /// Where the server lists its models.
    pub(crate) fn models(&self) -> String {
        format!("{}/models", self.base)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

/// Scheme, host and port of an absolute URL.
pub(crate) fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Where a redirect leads: an absolute URL, or a path of the same server. `None` for what is not followed: other forms, other
/// protocols, passwords, and the way from https to http.
pub(crate) fn redirected(from: &str, location: &str) -> Option<String> {
    let (scheme, ..) = origin(from)?;
    let to = if location.starts_with('/') && !location.starts_with("//") {
        let path = from.find("://").and_then(|at| from[at + 3..].find('/').map(|slash| at + 3 + slash));
        format!("{}{location}", &from[..path.unwrap_or(from.len())])
    } else {
        location.to_owned()
    };
    let (new_scheme, ..) = origin(&to)?;
    let fit = matches!(new_scheme.as_str(), "http" | "https") && !(scheme == "https" && new_scheme == "http");
    (fit && !to.contains('@')).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_may_end_in_what_is_asked_for() {
        for text in
            ["http://h:8000/v1", "http://h:8000/v1/", " http://h:8000/v1/completions", "http://h:8000/v1/completions/"]
        {
            assert_eq!(Address::parse(text).expect("an address").completions(), "http://h:8000/v1/completions");
        }
        assert_eq!(Address::parse("https://h").expect("an address").models(), "https://h/models");
    }

    #[test]
    fn what_is_no_base_is_refused_and_a_password_not_shown() {
        for text in [
            "",
            "h:8000",
            "ftp://h/v1",
            "http:///v1",
            "http://h/v1?key=1",
            "http://h/v1#a",
            "http://h/v1/chat/completions",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        let error = Address::parse("http://me:secret@h/v1").expect_err("a password").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn redirects_lead_to_a_path_or_another_server() {
        let from = "http://h:8000/v1/completions";
        assert_eq!(redirected(from, "/v2/completions").as_deref(), Some("http://h:8000/v2/completions"));
        assert_eq!(redirected(from, "https://other/x").as_deref(), Some("https://other/x"));
        for bad in ["//other/x", "x", "ftp://h/", "http://u:p@h/x", ""] {
            assert_eq!(redirected(from, bad), None, "{bad}");
        }
        assert_eq!(redirected("https://h/x", "http://h/x"), None);
        assert_eq!(origin("HTTP://H/v1"), origin("http://h:80/"));
        assert_ne!(origin("http://h:81/v1"), origin("http://h/"));
    }
}
