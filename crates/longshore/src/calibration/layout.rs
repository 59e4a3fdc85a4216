//! Which files of a data set's folder belong to a split, by their names, as repositories on the Hugging Face hub have them:
//! `data/train-00000-of-00003.parquet`, `train.jsonl`, `train/0.jsonl.gz`, `en/c4-train.00000-of-01024.json.gz`.

use anyhow::Result;
use longshore_ckpt::fs;
use std::collections::BTreeSet;
use std::path::Path;

/// Folders within folders.
const DEEPEST: usize = 4;

/// Files of a folder; the largest sets have some thousand.
const MAX_FILES: usize = 100_000;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Parquet,
    /// One JSON value a line, or, unless it is compressed, one array of all.
    Json {
        is_gzip: bool,
    },
}

impl Form {
    /// The form that a file's name tells.
    pub(super) fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let (stem, is_gzip) = name.strip_suffix(".gz").map_or((&*name, false), |stem| (stem, true));
        match stem.rsplit_once('.')?.1 {
            "parquet" if !is_gzip => Some(Self::Parquet),
            "jsonl" | "ndjson" | "json" => Some(Self::Json { is_gzip }),
            _ => None,
        }
    }
}

/// The files of a split, in the order of their names, and how many its names say that it has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) paths: Vec<String>,
    pub(super) expected: usize,
}

/// The data files under `folder`, named from there, in order.
pub(super) fn list(folder: &Path) -> Result<Result<Vec<String>, String>> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), 0)];
    let mut seen = 0;
    while let Some((prefix, depth)) = open.pop() {
        for name in fs::list(&folder.join(&prefix))? {
            seen += 1;
            if seen > MAX_FILES {
                return Ok(Err(format!("`{}` holds more than {MAX_FILES} files", folder.display())));
            }
            if name.starts_with('.') {
                continue;
            }
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            if fs::is_dir(&folder.join(&path)) {
                if depth < DEEPEST {
                    open.push((path, depth + 1));
                }
            } else if Form::of(&name).is_some() {
                found.push(path);
            }
        }
    }
    // Other JSON of a repository is about the data.
    found.retain(|path| !matches!(path.as_str(), "dataset_infos.json" | "dataset_dict.json" | "state.json"));
    found.sort();
    Ok(Ok(found))
}

/// Those of `all` that belong to `split`, or why there are none.
pub(super) fn of_split(all: &[String], config: Option<&str>, split: &str) -> Result<Files, String> {
    if all.is_empty() {
        return Err("expected .parquet, .jsonl, .jsonl.gz or .json files, found none".to_owned());
    }
    let is_under = |path: &str, folder: &str| path.split('/').rev().skip(1).any(|part| part == folder);
    let mut files: Vec<&String> = all.iter().collect();
    if let Some(config) = config
        && all.iter().any(|path| is_under(path, config))
    {
        files.retain(|path| is_under(path, config));
    }
    let split_plain = plain(split);
    let by_name = |path: &&&String| plain(&Name::of(path).stem) == split_plain;
    let by_folder = |path: &&&String| path.split('/').rev().skip(1).any(|part| plain(part) == split_plain);
    let by_word = |path: &&&String| Name::of(path).words().any(|word| word == split);
    let mut found: Vec<&String> = files.iter().filter(by_name).copied().collect();
    if found.is_empty() {
        found = files.iter().filter(by_folder).copied().collect();
    }
    if found.is_empty() {
        found = files.iter().filter(by_word).copied().collect();
    }
    // Files whose names tell no split are those of training.
    if found.is_empty() && split == "train" && !files.iter().any(|path| Name::of(path).tells_a_split()) {
        found.clone_from(&files);
    }
    if found.is_empty() {
        return Err(format!("no files of the split `{split}`, found {}", shown(&files)));
    }
    let forms: BTreeSet<bool> = found.iter().map(|path| Form::of(path) == Some(Form::Parquet)).collect();
    if forms.len() > 1 {
        return Err(format!("the split `{split}` is there both as parquet and as JSON"));
    }
    let expected = found.iter().filter_map(|path| Name::of(path).shards).max().unwrap_or(0);
    Ok(Files { expected: expected.max(found.len()), paths: found.into_iter().cloned().collect() })
}

fn shown(files: &[&String]) -> String {
    /// Names that are shown; a folder may have any number.
    const SHOWN: usize = 8;
    let stems: BTreeSet<String> = files.iter().map(|path| Name::of(path).stem).collect();
    let names: Vec<String> = stems.iter().take(SHOWN).map(|stem| format!("`{stem}`")).collect();
    format!("{}{}", names.join(", "), if stems.len() > SHOWN { ", ..." } else { "" })
}

/// Letters and digits, in lower case: `high.part_00` holds the split `high_part00`.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// A file's name without its folder, ending and shard.
struct Name {
    stem: String,
    /// How many shards there are.
    shards: Option<usize>,
}

impl Name {
    fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path);
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let number = |text: &str| text.parse::<usize>().ok().filter(|_| text.len() >= 5);
        if let Some((left, right)) = stem.rsplit_once("-of-")
            && let Some((own, at)) = left.rsplit_once(['-', '.'])
            && number(at).is_some()
            // Older files have a hash behind it.
            && let Some(shards) = number(right.split('-').next().unwrap_or(right))
        {
            return Self { stem: own.to_owned(), shards: Some(shards) };
        }
        Self { stem: stem.to_owned(), shards: None }
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.stem.split(['-', '_', '.', ' '])
    }

    fn tells_a_split(&self) -> bool {
        const OTHERS: [&str; 8] = ["validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"];
        self.shards.is_some() || self.words().any(|word| OTHERS.contains(&word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(all: &[&str], config: Option<&str>, split: &str) -> Result<Vec<String>, String> {
        let all: Vec<String> = all.iter().map(|&path| path.to_owned()).collect();
        of_split(&all, config, split).map(|files| files.paths)
    }

    #[test]
    fn splits_are_told_by_the_names_that_repositories_have() {
        for (path, name) in [
            ("data/train-00000-of-00003.parquet", "train"),
            ("data/train-00000-of-00001-0123456789abcdef.parquet", "train"),
            ("train.jsonl", "train"),
            ("train/part.jsonl.gz", "train"),
            ("en/c4-train.00000-of-01024.json.gz", "train"),
            ("data/high.part_00.jsonl", "high_part00"),
            ("SFT/code/code_v1.1.jsonl", "code"),
            ("split_0/train-00000-of-00030.parquet", "split_0"),
        ] {
            let all = [path, "data/test-00000-of-00001.parquet"];
            assert_eq!(split(&all, None, name), Ok(vec![path.to_owned()]), "{path}");
        }
        assert_eq!(split(&["a.jsonl", "b.jsonl"], None, "train"), Ok(vec!["a.jsonl".into(), "b.jsonl".into()]));
    }

    #[test]
    fn a_configuration_is_a_folder() {
        let all = ["1.0.0/train-00000-of-00001.parquet", "3.0.0/train-00000-of-00001.parquet"];
        assert_eq!(split(&all, Some("3.0.0"), "train"), Ok(vec![all[1].to_owned()]));
        assert_eq!(split(&all, None, "train").map(|files| files.len()), Ok(2));
    }

    #[test]
    fn what_has_no_such_split_says_what_it_has() {
        assert_eq!(
            split(&["data/chat-00000-of-00001.parquet", "data/stem-00000-of-00001.parquet"], None, "train"),
            Err("no files of the split `train`, found `chat`, `stem`".to_owned())
        );
        assert!(split(&["dev.jsonl", "a.jsonl"], None, "train").is_err());
        assert!(split(&[], None, "train").unwrap_err().ends_with("found none"));
        assert!(split(&["train.jsonl", "train.parquet"], None, "train").unwrap_err().contains("both as"));
    }

    #[test]
    fn shards_say_how_many_there_are() {
        let files = of_split(&["data/train-00001-of-00003.parquet".to_owned()], None, "train").unwrap();
        assert_eq!((files.paths.len(), files.expected), (1, 3));
    }

    #[test]
    fn forms_are_told_by_endings() {
        assert_eq!(Form::of("a.parquet"), Some(Form::Parquet));
        assert_eq!(Form::of("a.JSONL"), Some(Form::Json { is_gzip: false }));
        assert_eq!(Form::of("a.json.gz"), Some(Form::Json { is_gzip: true }));
        for name in ["a.parquet.gz", "a.txt", "a", "a.jsonl.zst"] {
            assert_eq!(Form::of(name), None, "{name}");
        }
    }
}
