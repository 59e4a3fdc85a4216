//! What can go wrong between a request and its scores.

/// An error of this crate. None holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder of saved answers cannot be used.
    #[error(transparent)]
    File(#[from] longshore_ckpt::Error),
    /// An address, a key or a setting that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The server says no, and would again.
    #[error("`{url}`: {status} {reason}{}", quoted(.text))]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its name, and what else is known.
        reason: String,
        /// What the server says, cut to a few hundred characters.
        text: String,
    },
    /// A request that cannot be sent, or that nobody answers in a way that HTTP knows.
    #[error("`{url}`: {what}")]
    Failed {
        /// What was asked.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// Every try failed.
    #[error("`{url}`: gave up after {tries} {}: {last}", if *.tries == 1 { "try" } else { "tries" })]
    GaveUp {
        /// What was asked.
        url: String,
        /// How often.
        tries: u32,
        /// What the last try came to.
        last: String,
    },
    /// An answer that says something else than it should.
    #[error("`{url}`: {what}")]
    Unexpected {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// Another request of the same run has failed for good.
    #[error("stopped")]
    Stopped,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the server does not take the request as it is: status 400 or 422.
    pub fn is_bad_request(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 422, .. })
    }

    /// Whether it says so of something whose name contains `word`.
    pub fn is_bad_request_about(&self, word: &str) -> bool {
        self.is_bad_request() && matches!(self, Self::Refused { text, .. } if text.to_lowercase().contains(word))
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
