//! Two lists of answers. Reference p-values are those of `scipy.stats.binomtest`.

use longshore_eval::compare::{
    Part, compare, compare_divergences, compare_likelihoods, divergences, likelihood, mcnemar, mismatches,
};
use longshore_eval::mmlu::{Given, Record};
use longshore_eval::saved::{Asked, Checkpoint, Outcome, Provenance, Run, TokenizerFile, Weights};
use longshore_eval::{divergence, perplexity};

/// A record for each right answer and choice.
fn records(answers: &[(u8, u8)]) -> Vec<Record> {
    let record = |(index, &(answer, choice)): (usize, &(u8, u8))| {
        let mut logits = [0.0; 4];
        logits[usize::from(choice)] = 1.0;
        let (subject, prompt_hash) = ("s".to_owned(), "hash".to_owned());
        let given = Given::Logits(logits);
        Record { subject, index, prompt_hash, given, choice: Some(choice), answer, correct: choice == answer }
    };
    answers.iter().enumerate().map(record).collect()
}

#[test]
fn mcnemars_test_is_the_exact_binomial_one() {
    let expected = [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 1, 0.625),
        (10, 2, 0.038_574_218_75),
        (12, 12, 1.0),
        (60, 30, 0.002_060_265_680_963_074_5),
        (700, 800, 0.010_559_255_466_711_506),
        (9000, 9300, 0.027_083_605_910_100_76),
    ];
    for (one, other, p) in expected {
        let found = mcnemar(one, other);
        assert!((found - p).abs() <= 1e-9 * p, "{one} {other}: {found} {p}");
        assert_eq!(mcnemar(other, one), found);
    }
}

#[test]
fn flips_both_ways_are_listed_and_counted() {
    let first = records(&[(0, 0), (1, 1), (2, 0), (3, 1), (0, 0)]);
    let mut second = records(&[(0, 0), (1, 2), (2, 2), (3, 0), (0, 3)]);
    second.reverse();
    second[0].prompt_hash = "other".into();
    let found = compare(&first, &second).unwrap();
    let flips: Vec<_> = found.flips.iter().map(|f| (f.index, f.answer, f.first, f.second)).collect();
    assert_eq!(flips, [(1, 1, Some(1), Some(2)), (2, 2, Some(0), Some(2)), (4, 0, Some(0), Some(3))]);
    assert_eq!((found.only_first, found.only_second, found.other_choices, found.other_prompts), (2, 1, 4, 1));
    assert_eq!((found.first, found.second, found.questions), (0.6, 0.4, 5));
    assert!((found.difference + 0.2).abs() < 1e-15);
    assert_eq!(found.p_value, 1.0);
}

#[test]
fn the_difference_has_the_error_of_its_pairs() {
    let first: Vec<(u8, u8)> = (0..20).map(|i| (0, u8::from(i < 2))).collect();
    let second: Vec<(u8, u8)> = (0..20).map(|i| (0, u8::from((2..7).contains(&i)))).collect();
    let found = compare(&records(&first), &records(&second)).unwrap();
    assert!((found.difference + 0.15).abs() < 1e-15);
    assert!((found.difference_error.unwrap() - 0.131_289_154_560_699_17).abs() < 1e-15);
    assert!((found.p_value - 0.453_125).abs() < 1e-15);
    let equal = compare(&records(&first), &records(&first)).unwrap();
    assert_eq!((equal.difference, equal.difference_error, equal.p_value), (0.0, Some(0.0), 1.0));
}

#[test]
fn lists_of_different_questions_are_refused() {
    let error = |a: &[Record], b: &[Record]| compare(a, b).unwrap_err().to_string();
    let all = records(&[(0, 0); 8]);
    let text = error(&all, &all[..1]);
    assert!(text.ends_with("s 5 is only in the first list and 2 more"), "{text}");
    assert!(error(&all[1..], &all).ends_with(": s 0 is only in the second list"));
    let mut other = all.clone();
    other[3].answer = 2;
    assert!(error(&all, &other).ends_with(": s 3 has different right answers"));
    let twice = [all.clone(), all.clone()].concat();
    assert_eq!(error(&twice, &all), "s 0 is twice in one list");
    assert_eq!(error(&all, &twice), "s 0 is twice in one list");
    assert_eq!(error(&[], &[]), "no questions to compare");
}

#[test]
fn log_probabilities_are_compared_with_logits() {
    let local = records(&[(0, 0), (1, 1), (2, 2)]);
    let mut served = local.clone();
    for record in &mut served {
        record.given = Given::LogProbs([Some(-3.0), None, Some(-2.0), None]);
        record.choice = Some(2);
        record.correct = record.answer == 2;
    }
    (served[1].given, served[1].choice) = (Given::LogProbs([None; 4]), None);
    let found = compare(&local, &served).unwrap();
    let flips: Vec<_> = found.flips.iter().map(|f| (f.index, f.first, f.second)).collect();
    assert_eq!(flips, [(0, Some(0), Some(2)), (1, Some(1), None)]);
    assert_eq!((found.only_first, found.only_second, found.other_choices), (2, 0, 2));
}

#[test]
fn parts_add_up_and_have_their_own_errors() {
    let named = |subject: &str, answers: &[(u8, u8)]| {
        let rename = |mut record: Record| {
            record.subject = subject.into();
            record
        };
        records(answers).into_iter().map(rename).collect::<Vec<_>>()
    };
    let lists = [[(0, 0), (0, 0), (0, 1)], [(0, 1), (0, 0), (0, 0)]];
    let list = |i: usize| {
        [named("virology", &lists[i]), named("own", &lists[1 - i]), named("anatomy", &[(0, 0), (1, 1)])].concat()
    };
    let found = compare(&list(0), &list(1)).unwrap();
    let names = |parts: &[Part]| parts.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found.subjects), ["anatomy", "own", "virology"]);
    // Subjects that MMLU does not have are in no category.
    assert_eq!(names(&found.categories), ["stem", "other"]);
    let part = &found.subjects[2];
    assert_eq!((part.questions, part.only_first, part.only_second, part.difference), (3, 1, 1, 0.0));
    // numpy.std([-1, 0, 1], ddof=1) / sqrt(3)
    assert!((part.difference_error.unwrap() - 0.577_350_269_189_625_8).abs() < 1e-15);
    assert_eq!((found.only_first, found.only_second, found.questions), (2, 2, 8));
    assert_eq!(found.subjects.iter().map(|p| p.questions).sum::<usize>(), 8);
}

#[test]
fn a_difference_by_window_is_more_certain_than_its_parts() {
    let ppl = |nlls: [f64; 4]| nlls.map(|nll| perplexity::WindowSum { nll, tokens: 10 });
    let (a, b) = (ppl([10.0, 30.0, 20.0, 50.0]), ppl([11.0, 31.0, 21.0, 52.0]));
    assert_eq!(likelihood(&a).mean, 2.75);
    let difference = compare_likelihoods(&a, &b);
    assert!((difference.mean - 0.125).abs() < 1e-15);
    // numpy.std([.1, .1, .1, .2], ddof=1) / 2
    assert!((difference.error.unwrap() - 0.025).abs() < 1e-15);
    assert!(likelihood(&a).error.unwrap() > 0.8);
    let kl = |scale: f64| {
        let window = |sum: f64| divergence::WindowSum {
            positions: 2,
            kl: sum * scale,
            reverse_kl: sum,
            same_top: 1.0,
            nll_difference: -sum * scale,
        };
        [window(1.0), window(3.0)]
    };
    assert_eq!(divergences(&kl(1.0)).map(|m| m.mean), [1.0, 1.0, 0.5, -1.0]);
    assert_eq!(compare_divergences(&kl(1.0), &kl(3.0)).map(|m| m.mean), [2.0, 0.0, 0.0, -2.0]);
}

fn asked(style: &str) -> Run {
    let questions = Asked {
        data: "mmlu".into(),
        data_sha256: "d".into(),
        style: style.into(),
        few_shots: 0,
        fraction: 1.0,
        subjects: Vec::new(),
        limit: None,
        ties: "first".into(),
    };
    let tokenizer = TokenizerFile { sha256: "t".into(), begin_of_text: Some(1) };
    let provenance = Provenance { tokenizer: Some(tokenizer), questions: Some(questions), ..Provenance::default() };
    Run { provenance: Some(provenance), outcome: Outcome::Mmlu(records(&[(0, 0)])) }
}

#[test]
fn prompts_that_differ_are_told_and_compared() {
    let (first, mut second) = (asked("lm-eval"), asked("modelopt"));
    assert_eq!(mismatches(&first, &first), []);
    let provenance = second.provenance.as_mut().unwrap();
    provenance.tokenizer.as_mut().unwrap().begin_of_text = None;
    provenance.questions.as_mut().unwrap().limit = Some(5);
    let found: Vec<_> = mismatches(&first, &second).into_iter().map(|m| (m.what, m.first, m.second, m.fatal)).collect();
    let row = |what, first: &str, second: &str| (what, first.to_owned(), second.to_owned(), false);
    assert_eq!(
        found,
        [row("token put first", "1", "none"), row("style", "lm-eval", "modelopt"), row("limit", "none", "5")]
    );
    second.provenance = None;
    assert_eq!(mismatches(&first, &second), [], "what a run does not say is not known to differ");
}

#[test]
fn other_windows_and_other_references_are_not_compared() {
    let ppl = |tokens: &[usize]| Run {
        provenance: None,
        outcome: Outcome::Perplexity(tokens.iter().map(|&tokens| perplexity::WindowSum { nll: 1.0, tokens }).collect()),
    };
    let fatal = |a: &Run, b: &Run| {
        let found = mismatches(a, b);
        assert!(found.iter().all(|m| m.fatal), "{found:?}");
        found.into_iter().map(|m| m.what).collect::<Vec<_>>()
    };
    assert_eq!(fatal(&ppl(&[2, 3]), &ppl(&[2, 3])), [""; 0]);
    assert_eq!(fatal(&ppl(&[2, 3]), &ppl(&[2, 3, 1])), ["number of windows", "tokens scored"]);
    assert_eq!(fatal(&ppl(&[2, 3]), &ppl(&[3, 2])), ["windows"]);
    assert_eq!(fatal(&ppl(&[2]), &asked("lm-eval")), ["task"]);
    let kl = |hash: &str| {
        let weights = Some(Weights { sha256: hash.into(), from: "data".into() });
        let checkpoints = vec![Checkpoint { weights, ..Checkpoint::default() }];
        let provenance = Some(Provenance { checkpoints, ..Provenance::default() });
        Run { provenance, outcome: Outcome::Divergence(Vec::new(), None) }
    };
    assert_eq!(fatal(&kl("a"), &kl("a")), [""; 0]);
    assert_eq!(fatal(&kl("a"), &kl("b")), ["reference's weights (SHA-256)"]);
}
