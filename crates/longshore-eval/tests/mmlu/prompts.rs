//! The bytes of the prompts.

use super::{golden, published, question};
use longshore_eval::mmlu::{self, Mmlu, Prompts, Question, Style};
use sha2::{Digest, Sha256};

fn dev() -> Vec<Question> {
    vec![
        question("other", "Not here?", ["w", "x", "y", "z"], 0),
        question("abstract_algebra", " Which?\n", ["1", " 2", "3 ", "4"], 1),
        question("abstract_algebra", "Second?", ["5", "6", "7", "8"], 3),
    ]
}

fn text(style: Style, shots: usize) -> String {
    let prompts = Prompts::new(style, shots, &dev(), ["abstract_algebra"]).unwrap();
    let asked = question("abstract_algebra", "\tHow\n many? ", ["0", "1", "2", "3"], 2);
    let prompt = prompts.prompt(&asked).unwrap();
    assert_eq!(prompt.text(), [prompt.prefix, &prompt.suffix].concat());
    prompt.text()
}

const DESCRIPTION: &str = "The following are multiple choice questions (with answers) about abstract algebra.\n\n";

#[test]
fn prompts_are_those_of_the_references_to_the_byte() {
    let lm_eval = "How\n many?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:";
    let modelopt = "\tHow\n many? \nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:";
    assert_eq!(text(Style::LmEval, 0), [DESCRIPTION, lm_eval].concat());
    assert_eq!(text(Style::ModelOpt, 0), [DESCRIPTION, modelopt].concat());
    assert_eq!(text(Style::ModelOptExact, 0), [DESCRIPTION, modelopt].concat());

    let stripped = "Which?\nA. 1\nB.  2\nC. 3 \nD. 4\nAnswer: B\n\n";
    let raw = " Which?\n\nA. 1\nB.  2\nC. 3 \nD. 4\nAnswer: B\n\n";
    let exact = " Which?\n\nA. 1\nB.  2\nC. 3 \nD. 4Answer: B\n\n";
    assert_eq!(text(Style::LmEval, 1), [DESCRIPTION, stripped, lm_eval].concat());
    assert_eq!(text(Style::ModelOpt, 1), [DESCRIPTION, raw, modelopt].concat());
    assert_eq!(text(Style::ModelOptExact, 1), [DESCRIPTION, exact, modelopt].concat());

    let second = "Second?\nA. 5\nB. 6\nC. 7\nD. 8Answer: D\n\n";
    assert_eq!(text(Style::ModelOptExact, 2), [DESCRIPTION, exact, second, modelopt].concat());
}

#[test]
fn strip_is_pythons() {
    let prompts = Prompts::new(Style::LmEval, 0, &[], ["s"]).unwrap();
    let odd = question("s", "\u{1c}\u{1f}\u{85}\u{a0}\u{2003}q\u{200b}\u{1d}", ["1", "2", "3", "4"], 0);
    assert!(prompts.prompt(&odd).unwrap().suffix.starts_with("q\u{200b}\nA. 1"));
}

fn check(mmlu: &Mmlu, set: &str) {
    let golden = golden(set);
    for style in Style::ALL {
        for shots in [0, 5] {
            let subjects = mmlu.test.iter().map(|q| q.subject.as_str());
            let prompts = Prompts::new(style, shots, &mmlu.dev, subjects).unwrap();
            let mut all = Sha256::new();
            for question in &mmlu.test {
                all.update(prompts.prompt(question).unwrap().hash());
            }
            assert_eq!(
                format!("{:x}", all.finalize()),
                golden["prompts"][format!("{style} {shots}")],
                "{style} {shots}"
            );
        }
    }
}

#[test]
fn every_prompt_of_the_bundled_questions_is_pythons() {
    check(&mmlu::bundled().unwrap(), "bundled");
}

#[test]
fn every_prompt_of_the_published_questions_is_pythons() {
    let Some(mmlu) = published() else { return };
    check(&mmlu, "published");
}

#[test]
fn too_few_examples_are_refused_for_all_subjects_together() {
    let error = Prompts::new(Style::LmEval, 2, &dev(), ["abstract_algebra", "other", "none"]).unwrap_err();
    assert_eq!(error.to_string(), "expected 2 dev questions a subject: none has 0, other has 1");
    let prompts = Prompts::new(Style::LmEval, 1, &dev(), ["other"]).unwrap();
    let error = prompts.prompt(&dev()[1]).unwrap_err();
    assert_eq!(error.to_string(), "no prompt was prepared for subject abstract_algebra");
}

#[test]
fn styles_are_read_by_their_names() {
    for style in Style::ALL {
        assert_eq!(style.to_string().parse::<Style>().unwrap(), style);
        assert_eq!(serde_json::to_value(style).unwrap(), style.name());
    }
    let error = "helm".parse::<Style>().unwrap_err().to_string();
    assert_eq!(error, "no style `helm`; there are lm-eval, modelopt, modelopt-exact");
}
