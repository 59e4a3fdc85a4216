//! The one place that prints. People read stderr, in lines that begin with a right-aligned word; stdout is data.

use crate::cli::{Color, Global};
use crate::hint::hint;
use crate::options::Env;
use longshore_convert::Error;
use serde::Serialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// The version of the JSON objects; fields are only added.
pub(crate) const SCHEMA: u64 = 1;

/// Bold green, bold yellow, bold red, bold cyan.
const STATUS: &str = "\x1b[1;32m";
const NOTE: &str = "\x1b[1;33m";
const ERROR: &str = "\x1b[1;31m";
const HINT: &str = "\x1b[1;36m";
const PLAIN: &str = "\x1b[0m";

/// Where the output goes and how much of it there is.
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
#[derive(Debug)]
pub(crate) struct Report {
    verbose: u8,
    quiet: bool,
    /// A step of a larger command: not even data.
    silent: bool,
    json: bool,
    color: bool,
    progress: Live,
    /// Whether a live line is on the screen, which the next line has to replace.
    live: Mutex<bool>,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    /// Not at all.
    Off,
    /// One line now and then.
    Lines,
    /// One line that is redrawn.
    Redraw,
}

impl Report {
    pub(crate) fn new(global: &Global, env: &Env) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let dumb = matches!(env.text("TERM"), Ok(Some("dumb")));
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !dumb && !env.has("NO_COLOR"),
        };
        let progress = match () {
            () if global.quiet || global.no_progress => Live::Off,
            () if terminal && !dumb => Live::Redraw,
            () => Live::Lines,
        };
        let Global { verbose, quiet, json, .. } = *global;
        Self { verbose, quiet, silent: false, json, color, progress, live: Mutex::new(false) }
    }

    /// A report that says nothing, for a step of a larger command.
    pub(crate) fn quietly(&self) -> Self {
        let (silent, json) = (true, false);
        Self { verbose: 0, quiet: true, silent, json, color: self.color, progress: Live::Off, live: Mutex::new(false) }
    }

    /// Whether one JSON object is the output.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// How often `-v` was given.
    pub(crate) fn verbosity(&self) -> u8 {
        self.verbose
    }

    pub(crate) fn progress(&self) -> Live {
        self.progress
    }

    /// What was done: `word`, right-aligned, and `text`.
    pub(crate) fn status(&self, word: &str, text: &str) {
        self.line(STATUS, word, text);
    }

    /// What the reader should know.
    pub(crate) fn note(&self, word: &str, text: &str) {
        self.line(NOTE, word, text);
    }

    /// What only `-v` shows.
    pub(crate) fn detail(&self, word: &str, text: &str) {
        if self.verbose > 0 {
            self.line(STATUS, word, text);
        }
    }

    /// Text as it is, for people.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            self.stderr(text);
        }
    }

    fn line(&self, color: &str, word: &str, text: &str) {
        if !self.quiet {
            // Padding counts the letters, not the colour.
            let pad = " ".repeat(10usize.saturating_sub(word.chars().count()));
            self.stderr(&format!("{pad}{}  {}\n", self.paint(color, word), harmless(text)));
        }
    }

    /// Redraws the live line; an empty text removes it.
    pub(crate) fn live(&self, text: &str) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if *live || !text.is_empty() {
            let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
            *live = !text.is_empty();
        }
    }

    /// A failed command: the facts, then the advice; as JSON too, if that is the output.
    pub(crate) fn failure(&self, command: &str, error: &anyhow::Error) {
        let (message, hint) = (message(error), hint(error));
        let mut text = format!("{}: {}\n", self.paint(ERROR, "error"), harmless(&message));
        if let Some(hint) = &hint {
            let _ = writeln!(text, "{}: {}", self.paint(HINT, "hint"), harmless(hint));
        }
        self.stderr(&text);
        if self.json {
            let problems = match error.downcast_ref() {
                Some(Error::Refused(problems)) => json!(problems),
                _ => Value::Null,
            };
            let error = json!({"message": message, "problems": problems, "hint": hint});
            // The exit status tells of a failure even where nobody reads this.
            let _ = self.json(command, &json!({"error": error}));
        }
    }

    /// Data for whatever reads stdout. The text ends its lines itself.
    pub(crate) fn data(&self, text: &str) -> std::io::Result<()> {
        if self.silent {
            return Ok(());
        }
        stdout(&harmless(text))
    }

    /// Generated text as it comes. On a terminal control characters are escaped, since it would obey them; elsewhere the
    /// bytes are the text's own.
    pub(crate) fn text(&self, text: &str) -> std::io::Result<()> {
        if self.is_terminal() { stdout(&harmless(text)) } else { stdout(text) }
    }

    /// Whether a terminal shows the data.
    #[expect(clippy::unused_self, reason = "all output passes through a report")]
    pub(crate) fn is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// The one JSON object of a command: the common fields, then those of `fields`.
    #[expect(clippy::unused_self, reason = "all output passes through a report")]
    pub(crate) fn json(&self, command: &str, fields: &impl Serialize) -> std::io::Result<()> {
        stdout(&object(command, fields)?)
    }

    fn stderr(&self, text: &str) {
        self.live("");
        // There is nowhere to tell that stderr is gone.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color { format!("{color}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// The common fields, then those of `fields`, as JSON with a line end.
pub(crate) fn object(command: &str, fields: &impl Serialize) -> std::io::Result<String> {
    #[derive(Serialize)]
    struct Object<'a, T> {
        schema: u64,
        command: &'a str,
        #[serde(flatten)]
        fields: &'a T,
    }
    Ok(serde_json::to_string_pretty(&Object { schema: SCHEMA, command, fields })? + "\n")
}

fn stdout(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The text with control characters and those that turn the direction of writing escaped: names come from files, and a
/// terminal would obey them.
fn harmless(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// The error and its causes; a cause that the text above it already ends with is left out.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    text
}

/// Characters of the widest column that [`table`] pads.
const MAX_WIDTH: usize = 160;

/// A table with aligned columns: text to the left, the columns in `right` to the right; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|t| t.chars().count()).max();
    // A longer cell is shown whole, but the others are not padded to it: names can be megabytes.
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0).min(MAX_WIDTH)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = if column > 0 { "  " } else { "" };
            let width = widths[column];
            let cell = if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line += gap;
            line += &cell;
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Most memory this process ever had, in bytes (`VmHWM`); `None` where the system does not say.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_is_not_said_twice() {
        let io = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let path = std::path::PathBuf::from("/x");
        let error = longshore_ckpt::Error::Io { op: "reading", path, source: io() };
        let error = Err::<(), _>(error).context("planning").expect_err("it is one");
        assert_eq!(message(&error), "planning: reading `/x`: entity not found");
    }

    #[test]
    fn tables_align() {
        let rows =
            [vec!["a", "1", "x"], vec!["bbb", "22", ""]].map(|row| row.iter().map(ToString::to_string).collect());
        assert_eq!(table(&rows, &[1]), "a     1  x\nbbb  22\n");
    }

    #[test]
    fn linux_tells_the_peak() {
        assert!(peak_memory().is_none_or(|bytes| bytes > 100_000));
    }
}
