//! The data sets that ModelOpt knows by name (0.47, `dataset_utils.py`, `SUPPORTED_DATASET_CONFIG` and `DATASET_COMBOS`):
//! where they are published, which splits are taken, and which columns make the text.

use super::record::COLUMNS;
use crate::prompts::json_line;
use serde_json::{Map, Value, json};

/// The set that the reference calibrates on by default.
pub(super) const REFERENCE: &str = "nvidia/Nemotron-Post-Training-Dataset-v2";

/// A registered data set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) name: &'static str,
    pub(super) repo: &'static str,
    /// The configuration, which is a folder of the repository where it has several.
    pub(super) config: Option<&'static str>,
    pub(super) splits: &'static [&'static str],
    pub(super) text: Text,
}

/// How a row becomes a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// By the columns it has, as a line of JSON.
    Record,
    /// These columns, each on lines of its own.
    Columns(&'static [&'static str]),
    /// The contents of the turns in `input`, then `output`.
    Turns,
}

const fn set(
    name: &'static str,
    repo: &'static str,
    config: Option<&'static str>,
    splits: &'static [&'static str],
    text: Text,
) -> Registered {
    Registered { name, repo, config, splits, text }
}

const TRAIN: &[&str] = &["train"];
const PLAIN: Text = Text::Columns(&["text"]);

/// Sets that moved since are named by where they are now.
static SETS: [Registered; 19] = [
    set(
        "open_code_reasoning",
        "nvidia/OpenCodeReasoning",
        Some("split_0"),
        &["split_0"],
        Text::Columns(&["input", "output"]),
    ),
    set(
        "open_math_reasoning",
        "nvidia/OpenMathReasoning",
        None,
        &["cot", "tir", "genselect"],
        Text::Columns(&["problem", "generated_solution"]),
    ),
    set(
        "llama-nemotron-post-training-dataset",
        "nvidia/Llama-Nemotron-Post-Training-Dataset",
        Some("SFT"),
        &["code", "math", "science", "chat", "safety"],
        Text::Turns,
    ),
    set("nemotron-post-training-dataset-v2", REFERENCE, None, &["stem", "chat", "math", "code"], Text::Record),
    set(
        "nemotron-post-training-dataset-v1",
        "nvidia/Nemotron-Post-Training-Dataset-v1",
        None,
        &["stem", "chat", "math", "code", "tool_calling"],
        Text::Record,
    ),
    set(
        "nemotron-sft-instruction-following-chat-v2",
        "nvidia/Nemotron-SFT-Instruction-Following-Chat-v2",
        None,
        &["reasoning_off"],
        Text::Record,
    ),
    set("nemotron-science-v1", "nvidia/Nemotron-Science-v1", None, &["MCQ", "RQA"], Text::Record),
    set(
        "nemotron-competitive-programming-v1",
        "nvidia/Nemotron-Competitive-Programming-v1",
        None,
        &[
            "competitive_coding_cpp_part00",
            "competitive_coding_cpp_part01",
            "competitive_coding_python_part00",
            "competitive_coding_python_part01",
        ],
        Text::Record,
    ),
    set("nemotron-sft-agentic-v2", "nvidia/Nemotron-SFT-Agentic-v2", None, &["search"], Text::Record),
    set(
        "nemotron-math-v2",
        "nvidia/Nemotron-Math-v2",
        None,
        &["high_part00", "high_part01", "high_part02", "medium", "low"],
        Text::Record,
    ),
    set("nemotron-sft-swe-v2", "nvidia/Nemotron-SFT-SWE-v2", None, &["agentless"], Text::Record),
    set(
        "nemotron-sft-multilingual-v1",
        "nvidia/Nemotron-SFT-Multilingual-v1",
        None,
        &[
            "code_de", "code_es", "code_fr", "code_it", "code_ja", "code_zh", "math_de", "math_es", "math_fr",
            "math_it", "math_ja", "math_zh", "stem_de", "stem_es", "stem_fr", "stem_it", "stem_ja", "stem_zh",
        ],
        Text::Record,
    ),
    set("magpie", "Magpie-Align/Magpie-Pro-MT-300K-v0.1", None, TRAIN, Text::Record),
    set("cnn_dailymail", "abisee/cnn_dailymail", Some("3.0.0"), TRAIN, Text::Columns(&["article"])),
    set("pile", "monology/pile-uncopyrighted", None, TRAIN, PLAIN),
    set("pg19", "deepmind/pg19", None, TRAIN, PLAIN),
    set("wikipedia", "legacy-datasets/wikipedia", Some("20220301.en"), TRAIN, PLAIN),
    set("c4", "allenai/c4", Some("en"), TRAIN, PLAIN),
    set("wikitext", "Salesforce/wikitext", Some("wikitext-103-v1"), TRAIN, PLAIN),
];

/// Groups of sets, which share the samples evenly.
const COMBOS: [(&str, &[&str]); 2] = [
    ("cnn_nemotron_v2_mix", &["cnn_dailymail", "nemotron-post-training-dataset-v2"]),
    (
        "nemotron-post-training-v3",
        &[
            "nemotron-sft-instruction-following-chat-v2",
            "nemotron-science-v1",
            "nemotron-competitive-programming-v1",
            "nemotron-sft-agentic-v2",
            "nemotron-math-v2",
            "nemotron-sft-swe-v2",
            "nemotron-sft-multilingual-v1",
        ],
    ),
];

/// The set of this name or repository.
pub(super) fn find(name: &str) -> Option<&'static Registered> {
    SETS.iter().find(|set| set.name.eq_ignore_ascii_case(name) || set.repo.eq_ignore_ascii_case(name))
}

/// The set that a folder of this name holds.
pub(super) fn of_folder(name: &str) -> Option<&'static Registered> {
    let is_repo = |set: &&Registered| set.repo.rsplit('/').next().is_some_and(|own| own.eq_ignore_ascii_case(name));
    find(name).or_else(|| SETS.iter().find(is_repo))
}

/// The members of a group.
pub(super) fn combo(name: &str) -> Option<&'static [&'static str]> {
    COMBOS.iter().find(|(combo, _)| combo.eq_ignore_ascii_case(name)).map(|(_, members)| *members)
}

impl Text {
    /// The columns to read.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Record => &COLUMNS,
            Self::Columns(columns) => columns,
            Self::Turns => &["input", "output"],
        }
    }

    /// The line of JSON for a row, which is one too.
    pub(super) fn line(self, row: String) -> Result<String, String> {
        let keys = match self {
            Self::Record => return Ok(row),
            Self::Columns(keys) => keys,
            Self::Turns => &["output"],
        };
        let value = json_line(&row).map_err(|error| error.to_string())?;
        let fields = value.as_object().ok_or_else(|| format!("expected an object, found `{value}`"))?;
        let mut parts = if self == Self::Turns { turns(fields)? } else { Vec::new() };
        for key in keys {
            let text = fields.get(*key).and_then(Value::as_str);
            parts.push(text.ok_or_else(|| format!("`{key}`: expected text"))?);
        }
        Ok(json!({"text": parts.join("\n")}).to_string())
    }
}

fn turns<'a>(fields: &'a Map<String, Value>) -> Result<Vec<&'a str>, String> {
    let list = fields.get("input").and_then(Value::as_array).ok_or("`input`: expected a list of turns")?;
    let content = |(at, turn): (usize, &'a Value)| {
        turn.get("content").and_then(Value::as_str).ok_or_else(|| format!("`input`, turn {at}: expected `content`"))
    };
    list.iter().enumerate().map(content).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_name_by_repository_and_by_folder() {
        assert_eq!(find("cnn_dailymail").map(|set| set.repo), Some("abisee/cnn_dailymail"));
        assert_eq!(find(REFERENCE).map(|set| set.name), Some("nemotron-post-training-dataset-v2"));
        assert_eq!(of_folder("Nemotron-Post-Training-Dataset-v2").map(|set| set.repo), Some(REFERENCE));
        assert_eq!((find("Nemotron"), of_folder("data")), (None, None));
    }

    #[test]
    fn members_of_groups_are_sets() {
        for (name, members) in COMBOS {
            assert!(find(name).is_none() && members.iter().all(|member| find(member).is_some()), "{name}");
        }
        assert_eq!(combo("cnn_nemotron_v2_mix").map(<[&str]>::len), Some(2));
    }

    #[test]
    fn texts_are_made_of_the_columns_of_each_set() {
        let line = |text: Text, row: &str| text.line(row.to_owned());
        let article = Text::Columns(&["article"]);
        assert_eq!(line(article, r#"{"article": "a", "text": "b"}"#), Ok(r#"{"text":"a"}"#.to_owned()));
        assert_eq!(line(article, r#"{"text": "b"}"#), Err("`article`: expected text".to_owned()));
        let two = Text::Columns(&["problem", "generated_solution"]);
        assert_eq!(line(two, r#"{"generated_solution": "b", "problem": "a"}"#), Ok(r#"{"text":"a\nb"}"#.to_owned()));
        let turns = r#"{"output": "c", "input": [{"role": "user", "content": "a"}, {"content": "b"}]}"#;
        assert_eq!(line(Text::Turns, turns), Ok(r#"{"text":"a\nb\nc"}"#.to_owned()));
        let wrong = line(Text::Turns, r#"{"output": "c", "input": [{"role": "user"}]}"#);
        assert_eq!(wrong, Err("`input`, turn 0: expected `content`".to_owned()));
        assert_eq!(line(Text::Record, "any"), Ok("any".to_owned()));
    }
}
