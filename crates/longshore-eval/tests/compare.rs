//! Two lists of answers. Reference p-values are those of `scipy.stats.binomtest`.

use longshore_eval::compare::{compare, mcnemar};
use longshore_eval::mmlu::{Given, Record};

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
