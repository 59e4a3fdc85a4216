//! Where the data of a checkpoint lies: in the folder that is named, in the one that a tracker names, or in NeMo's `weights`.

use super::{MARKER, TRACKER};
use crate::other_format::OtherFormat;
use crate::{Error, Result, fs};
use std::path::{Path, PathBuf};

/// `release` or a number and white space.
const MAX_TRACKER: u64 = 256;

/// In which folder NeMo keeps the distributed checkpoint: 2.x, and 1.x once its archive is unpacked.
pub(crate) const INNER: [&str; 2] = ["weights", "model_weights"];

/// Whether a folder of this name is one of a Megatron root's checkpoints.
pub(crate) fn is_inner(name: &str) -> bool {
    name == "release" || name.strip_prefix("iter_").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

/// The folder that holds the data: `path` itself, or the one inside that its tracker names, that is NeMo's, or that is the
/// only checkpoint there.
pub fn inner_folder(path: &Path) -> Result<PathBuf> {
    find(path)?.ok_or_else(|| Error::NotFound {
        path: path.to_owned(),
        what: format!("there is no `{MARKER}` and no `{TRACKER}`"),
    })
}

/// The same; `None` where nothing in `path` marks a distributed checkpoint.
pub(crate) fn find(path: &Path) -> Result<Option<PathBuf>> {
    if fs::exists(&path.join(MARKER)) {
        return Ok(Some(path.to_owned()));
    }
    let tracker = path.join(TRACKER);
    // A link that leads nowhere is a tracker that cannot be read, not none.
    if fs::exists(&tracker) || fs::is_link(&tracker) {
        return tracked(path).map(Some);
    }
    let marked = |name: &str| Some(path.join(name)).filter(|inner| fs::exists(&inner.join(MARKER)));
    if let Some(inner) = INNER.iter().find_map(|name| marked(name)) {
        return Ok(Some(inner));
    }
    // A root whose tracker got lost, or Megatron-Bridge's older one, which is a pickle.
    if !fs::is_dir(path) {
        return Ok(None);
    }
    let inner: Vec<PathBuf> =
        fs::list(path)?.iter().filter(|name| is_inner(name)).filter_map(|name| marked(name)).collect();
    if inner.len() < 2 {
        return Ok(inner.into_iter().next());
    }
    let names: Vec<_> = inner.iter().filter_map(|p| p.file_name()).map(|n| format!("`{}`", n.display())).collect();
    let what = format!("there is no `{TRACKER}` to choose one of {}; name one of these folders", names.join(", "));
    Err(Error::NotFound { path: path.to_owned(), what })
}

/// The folder that the tracker in `path` names.
fn tracked(path: &Path) -> Result<PathBuf> {
    let tracker = path.join(TRACKER);
    let bytes = fs::read_small(&tracker, MAX_TRACKER)?;
    let text = bytes.trim_ascii();
    let name = match std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit())) {
        Some(digits) => digits.parse::<u64>().ok().map(|iteration| format!("iter_{iteration:07}")),
        None => (text == b"release").then(|| "release".to_owned()),
    };
    let Some(name) = name else {
        let what = format!("expected `release` or an iteration, found `{}`", text.escape_ascii());
        return Err(Error::Malformed { path: tracker, offset: 0, what });
    };
    let inner = path.join(&name);
    if fs::exists(&inner.join(MARKER)) {
        return Ok(inner);
    }
    if let (true, Some((found, format))) = (fs::is_dir(&inner), OtherFormat::find(&inner)?) {
        return Err(format.refused(&found));
    }
    Err(Error::NotFound {
        path: inner,
        what: format!("there is no `{MARKER}`, although `{TRACKER}` names this folder"),
    })
}
