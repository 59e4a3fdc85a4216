//! Which rows a fraction, patterns and a limit leave.

use super::{published, question};
use longshore_eval::mmlu::{Question, Selection, select};

fn set(counts: &[(&str, usize)]) -> Vec<Question> {
    let rows = |&(subject, count): &(&str, usize)| vec![question(subject, "q", ["1", "2", "3", "4"], 0); count];
    counts.iter().flat_map(rows).collect()
}

fn picked(test: &[Question], selection: &Selection) -> Vec<(String, usize)> {
    select(test, selection).unwrap().into_iter().map(|row| (row.question.subject.clone(), row.index)).collect()
}

fn fraction(fraction: f64) -> Selection {
    Selection { fraction, ..Selection::default() }
}

#[test]
fn fractions_of_the_published_data_leave_the_published_counts() {
    let Some(mmlu) = published() else { return };
    for (f, count) in [(1.0, 14042), (0.05, 728), (0.01, 168)] {
        assert_eq!(select(&mmlu.test, &fraction(f)).unwrap().len(), count, "{f}");
    }
}

#[test]
fn the_floating_comparison_decides() {
    // 0.07 * 100 is 7.000000000000001 in floating point: one row more than the fraction says.
    assert_eq!(picked(&set(&[("a", 100)]), &fraction(0.07)).len(), 8);
    assert_eq!(picked(&set(&[("a", 100)]), &fraction(0.05)).len(), 5);
    assert_eq!(picked(&set(&[("a", 3), ("b", 1)]), &fraction(0.01)), [("a".into(), 0), ("b".into(), 0)]);
}

#[test]
fn indices_count_within_a_subject_even_if_its_rows_are_apart() {
    let test = [set(&[("b", 2)]), set(&[("a", 1)]), set(&[("b", 2)])].concat();
    let all = picked(&test, &fraction(1.0));
    assert_eq!(all, [("b", 0), ("b", 1), ("a", 0), ("b", 2), ("b", 3)].map(|(s, i)| (s.to_owned(), i)));
    assert_eq!(picked(&test, &fraction(0.75)).len(), 4);
}

#[test]
fn patterns_choose_subjects_and_the_limit_comes_last() {
    let test = set(&[("high_school_biology", 4), ("high_school_physics", 4), ("law", 4)]);
    let pick = |subjects: &[&str], fraction, limit| {
        let subjects = subjects.iter().map(|&s| s.to_owned()).collect();
        picked(&test, &Selection { fraction, subjects, limit }).into_iter().map(|p| p.0).collect::<Vec<_>>()
    };
    assert_eq!(pick(&["high_*"], 1.0, None).len(), 8);
    assert_eq!(pick(&["la?", "*bio*"], 0.5, Some(3)), ["high_school_biology", "high_school_biology", "law"]);
    assert_eq!(pick(&[], 0.5, Some(100)).len(), 6);
    let subjects = vec!["law".into(), "lawyers".into(), "x*".into()];
    let error = select(&test, &Selection { subjects, ..Selection::default() }).unwrap_err();
    assert_eq!(error.to_string(), "no subject matches lawyers, x*");
}

#[test]
fn what_leaves_nothing_is_refused() {
    let test = set(&[("a", 3)]);
    for f in [0.0, -1.0, 1.01, f64::NAN] {
        assert!(select(&test, &fraction(f)).is_err(), "{f}");
    }
    assert!(select(&test, &Selection { limit: Some(0), ..Selection::default() }).is_err());
    assert!(select(&[], &Selection::default()).is_err());
}
