use super::*;
use crate::page::tests::{check_alone, elements};
use longshore_eval::perplexity::WindowSum;

const HOSTILE: &str = "</title><script>alert(1)</script>&\u{1b}[2J\"'";

/// A list of answers, a letter for each question; `A` is right.
fn records(subject: &str, choices: &str) -> Vec<Record> {
    let of = |(index, letter): (usize, char)| {
        let choice = u8::try_from("ABCD".find(letter).expect("a letter")).expect("small");
        let mut logits = [0.0; 4];
        logits[usize::from(choice)] = 1.0;
        let (subject, prompt_hash) = (subject.to_owned(), "hash".to_owned());
        Record {
            subject,
            index,
            prompt_hash,
            given: logits.into(),
            choice: Some(choice),
            answer: 0,
            correct: choice == 0,
        }
    };
    choices.chars().enumerate().map(of).collect()
}

fn run(outcome: Outcome) -> saved::Run {
    let checkpoint = saved::Checkpoint { name: HOSTILE.to_owned(), precision: "bf16".to_owned(), ..Default::default() };
    let provenance = Provenance { checkpoints: vec![checkpoint], ..Provenance::default() };
    saved::Run { provenance: Some(provenance), outcome }
}

fn compared(runs: Vec<saved::Run>) -> Compared {
    let paths: Vec<PathBuf> = (0..runs.len()).map(|i| PathBuf::from(format!("{i}.json"))).collect();
    Compared::of(&paths, runs).unwrap()
}

fn mmlu(choices: &[[&str; 3]]) -> Compared {
    let subjects = ["virology", "anatomy", HOSTILE];
    let of = |choices: &[&str; 3]| {
        let all = subjects.iter().zip(choices).flat_map(|(subject, choices)| records(subject, choices));
        run(Outcome::Mmlu(all.collect()))
    };
    compared(choices.iter().map(of).collect())
}

#[test]
fn answers_are_set_side_by_side() {
    let compared = mmlu(&[["AAAB", "AB", "ABC"], ["BBBA", "AB", "BBC"], ["AAAB", "AB", "ABC"]]);
    // What prints it escapes control characters.
    insta::assert_snapshot!(tables::render(&compared, 2, false).replace('\u{1b}', "ESC"));
}

#[test]
fn the_page_of_answers_is_well_formed_and_escapes_what_files_say() {
    let page = page::render(&mmlu(&[["AAAB", "AB", "ABC"], ["BBBA", "AB", "BBC"], ["AAAB", "AB", "ABC"]]), 10);
    let elements = elements(&page);
    let count = |name: &str| elements.iter().filter(|e| *e == name).count();
    // Accuracy, differences, flips of two runs; facts, figures, subjects, flips of two runs, of which one has none.
    assert_eq!((count("figure"), count("table"), count("h1"), count("script")), (4, 4, 1, 0));
    check_alone(&page);
    assert!(page.contains("virology, 2: &lt;/title&gt;"), "a mark has a title");
    assert!(page.contains("<title>all, right -&gt; wrong: -4 "), "both flips of run 2");
}

#[test]
fn likelihoods_have_their_own_page_and_the_difference_its_own_error() {
    let ppl = |nlls: [f64; 3]| run(Outcome::Perplexity(nlls.map(|nll| WindowSum { nll, tokens: 2 }).to_vec()));
    let compared = compared(vec![ppl([2.0, 4.0, 6.0]), ppl([2.5, 4.5, 6.5])]);
    let text = tables::render(&compared, 10, false);
    assert!(text.contains("0.250000 ± 0.000000"), "{text}");
    let page = page::render(&compared, 10);
    assert_eq!(elements(&page).iter().filter(|e| *e == "figure").count(), 2);
    check_alone(&page);
}

#[test]
fn a_million_subjects_and_numbers_without_end_are_a_page_too() {
    let of = |letter: &str| {
        let subject = |i: usize| records(&format!("subject {i}"), letter);
        run(Outcome::Mmlu((0..2000).flat_map(subject).collect()))
    };
    let page = page::render(&compared(vec![of("A"), of("B")]), 10);
    assert!(
        page.contains("1,800 subjects with smaller differences are left out") && page.len() < 400_000,
        "{}",
        page.len()
    );
    let endless = |nll: f64| run(Outcome::Perplexity(vec![WindowSum { nll, tokens: 1 }]));
    elements(&page::render(&compared(vec![endless(1e9), endless(-1e9)]), 10));
}

#[test]
fn everything_that_separates_runs_is_told_at_once() {
    let of = |data: &str, windows: usize| {
        let mut run = run(Outcome::Perplexity(vec![WindowSum { nll: 1.0, tokens: 2 }; windows]));
        if let Some(provenance) = &mut run.provenance {
            provenance.text = Some(saved::Scored {
                data: "t.txt".to_owned(),
                data_sha256: data.to_owned(),
                windows_sha256: format!("{data} {windows}"),
                windowing: longshore_eval::perplexity::Windowing::Whole { length: 2 + windows },
                limit: None,
            });
        }
        run
    };
    let paths = ["a.json", "b.json", "c.json"].map(PathBuf::from);
    let mmlu = run(Outcome::Mmlu(records("s", "A")));
    let error = Compared::of(&paths, vec![of("x", 3), of("y", 4), mmlu]).err().expect("they differ").to_string();
    for said in [
        "run 2 (`b.json`): data (SHA-256) y; the first has x",
        "windowing {\"whole\":{\"length\":6}}; the first has {\"whole\":{\"length\":5}}",
        "number of windows 4; the first has 3",
        "run 3 (`c.json`): task mmlu; the first has ppl",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
}
