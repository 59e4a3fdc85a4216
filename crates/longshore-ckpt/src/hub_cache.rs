//! Where `huggingface_hub` keeps what it has downloaded. Nothing here uses the network.
//!
//! ```text
//! <cache>/models--org--name/refs/main              the commit that `main` was at
//! <cache>/models--org--name/snapshots/<commit>/    links to ../../blobs/<hash>
//! <cache>/datasets--org--name/...                  the same
//! ```
//!
//! Reference: `huggingface_hub`, `constants.py` (folders), `file_download.py` (`repo_folder_name`) and
//! `utils/_validators.py` (repository ids).

use crate::fs;
use std::path::{Path, PathBuf};

/// Bytes of a file in `refs`: a commit is 40.
const REF_LIMIT: u64 = 1024;

/// The longest name in a repository id, as `validate_repo_id` has it.
const NAME_LIMIT: usize = 96;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// The snapshot folder of `org/name` in a cache folder: the one that `refs/main` names or, without that file, the only one
/// there is. `None` where nothing usable is cached or the id is not of that form.
pub fn resolve(kind: Kind, repo_id: &str, cache: &Path) -> Option<PathBuf> {
    let (org, name) = repo_id.split_once('/')?;
    if name.len() > NAME_LIMIT || !is_name(org) || !is_name(name) {
        return None;
    }
    let kind = match kind {
        Kind::Model => "models",
        Kind::Dataset => "datasets",
    };
    let repo = cache.join(format!("{kind}--{org}--{name}"));
    let snapshots = repo.join("snapshots");
    let main = repo.join("refs").join("main");
    let commit = if fs::exists(&main) {
        String::from_utf8(fs::read_small(&main, REF_LIMIT).ok()?).ok()?.trim().to_owned()
    } else {
        let mut names = fs::list(&snapshots).ok()?;
        names.retain(|name| fs::is_dir(&snapshots.join(name)));
        let only = names.pop()?;
        if !names.is_empty() {
            return None;
        }
        only
    };
    let folder = snapshots.join(&commit);
    (is_name(&commit) && fs::is_dir(&folder)).then_some(folder)
}

/// The cache folder for the values of the environment variables: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
/// `HOME/.cache/huggingface/hub`. An empty value counts as unset; a leading `~/` is the home folder.
///
/// `huggingface_hub` also heeds `XDG_CACHE_HOME`: where that is set and `HF_HOME` is not, pass
/// `$XDG_CACHE_HOME/huggingface` as `hf_home`.
pub fn cache_folder(hf_hub_cache: Option<&str>, hf_home: Option<&str>, home: Option<&str>) -> Option<PathBuf> {
    let set = |value: Option<&str>| value.filter(|value| !value.is_empty()).map(str::to_owned);
    let home = set(home);
    let expand = |value: String| match (value.strip_prefix('~'), &home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => PathBuf::from(format!("{home}{rest}")),
        _ => PathBuf::from(value),
    };
    if let Some(cache) = set(hf_hub_cache) {
        return Some(expand(cache));
    }
    if let Some(hf_home) = set(hf_home) {
        return Some(expand(hf_home).join("hub"));
    }
    home.as_ref().map(|home| Path::new(home).join(".cache/huggingface/hub"))
}

/// One part of a repository id (or a commit): letters, digits, `-`, `_`, `.`; not `..` or `--` anywhere, and neither `-`
/// nor `.` at an end.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.contains("..")
        && !name.contains("--")
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_snapshot_of_main_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name.v-1");
        write(&repo.join("snapshots/abc/config.json"), "{}");
        write(&repo.join("snapshots/def/config.json"), "{}");
        assert_eq!(resolve(Kind::Model, "org/name.v-1", cache.path()), None, "two snapshots and no ref");
        write(&repo.join("refs/main"), "def\n");
        assert_eq!(resolve(Kind::Model, "org/name.v-1", cache.path()), Some(repo.join("snapshots/def")));
        write(&repo.join("refs/main"), "gone");
        assert_eq!(resolve(Kind::Model, "org/name.v-1", cache.path()), None);
        for hostile in ["..", "../..", "/etc", "", "../snapshots/abc"] {
            write(&repo.join("refs/main"), hostile);
            assert_eq!(resolve(Kind::Model, "org/name.v-1", cache.path()), None, "{hostile}");
        }
    }

    #[test]
    fn a_lone_snapshot_needs_no_ref() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name");
        write(&repo.join("snapshots/abc/config.json"), "{}");
        write(&repo.join("snapshots/.DS_Store"), "");
        assert_eq!(resolve(Kind::Model, "org/name", cache.path()), Some(repo.join("snapshots/abc")));
    }

    #[test]
    fn data_sets_are_not_models() {
        let cache = tempfile::tempdir().unwrap();
        write(&cache.path().join("datasets--a--b/snapshots/c/x"), "");
        assert_eq!(resolve(Kind::Model, "a/b", cache.path()), None);
        assert!(resolve(Kind::Dataset, "a/b", cache.path()).is_some());
    }

    #[test]
    fn ids_of_another_form_name_nothing() {
        let cache = tempfile::tempdir().unwrap();
        write(&cache.path().join("models--a--b/snapshots/c/x"), "");
        assert!(resolve(Kind::Model, "a/b", cache.path()).is_some());
        for id in ["b", "a/b/c", "a/", "/b", "a/..", "../b", "a/.b", "a/b.", "a--x/b", "a/b c", "a/b\0", "a\\b", ""] {
            assert_eq!(resolve(Kind::Model, id, cache.path()), None, "{id:?}");
        }
        assert_eq!(resolve(Kind::Model, &format!("a/{}", "b".repeat(97)), cache.path()), None);
    }

    #[test]
    fn the_cache_folder_is_huggingface_hubs() {
        let is = |a, b, c, want: Option<&str>| assert_eq!(cache_folder(a, b, c), want.map(PathBuf::from));
        is(Some("/c"), Some("/h"), Some("/home/u"), Some("/c"));
        is(None, Some("/h"), Some("/home/u"), Some("/h/hub"));
        is(None, None, Some("/home/u"), Some("/home/u/.cache/huggingface/hub"));
        is(Some(""), Some(""), Some("/home/u"), Some("/home/u/.cache/huggingface/hub"));
        is(Some("~/c"), None, Some("/home/u"), Some("/home/u/c"));
        is(None, Some("~"), Some("/home/u"), Some("/home/u/hub"));
        is(Some("~other/c"), None, Some("/home/u"), Some("~other/c"));
        is(None, None, None, None);
        is(None, None, Some(""), None);
    }
}
