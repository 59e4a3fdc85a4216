//! The forms that a shell reads.

use super::{Argument, Purpose};
use std::fmt::Write as _;

/// A file for `examples/post_training/modelopt/conf`, which `arguments.sh` sources. `hf` is the folder or repository with the
/// tokenizer and config; without it the file asks for `HF_MODEL_CKPT`.
pub fn conf(arguments: &[Argument], hf: Option<&str>) -> String {
    let mut text = String::from("#!/bin/bash\n\n");
    match hf {
        Some(hf) => {
            let hf = quoted(hf);
            let _ = writeln!(text, "if [ -z \"${{HF_MODEL_CKPT}}\" ]; then\n    HF_MODEL_CKPT={hf}\nfi");
        }
        None => {
            text += ": \"${HF_MODEL_CKPT:?the checkpoint holds no tokenizer: set it to a folder or repository that does}\"\n";
        }
    }
    text += "if [ -z \"${TOKENIZER_MODEL}\" ]; then\n    TOKENIZER_MODEL=${HF_MODEL_CKPT}\nfi\n\nMODEL_ARGS=\" \\\n";
    let mut before: Option<Purpose> = None;
    for argument in arguments {
        if before.is_some_and(|before| before != argument.purpose) {
            text += "    \\\n";
        }
        before = Some(argument.purpose);
        let _ = writeln!(text, "    {} \\", word(argument));
    }
    text + "\"\n"
}

/// All arguments in one line, for a command line.
pub fn line(arguments: &[Argument]) -> String {
    let words: Vec<String> = arguments
        .iter()
        // Here a shell would look for files that a pattern such as `M*M` matches.
        .map(|a| match &a.value {
            Some(value) if value.contains('*') => format!("{} {}", a.name, quoted(value)),
            _ => word(a),
        })
        .collect();
    words.join(" ") + "\n"
}

fn word(argument: &Argument) -> String {
    argument.value.as_ref().map_or_else(|| argument.name.clone(), |value| format!("{} {value}", argument.name))
}

/// A word as bash takes it, whatever it holds.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_any_name_stays_one_word() {
        assert_eq!(quoted("nvidia/Nano-3_B.v2"), "nvidia/Nano-3_B.v2");
        assert_eq!(quoted("my models/$HOME"), "'my models/$HOME'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
