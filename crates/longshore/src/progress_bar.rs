//! Progress of a long run: one live line on a terminal; elsewhere a line per tenth, at most one a second, or per 30
//! seconds. Also the ear for Ctrl-C.

use crate::report::{Live, Report};
use crate::units;
use anyhow::Result;
use longshore_convert::Progress;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Rate and remaining time are those of the last ten seconds.
const WINDOW: Duration = Duration::from_secs(10);
/// Between two drawings of the live line.
const REDRAW: Duration = Duration::from_millis(100);
/// Between two lines off a terminal: at least, and at most.
const LINE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Columns inside the bar's brackets.
const BAR: usize = 28;

/// Shows the progress of the library's work and passes Ctrl-C on.
pub(crate) struct ProgressBar<'a> {
    report: &'a Report,
    done: AtomicU64,
    state: Mutex<State>,
    stop: Arc<AtomicBool>,
}

struct State {
    word: String,
    total: u64,
    shown_at: Instant,
    shown_bytes: u64,
    /// When how many bytes were done, inside the window, oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl<'a> ProgressBar<'a> {
    /// From here on the first Ctrl-C (or SIGTERM) asks the run to stop and the second ends the process.
    pub(crate) fn new(report: &'a Report) -> Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::flag::{register, register_conditional_shutdown};
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the shutdown looks at the flag before the other sets it.
            register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            register(signal, Arc::clone(&stop))?;
        }
        Ok(Self { stop, ..Self::deaf(report) })
    }

    /// Leaves Ctrl-C as it is: what comes after this bar would not ask whether to stop.
    pub(crate) fn deaf(report: &'a Report) -> Self {
        let now = Instant::now();
        let state = State { word: String::new(), total: 0, shown_at: now, shown_bytes: 0, samples: VecDeque::new() };
        Self { report, done: AtomicU64::new(0), state: Mutex::new(state), stop: Arc::default() }
    }

    /// Takes the bar off the screen.
    pub(crate) fn finish<T>(&self, result: longshore_convert::Result<T>) -> Result<T> {
        self.report.live("");
        Ok(result?)
    }
}

impl Progress for ProgressBar<'_> {
    fn start(&self, phase: &str, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.report.live("");
        self.done.store(0, Ordering::Relaxed);
        let now = Instant::now();
        let word = phase.chars().take(1).flat_map(char::to_uppercase).chain(phase.chars().skip(1)).collect();
        *state = State { word, total: bytes, shown_at: now, shown_bytes: 0, samples: [(now, 0)].into() };
    }

    fn advance(&self, bytes: u64, file: &Path) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever finds the state taken has nothing newer to show than who holds it.
        if let (false, Ok(mut state)) = (self.report.progress() == Live::Off, self.state.try_lock()) {
            let now = Instant::now();
            match self.report.progress() {
                Live::Redraw if now - state.shown_at >= REDRAW => {
                    let line = state.line(now, done, file, Some(columns()));
                    self.report.live(&line);
                }
                Live::Lines if state.line_is_due(now, done) => {
                    let line = state.line(now, done, file, None);
                    self.report.status(&state.word, &line);
                }
                _ => return,
            }
            (state.shown_at, state.shown_bytes) = (now, done);
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl State {
    fn line_is_due(&self, now: Instant, done: u64) -> bool {
        let waited = now - self.shown_at;
        waited >= LINE.1 || (waited >= LINE.0 && done / tenth(self.total) > self.shown_bytes / tenth(self.total))
    }

    /// The line for `done` bytes: with word and bar to fit `columns`, or without both.
    fn line(&mut self, now: Instant, done: u64, file: &Path, columns: Option<usize>) -> String {
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && now - self.samples[1].0 >= WINDOW {
            self.samples.pop_front();
        }
        let (since, bytes) = self.samples[0];
        let (recent, took) = (done.saturating_sub(bytes), (now - since).as_secs_f64());
        let mut eta = String::new();
        if recent > 0 {
            let left = self.total.saturating_sub(done) as f64 * took / recent as f64;
            eta = format!("  eta {}", units::seconds(left.round()).replace(".0s", "s"));
        }
        let text = format!("{}  {}{eta}", units::bytes_of(done, self.total), units::rate(recent, took));
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let Some(columns) = columns else { return text };
        let filled = (u128::from(done.min(self.total)) * BAR as u128 / u128::from(self.total.max(1))) as usize;
        let bar = format!("{}>", "=".repeat(filled));
        let line = format!("{:>10}  [{bar:<width$.width$}]  {text}   {name}", self.word, width = BAR);
        line.chars().take(columns.saturating_sub(1)).collect()
    }
}

fn tenth(total: u64) -> u64 {
    (total / 10).max(1)
}

/// Columns of the terminal on stderr; some say 0 for "not known".
fn columns() -> usize {
    let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { 80 } else { columns }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn state(now: Instant) -> State {
        State { word: "Converting".into(), total: 10 * GB, shown_at: now, shown_bytes: 0, samples: [(now, 0)].into() }
    }

    #[test]
    fn the_live_line_shows_bar_rate_time_and_file_in_the_width_there_is() {
        let start = Instant::now();
        let now = start + Duration::from_secs(5);
        let file = Path::new("/x/__9_0.distcp");
        let line = state(start).line(now, 5 * GB, file, Some(120));
        assert_eq!(line, "Converting  [==============>             ]  5.0/10.0 GB  1.0 GB/s  eta 5s   __9_0.distcp");
        assert_eq!(state(start).line(now, 5 * GB, file, Some(30)).len(), 29);
        let whole = state(start).line(now, 10 * GB, file, Some(60));
        assert!(whole.starts_with("Converting  [============================]  "), "{whole}");
    }

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut state = state(start);
        for second in 1..=20 {
            state.line(start + Duration::from_secs(second), second.min(10) * GB / 10, Path::new("f"), None);
        }
        let line = state.line(start + Duration::from_secs(21), GB, Path::new("f"), None);
        assert_eq!(line, "1.0/10.0 GB  0 B/s");
    }

    #[test]
    fn lines_off_a_terminal_are_a_tenth_and_a_second_or_half_a_minute_apart() {
        let start = Instant::now();
        let due = |millis, bytes| state(start).line_is_due(start + Duration::from_millis(millis), bytes);
        assert!(!due(900, 5 * GB));
        assert!(due(1000, GB));
        assert!(!due(29_000, GB - 1));
        assert!(due(30_000, 1));
    }
}
