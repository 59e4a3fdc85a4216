//! What is wrong with calibration data.

use std::fmt;
use std::path::PathBuf;

/// Why there are no calibration samples.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CalibrationError {
    /// Everything that is wrong with the lines or rows of files.
    #[error("{}", .0.iter().map(|(path, problems)| format!("`{}`:{problems}", path.display())).collect::<Vec<_>>().join("\n"))]
    Lines(Vec<(PathBuf, Problems)>),
    /// Everything that is wrong with the data sets that are named; `absent` ones are not in the cache.
    #[error("{}", problems.join("\n"))]
    Sets { problems: Vec<String>, absent: Vec<String> },
    /// A larger file than the limit.
    #[error("`{}` holds {bytes} bytes: expected at most {limit}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    /// A file without any text or ids.
    #[error("`{}` holds no calibration sample", path.display())]
    NoSample { path: PathBuf },
    /// Text, the bundled one or a file's, meets a model without tokenizer.
    #[error("{source_name} must be tokenized, and there is no `tokenizer.json` in `{}`", folder.display())]
    NoTokenizer { source_name: String, folder: PathBuf },
    /// More random ids than are held in memory.
    #[error("--calib-size {size} times --calib-seq {seq}: expected at most {limit} random ids")]
    TooManyIds { size: u32, seq: u32, limit: u64 },
    /// The bundled text and this tokenizer do not go together.
    #[error("the bundled text:{0}")]
    Bundled(Problems),
}

impl CalibrationError {
    /// What the user can do about it, where there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        if let Self::Sets { absent, .. } = self {
            let line = |repo: &String| format!("`hf download {repo} --repo-type dataset`");
            let lines = absent.iter().map(line).collect::<Vec<_>>().join(", ");
            return (!absent.is_empty()).then(|| format!("{lines}; without --calib there is a bundled text"));
        }
        let hint = match self {
            Self::NoTokenizer { .. } => {
                "`--tokenizer DIR` names a folder with one; lines of `input_ids` need none, nor does `--calib random`, \
                 which is for smoke tests only"
            }
            Self::TooLarge { .. } => "`head -n 10000` makes a smaller file; a calibration takes some hundred samples",
            Self::NoSample { .. } => "without --calib there is a bundled text",
            Self::TooManyIds { .. } => "the default of both is 512",
            Self::Lines(_) | Self::Bundled(_) | Self::Sets { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// Problems of lines, those that say the same together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Problems {
    /// Whether it is the rows of a file that are counted, which has no lines.
    of_rows: bool,
    groups: Vec<Group>,
    /// Lines whose problems are not listed.
    unlisted: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    what: String,
    /// The first line that has it.
    line: u64,
    lines: u64,
}

/// Different problems that are listed; a binary file has one a line.
const LISTED: usize = 20;

impl Problems {
    /// None yet, of a file that has rows or lines.
    pub(super) fn of_file(of_rows: bool) -> Self {
        Self { of_rows, ..Self::default() }
    }

    pub(super) fn add(&mut self, line: u64, what: String) {
        if let Some(group) = self.groups.iter_mut().find(|group| group.what == what) {
            group.line = group.line.min(line);
            group.lines += 1;
        } else if self.groups.len() < LISTED {
            self.groups.push(Group { what, line, lines: 1 });
        } else {
            self.unlisted += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = if self.of_rows { "row" } else { "line" };
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        groups.sort_by_key(|group| group.line);
        for group in groups {
            write!(f, "\n  {line} {}", group.line)?;
            if group.lines > 1 {
                write!(f, " and {} more", group.lines - 1)?;
            }
            write!(f, ": {}", group.what)?;
        }
        if self.unlisted > 0 {
            write!(f, "\n  and {} more {line}s", self.unlisted)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_problems_are_listed_once_and_in_the_order_of_lines() {
        let mut problems = Problems::default();
        problems.add(7, "b".into());
        problems.add(9, "a".into());
        problems.add(3, "a".into());
        assert_eq!(problems.to_string(), "\n  line 3 and 1 more: a\n  line 7: b");
        for line in 10..40 {
            problems.add(line, format!("{line}"));
        }
        let text = problems.to_string();
        assert_eq!((text.lines().count(), text.lines().last()), (22, Some("  and 12 more lines")));
    }
}
