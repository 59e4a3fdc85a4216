//! From what the user calls a checkpoint to a folder: an existing path, or a repository id in the Hugging Face cache.

use crate::error::UsageError;
use crate::options::{Direction, Env, WriteOptions};
use longshore_ckpt::hub_cache::{self, Kind};
use std::path::{Path, PathBuf};

/// The folder that `given` names. An existing path wins over a repository of the same name.
pub(crate) fn checkpoint(given: &Path, env: &Env) -> Result<PathBuf, UsageError> {
    if given.exists() {
        return Ok(given.to_owned());
    }
    let Some(repo) = repository_id(given) else { return Err(UsageError::NoFolder { path: given.to_owned() }) };
    cached(Kind::Model, repo, env)
}

/// The folder of MMLU: `given`, else `$MMLU_DATASET`, a path or a repository id; else the published repository in the cache.
pub(crate) fn mmlu(given: Option<&Path>, env: &Env) -> Result<PathBuf, UsageError> {
    const PUBLISHED: &str = "cais/mmlu";
    let named = match given {
        Some(path) => Some(path.to_owned()),
        None => env.text("MMLU_DATASET")?.filter(|text| !text.is_empty()).map(PathBuf::from),
    };
    match named {
        Some(path) if path.exists() => Ok(path),
        Some(path) => match repository_id(&path) {
            Some(repo) => cached(Kind::Dataset, repo, env),
            None => Err(UsageError::NoFolder { path }),
        },
        None => cached(Kind::Dataset, PUBLISHED, env),
    }
}

/// The folder of the data set `repo` in the Hugging Face cache.
pub(crate) fn dataset(repo: &str, env: &Env) -> Result<PathBuf, UsageError> {
    cached(Kind::Dataset, repo, env)
}

/// The folder of a repository in the Hugging Face cache.
fn cached(kind: Kind, repo: &str, env: &Env) -> Result<PathBuf, UsageError> {
    let xdg = env.text("XDG_CACHE_HOME")?.map(|cache| format!("{cache}/huggingface"));
    let hf_home = env.text("HF_HOME")?.or(xdg.as_deref());
    let cache = hub_cache::cache_folder(env.text("HF_HUB_CACHE")?, hf_home, env.text("HOME")?);
    let found = cache.as_ref().and_then(|cache| hub_cache::resolve(kind, repo, cache));
    let repo = repo.to_owned();
    found.ok_or(match kind {
        Kind::Model => UsageError::NotCached { repo, cache },
        Kind::Dataset => UsageError::NoDataset { repo, cache },
    })
}

/// Looks the base folder of `options` up, which may be a repository id too.
pub(crate) fn base(options: &mut WriteOptions, env: &Env) -> Result<(), UsageError> {
    let base = match &mut options.direction {
        Direction::Import(options) => &mut options.base,
        Direction::Export(options) => &mut options.base,
    };
    if let Some(path) = base {
        *path = checkpoint(path, env)?;
    }
    Ok(())
}

/// `given` if it has the form `org/name`.
pub(crate) fn repository_id(given: &Path) -> Option<&str> {
    let text = given.to_str()?;
    let (org, name) = text.split_once('/')?;
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    (is_name(org) && is_name(name)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_plain_names_are_a_repository() {
        let id = |text: &'static str| repository_id(Path::new(text));
        assert_eq!(
            id("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
            Some("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
        );
        for path in ["model", "/model", "./model", "../a/b", "a/b/c", "a/", "a b/c", "~/c"] {
            assert_eq!(id(path), None, "{path}");
        }
    }

    #[test]
    fn an_absent_folder_is_not_taken_for_a_repository() {
        let error = checkpoint(Path::new("/no/such/folder"), &Env::default()).expect_err("absent");
        assert_eq!(error.to_string(), "`/no/such/folder`: no such folder");
    }
}
