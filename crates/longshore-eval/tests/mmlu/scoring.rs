//! Letters, accuracies, errors.

use super::{published, question};
use longshore_eval::mmlu::{
    self, CATEGORIES, Category, Given, Record, Row, Scores, category, choose, continuations, letter_ids,
};

fn records(counts: &[(&str, usize, usize)]) -> Vec<Record> {
    let mut records = Vec::new();
    for &(subject, correct, total) in counts {
        for index in 0..total {
            let asked = question(subject, "q", ["1", "2", "3", "4"], u8::from(index >= correct));
            records.push(Record::new(Row { question: &asked, index }, "hash".into(), [1.0, 0.0, -1.0, -2.0]).unwrap());
        }
    }
    records
}

fn close(a: Option<f64>, b: f64) {
    assert!((a.unwrap() - b).abs() < 1e-12, "{a:?} {b}");
}

#[test]
fn the_first_of_the_largest_is_chosen_and_ties_are_told() {
    let chosen = |logits| choose(logits).map(|c| (c.choice, c.tied)).unwrap();
    assert_eq!(chosen([0.0, 3.0, 1.0, 2.0]), (1, false));
    assert_eq!(chosen([0.0, 3.0, 1.0, 3.0]), (1, true));
    assert_eq!(chosen([-0.0, 0.0, -1.0, -1.0]), (0, true));
    assert_eq!(chosen([2.0, 1.0, 1.0, 1.0]), (0, false));
    assert_eq!(choose([0.0, 1.0, f32::NAN, 2.0]).unwrap_err().to_string(), "the logit of C is NaN");
    assert_eq!(choose([0.0, f32::NEG_INFINITY, 1.0, 2.0]).unwrap_err().to_string(), "the logit of B is -inf");
}

#[test]
fn the_last_token_of_a_letter_counts_and_must_be_its_own() {
    assert_eq!(letter_ids([&[29, 330], &[29, 365], &[334], &[29, 384]]).unwrap(), [330, 365, 334, 384]);
    let error = letter_ids([&[1], &[2], &[3, 2], &[4]]).unwrap_err().to_string();
    assert_eq!(error, "\" B\" and \" C\" both end in token 2: the score would mean nothing");
    assert_eq!(letter_ids([&[1], &[], &[3], &[4]]).unwrap_err().to_string(), "\" B\" has no token");
}

#[test]
fn a_continuation_is_what_the_context_lacks() {
    // One token each; a blank of its own before each; the context's last token changed; letters of different lengths.
    let of = |whole: [&[u32]; 4]| continuations(&[7, 8], whole).map_err(|e| e.to_string());
    assert_eq!(of([&[7, 8, 1], &[7, 8, 2], &[7, 8, 3], &[7, 8, 4]]), Ok((vec![], [1, 2, 3, 4])));
    assert_eq!(of([&[7, 8, 9, 1], &[7, 8, 9, 2], &[7, 8, 9, 3], &[7, 8, 9, 4]]), Ok((vec![9], [1, 2, 3, 4])));
    let error = of([&[7, 8, 1], &[7, 5, 2], &[7, 8, 3], &[7, 8, 4]]).unwrap_err();
    assert!(error.starts_with("the tokens of \"Answer: B\" do not begin with those of \"Answer:\""), "{error}");
    let error = of([&[7, 8, 1], &[7, 8, 2], &[7, 8, 9, 3], &[7, 8, 4]]).unwrap_err();
    assert!(error.starts_with("\" A\" and \" C\" differ in more than their last token"), "{error}");
    assert!(of([&[7, 8, 1], &[7, 8, 2], &[7, 8, 1], &[7, 8, 4]]).unwrap_err().contains("both end in token 1"));
    assert!(of([&[7, 8], &[7, 8, 2], &[7, 8, 1], &[7, 8, 4]]).unwrap_err().contains("has no token"));
}

#[test]
fn constant_answers_score_what_the_labels_say() {
    let Some(mmlu) = published() else { return };
    for (letter, expected) in [0.2295, 0.2465, 0.2551, 0.2689].into_iter().enumerate() {
        let mut logits = [0.0; 4];
        logits[letter] = 1.0;
        let rows = mmlu::select(&mmlu.test, &mmlu::Selection::default()).unwrap();
        let records: Vec<_> = rows.into_iter().map(|row| Record::new(row, String::new(), logits).unwrap()).collect();
        let scores = Scores::of(&records);
        assert_eq!(format!("{:.4}", scores.micro), format!("{expected:.4}"));
        assert_eq!((scores.subjects.len(), scores.categories.len(), scores.ties), (57, 4, 0));
        assert_eq!(scores.categories.iter().map(|c| c.score.total).collect::<Vec<_>>(), [3153, 4705, 3077, 3107]);
        assert!(scores.micro_error.unwrap() < 0.0038);
    }
}

#[test]
fn averages_and_errors_are_those_of_their_definitions() {
    let scores = Scores::of(&records(&[("anatomy", 3, 4), ("virology", 1, 6), ("own", 2, 2)]));
    assert_eq!((scores.all.correct, scores.all.total), (6, 12));
    assert_eq!(scores.micro, 0.5);
    // statistics.stdev([1] * 6 + [0] * 6) / sqrt(12)
    close(scores.micro_error, 0.150_755_672_288_882);
    close(Some(scores.macro_average), (0.75 + 1.0 / 6.0 + 1.0) / 3.0);
    // Of each subject stdev / sqrt(n): 0.25, 1/6, 0.
    let errors: Vec<_> = scores.subjects.iter().map(|s| (s.subject.as_str(), s.standard_error.unwrap())).collect();
    assert_eq!(errors[0], ("anatomy", 0.25));
    assert_eq!(errors[1], ("own", 0.0));
    close(Some(errors[2].1), 1.0 / 6.0);
    close(scores.macro_error, (0.0625f64 + 1.0 / 36.0).sqrt() / 3.0);
    // pooled_sample_stderr([0.25, 1/6, 0], [4, 6, 2]): sqrt((3 * 0.0625 * 4 + 5 / 36 * 6) / 9 / 12)
    close(scores.pooled_error, ((0.75f64 + 30.0 / 36.0) / 9.0 / 12.0).sqrt());
}

#[test]
fn one_question_has_no_error() {
    let scores = Scores::of(&records(&[("anatomy", 1, 1), ("virology", 1, 2)]));
    assert_eq!((scores.subjects[0].standard_error, scores.macro_error), (None, None));
    // Only virology's two count: sqrt(1 * 0.25 * 2 / 1 / 3).
    close(scores.pooled_error, (0.5f64 / 3.0).sqrt());
    assert_eq!(Scores::of(&records(&[("anatomy", 1, 1)])).pooled_error, None);
    assert_eq!(Scores::of(&[]).macro_error, None);
}

#[test]
fn categories_are_the_four_of_the_harness() {
    assert_eq!(CATEGORIES.map(|(_, subjects)| subjects.len()), [19, 13, 12, 13]);
    assert_eq!(CATEGORIES.map(|(category, _)| category), Category::ALL);
    assert_eq!(category("econometrics"), Some(Category::SocialSciences));
    assert_eq!(category("clinical_knowledge"), Some(Category::Other));
    assert_eq!(category("opposites"), None);
    let scores = Scores::of(&records(&[("anatomy", 3, 4), ("astronomy", 1, 4), ("own", 2, 2)]));
    let [stem] = &scores.categories[..] else { panic!("{:?}", scores.categories) };
    assert_eq!((stem.category.name(), stem.accuracy), ("stem", 0.5));
    close(stem.pooled_error, (1.5f64 / 6.0 / 8.0).sqrt());
}

#[test]
fn the_table_is_the_references() {
    let scores = Scores::of(&records(&[("virology", 1, 6), ("anatomy", 3, 4)]));
    // f"{subject:48} | {acc:.3f} | {correct:5}/{total:5}"
    let expected = "anatomy                                          | 0.750 |     3/    4\n\
                    virology                                         | 0.167 |     1/    6\n\
                    average                                          | 0.400 |     4/   10\n";
    assert_eq!(scores.reference_table(), expected);
}

#[test]
fn records_survive_a_file_and_must_not_contradict_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.jsonl");
    let mut written = records(&[("anatomy", 1, 2)]);
    written[0].given = Given::Logits([0.1, -1e-30, f32::MIN_POSITIVE, -3.402_823_5e38]);
    let lines: String = written.iter().map(|r| mmlu::write_record(r).unwrap()).collect();
    std::fs::write(&path, &lines).unwrap();
    assert_eq!(mmlu::read_records(&path).unwrap(), written);
    assert!(lines.ends_with(
        r#"{"subject":"anatomy","index":1,"prompt_hash":"hash","logits":[1.0,0.0,-1.0,-2.0],"choice":"A","answer":"B","correct":false}
"#
    ));

    let good = mmlu::write_record(&written[1]).unwrap();
    let bad = [
        good.replace("\"choice\":\"A\"", "\"choice\":\"C\""),
        good.replace("\"answer\":\"B\"", "\"answer\":\"E\""),
        good.replace("false", "true"),
        "{}\n".into(),
    ];
    std::fs::write(&path, good.clone() + &bad.concat()).unwrap();
    let error = mmlu::read_records(&path).unwrap_err().to_string();
    assert!(error.starts_with("4 malformed rows\n"), "{error}");
    for what in [":2: choice C is not", ":3: expected a letter", ":4: `correct` is true", ":5: missing field"] {
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn ties_are_counted() {
    let mut list = records(&[("anatomy", 1, 3)]);
    list[1].given = Given::Logits([1.0, 1.0, 0.0, 0.0]);
    list[2].given = Given::LogProbs([None, Some(-1.0), Some(-1.0), Some(-2.0)]);
    assert_eq!(Scores::of(&list).ties, 2);
}

#[test]
fn absent_letters_are_null_and_only_the_others_are_chosen_from() {
    let local = records(&[("anatomy", 1, 2)]);
    let asked = question("anatomy", "?", ["a", "b", "c", "d"], 3);
    let record = |index, log_probs: [Option<f64>; 4]| {
        Record::new(Row { question: &asked, index }, "hash".into(), Given::LogProbs(log_probs)).unwrap()
    };
    let some = record(1, [None, Some(-1.5), None, Some(-0.25)]);
    assert_eq!((some.choice, some.correct, some.given.absent()), (Some(3), true, 2));
    let none = record(2, [None; 4]);
    assert_eq!((none.choice, none.correct, none.given.absent()), (None, false, 4));
    assert_eq!(local[0].given.absent(), 0);

    let lines = [&some, &none, &local[0]].map(|r| mmlu::write_record(r).unwrap());
    assert!(
        lines[0].contains(r#""logprobs":[null,-1.5,null,-0.25],"choice":"D","answer":"D","correct":true"#),
        "{}",
        lines[0]
    );
    assert!(lines[1].contains(r#""logprobs":[null,null,null,null],"choice":null,"#), "{}", lines[1]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.jsonl");
    std::fs::write(&path, lines.concat()).unwrap();
    assert_eq!(mmlu::read_records(&path).unwrap(), [some, none, local[0].clone()]);

    let bad =
        [lines[0].replace("\"choice\":\"D\"", "\"choice\":null"), lines[1].replace("null,\"answer", "\"A\",\"answer")];
    std::fs::write(&path, bad.concat()).unwrap();
    let error = mmlu::read_records(&path).unwrap_err().to_string();
    for what in
        [":1: choice null is not that of the log-probabilities [null, -1.5, null, -0.25]", ":2: choice A is not"]
    {
        assert!(error.contains(what), "{error}");
    }
    assert!(
        Record::new(Row { question: &asked, index: 0 }, String::new(), Given::LogProbs([Some(f64::NAN); 4])).is_err()
    );
}
