//! How far a server is with its answers.

use crate::report::{Live, Report};
use crate::units::{count, counted, seconds};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Between two drawings of the live line.
const REDRAW: Duration = Duration::from_millis(100);

pub(super) struct Progress<'a> {
    things: &'a str,
    /// Answers of earlier runs.
    before: usize,
    all: usize,
    started: Instant,
    shown: Cell<Option<Instant>>,
    report: &'a Report,
}

impl<'a> Progress<'a> {
    pub(super) fn begin(things: &'a str, before: usize, all: usize, report: &'a Report) -> Self {
        Self { things, before, all, started: Instant::now(), shown: Cell::new(None), report }
    }

    /// Redrawn on a terminal, else a line for every tenth.
    pub(super) fn show(&self, done: usize) {
        let (took, new) = (self.started.elapsed().as_secs_f64(), (done - self.before).max(1) as f64);
        let left = seconds(took / new * (self.all - done) as f64);
        let text = format!("{} {done} of {}, {:.1}/s, {left} left", self.things, self.all, new / took.max(1e-3));
        match self.report.progress() {
            Live::Redraw if self.shown.get().is_none_or(|shown| shown.elapsed() >= REDRAW) => {
                self.shown.set(Some(Instant::now()));
                self.report.live(&format!("Asking  {text}"));
            }
            Live::Lines if done * 10 / self.all > (done - 1) * 10 / self.all => self.report.status("Asking", &text),
            Live::Off | Live::Lines | Live::Redraw => {}
        }
    }

    /// After the last answer.
    pub(super) fn end(&self, retried: u64) {
        if self.report.progress() == Live::Redraw {
            self.report.live("");
        }
        let (new, took) = (self.all - self.before, self.started.elapsed().as_secs_f64());
        let (asked, rate) = (counted(new as u64, self.things), new as f64 / took.max(1e-3));
        let repeated = match retried {
            0 => String::new(),
            1 => ", 1 try repeated".to_owned(),
            n => format!(", {} tries repeated", count(n)),
        };
        let text = format!("{asked} in {} ({rate:.1}/s){repeated}", seconds(took));
        self.report.status("Asked", &text);
    }
}
