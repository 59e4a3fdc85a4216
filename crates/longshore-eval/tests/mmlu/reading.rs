//! Every published form, and what is wrong in it.

use super::{fixture, golden, published};
use longshore_eval::mmlu::{self, Form, LETTERS, Mmlu};
use longshore_eval::{Error, Problems};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

fn problems(path: &Path) -> Problems {
    match mmlu::read(path).unwrap_err() {
        Error::Rows(problems) => problems,
        other => panic!("{other}"),
    }
}

fn shown(path: &Path) -> Vec<(u64, String)> {
    problems(path).first.into_iter().map(|p| (p.line, p.what)).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes the questions in Hendrycks' form.
fn write_csv(mmlu: &Mmlu, folder: &Path, header: bool) {
    for (split, questions) in [("dev", &mmlu.dev), ("test", &mmlu.test)] {
        let folder = folder.join(split);
        fs::create_dir_all(&folder).unwrap();
        for subject in questions.iter().map(|q| &q.subject).collect::<std::collections::BTreeSet<_>>() {
            let mut writer = csv::Writer::from_path(folder.join(format!("{subject}_{split}.csv"))).unwrap();
            if header {
                writer.write_record(["question", "choice0", "choice1", "choice2", "choice3", "answer"]).unwrap();
            }
            for q in questions.iter().filter(|q| &q.subject == subject) {
                let [a, b, c, d] = &q.choices;
                let number = q.answer.to_string();
                let key = if header { &number } else { LETTERS[usize::from(q.answer)] };
                writer.write_record([&q.question, a, b, c, d, key]).unwrap();
            }
            writer.flush().unwrap();
        }
    }
}

fn check_all_forms(from: &Mmlu) {
    for header in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        write_csv(from, folder.path(), header);
        let read = mmlu::read(folder.path()).unwrap();
        assert_eq!((&read.dev, &read.test, read.form), (&from.dev, &from.test, Form::Csv));
        assert_eq!(read.sha256(), from.sha256());
    }
}

#[test]
fn the_published_data_has_its_counts_and_its_hash_in_every_form() {
    let Some(mmlu) = published() else { return };
    assert_eq!((mmlu.test.len(), mmlu.dev.len(), mmlu.form), (14042, 285, Form::Jsonl));
    assert!(mmlu.unusual().is_empty());
    assert_eq!(mmlu.sha256(), golden("published")["sha256"]);
    check_all_forms(&mmlu);
}

#[test]
fn the_bundled_questions_are_sixty_in_six_subjects() {
    let mmlu = mmlu::bundled().unwrap();
    assert_eq!((mmlu.test.len(), mmlu.dev.len(), mmlu.form), (60, 30, Form::Bundled));
    assert_eq!(mmlu.sha256(), golden("bundled")["sha256"]);
    let unusual: Vec<String> = mmlu.unusual().iter().map(ToString::to_string).collect();
    assert_eq!(unusual[0], "60 test questions; the published MMLU has 14042");
    assert_eq!(unusual[2], "6 subjects; the published MMLU has 57");
    check_all_forms(&mmlu);
}

#[test]
fn parquet_is_read_from_one_folder_or_from_one_per_subject() {
    let bundled = mmlu::bundled().unwrap();
    let read = mmlu::read(&fixture("")).unwrap();
    assert_eq!((&read.dev, &read.test, read.form), (&bundled.dev, &bundled.test, Form::Parquet));
    let folder = tempfile::tempdir().unwrap();
    for subject in ["a", "b"] {
        fs::create_dir(folder.path().join(subject)).unwrap();
        let name = "test-00000-of-00001.parquet";
        fs::copy(fixture("all").join(name), folder.path().join(subject).join(name)).unwrap();
    }
    let read = mmlu::read(folder.path()).unwrap();
    assert_eq!((read.dev.len(), read.test.len()), (0, 120));
}

#[test]
fn wrong_rows_of_parquet_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("all")).unwrap();
    let name = "all/test-00000-of-00001.parquet";
    fs::copy(fixture("wrong/test-00000-of-00001.parquet"), folder.path().join(name)).unwrap();
    let expected = [
        (2, "expected an answer of 0 to 3, found 4"),
        (3, "expected 4 choices, found 3"),
        (4, "`question` is missing, null or not a string"),
    ];
    assert_eq!(shown(folder.path()), expected.map(|(line, what)| (line, what.to_owned())));
}

#[test]
fn one_string_that_parquet_repeats_is_counted_before_it_is_text() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("all")).unwrap();
    let name = "all/test-00000-of-00001.parquet";
    fs::copy(fixture("long/test-00000-of-00001.parquet"), folder.path().join(name)).unwrap();
    let error = mmlu::read(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("the data set holds more than 256 MiB of text"), "{error}");
}

#[test]
fn damaged_parquet_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("all")).unwrap();
    let path = folder.path().join("all/test-00000-of-00001.parquet");
    let good = fs::read(fixture("all/test-00000-of-00001.parquet")).unwrap();
    for len in (0..good.len()).step_by(97) {
        fs::write(&path, &good[..len]).unwrap();
        assert!(matches!(mmlu::read(folder.path()), Err(Error::Unreadable { .. })), "{len}");
    }
    // The first page's uncompressed size, below zero: seen before anything is decoded.
    let mut negative = good.clone();
    assert_eq!(negative[4..7], [0x15, 4, 0x15]);
    negative[7] |= 1;
    fs::write(&path, negative).unwrap();
    assert!(mmlu::read(folder.path()).unwrap_err().to_string().ends_with("\"question\" is not made of pages"));
    // The footer: whatever it then says, reading ends.
    for at in (good.len() - 1200..good.len()).step_by(13) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        fs::write(&path, &bad).unwrap();
        let _ = mmlu::read(folder.path());
    }
}

#[test]
fn wrong_lines_of_json_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mmlu_test.jsonl");
    let lines = [
        r#"{"question":"q","subject":"s","choices":["1","2","3","4"],"answer":0}"#,
        "",
        r#"{"question":" ","subject":"","choices":["1","","3"],"answer":-1}"#,
        r#"{"question":"q","subject":"s","choices":["1","2","3","4"]}"#,
        "no json",
        r#"{"question":"q","subject":"s","choices":["1","2","3","4"],"answer":"A"}"#,
    ];
    fs::write(&path, lines.join("\n")).unwrap();
    let what: Vec<(u64, String)> = shown(folder.path());
    assert_eq!(what.iter().map(|p| p.0).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(
        what[0].1,
        "the subject is empty; the question is empty; choice B is empty; expected 4 choices, found 3; \
         expected an answer of 0 to 3, found -1"
    );
    assert_eq!(what[1].1, "missing field `answer`");
    assert_eq!(what[3].1, "invalid type: string \"A\", expected i64");
    assert!(mmlu::read(&path).unwrap_err().to_string().contains("mmlu_test.jsonl:5: expected"));
}

#[test]
fn a_long_list_of_problems_is_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mmlu_test.jsonl.gz"), gzip("x\n".repeat(1000).as_bytes())).unwrap();
    let problems = problems(folder.path());
    assert_eq!((problems.first.len(), problems.count), (20, 1000));
    assert!(problems.to_string().ends_with("\n  and 980 more"));
}

#[test]
fn wrong_rows_of_csv_are_named_by_the_line_where_they_begin() {
    let folder = tempfile::tempdir().unwrap();
    let test = folder.path().join("test");
    fs::create_dir(&test).unwrap();
    fs::write(
        test.join("a_test.csv"),
        "\"two\nlines\",1,2,3,4,A\nq,1,2,3,4,E\nq,1,2,3,A\nq,1,2,3,4,1\n\"\",1,2,3,,B\n",
    )
    .unwrap();
    fs::write(
        test.join("b_test.csv"),
        "question,choice0,choice1,choice2,choice3,answer\nq,1,2,3,4,A\nq,1,2,3,4,4\nq\n",
    )
    .unwrap();
    let expected = [
        (3, "expected an answer of A to D, as the file has no header, found `E`"),
        (4, "expected 4 choices, found 3"),
        (5, "expected an answer of A to D, as the file has no header, found `1`"),
        (6, "the question is empty; choice D is empty"),
        (2, "expected an answer of 0 to 3, as the file has a header, found `A`"),
        (3, "expected an answer of 0 to 3, as the file has a header, found `4`"),
        (4, "expected 6 fields, found 1"),
    ];
    assert_eq!(shown(folder.path()), expected.map(|(line, what)| (line, what.to_owned())));
    assert!(problems(folder.path()).first[6].path.ends_with("test/b_test.csv"));
}

#[test]
fn subjects_are_in_the_order_of_their_names_not_of_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let test = folder.path().join("test");
    fs::create_dir(&test).unwrap();
    for subject in ["law", "law_and_order"] {
        fs::write(test.join(format!("{subject}_test.csv")), "q,1,2,3,4,A\n").unwrap();
    }
    let read = mmlu::read(folder.path()).unwrap();
    assert_eq!(read.test.iter().map(|q| q.subject.as_str()).collect::<Vec<_>>(), ["law", "law_and_order"]);
}

#[test]
fn a_small_file_of_much_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mmlu_test.jsonl.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..257 {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 4 << 20);
    let error = mmlu::read(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("the data set holds more than 256 MiB of text"), "{error}");
    let mut cut = gzip(b"{}");
    cut.truncate(cut.len() - 4);
    fs::write(&path, cut).unwrap();
    assert!(mmlu::read(folder.path()).unwrap_err().to_string().contains("gzip: "));
}

#[test]
fn a_folder_says_what_it_lacks_or_has_too_much_of() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| mmlu::read(path).unwrap_err().to_string();
    assert!(error(folder.path()).contains("expected mmlu_test.jsonl"));
    assert!(error(&folder.path().join("absent")).contains("opening"));
    let mut line = String::new();
    writeln!(line, r#"{{"question":"q","subject":"s","choices":["1","2","3","4"],"answer":0}}"#).unwrap();
    fs::write(folder.path().join("mmlu_test.jsonl"), line).unwrap();
    assert_eq!(mmlu::read(folder.path()).unwrap().test.len(), 1);
    fs::create_dir(folder.path().join("test")).unwrap();
    fs::write(folder.path().join("test/s_test.csv"), "q,1,2,3,4,A\n").unwrap();
    assert!(error(folder.path()).ends_with("holds several forms of MMLU: [Jsonl, Csv]"));
}
