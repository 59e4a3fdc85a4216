//! Texts and token ids.

use flate2::write::GzEncoder;
use longshore_eval::text::{self, Text};
use std::io::Write;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> longshore_eval::Result<Text> {
    text::read(path).map(|file| file.text)
}

fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}

#[test]
fn texts_and_ids_are_read_plain_and_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let text = Text::Plain("Müller says\n\n hello".into());
    assert_eq!(read(&file(&dir, "a.txt", "Müller says\n\n hello".as_bytes())).unwrap(), text);
    assert_eq!(read(&file(&dir, "a.txt.gz", &gzip("Müller says\n\n hello".as_bytes()))).unwrap(), text);
    let lines = b"{\"input_ids\": [1, 2]}\n\n{\"input_ids\": [3, 4, 5], \"more\": 1}\n";
    let ids = Text::Ids(vec![vec![1, 2], vec![3, 4, 5]]);
    assert_eq!(read(&file(&dir, "a.jsonl", lines)).unwrap(), ids);
    assert_eq!(read(&file(&dir, "a.jsonl.gz", &gzip(lines))).unwrap(), ids);
    // printf 'abc' | sha256sum
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (name, bytes) in [("h.txt", b"abc".to_vec()), ("h.txt.gz", gzip(b"abc"))] {
        assert_eq!(text::read(&file(&dir, name, &bytes)).unwrap().sha256, abc, "{name}");
    }
}

#[test]
fn what_cannot_be_scored_is_refused_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let said = |name: &str, bytes: &[u8]| read(&file(&dir, name, bytes)).unwrap_err().to_string();
    let lines = said(
        "b.jsonl",
        b"{\"input_ids\": [1]}\n{\"text\": \"a\"}\n{\"input_ids\": [1, 2]}\n[\n{\"input_ids\": [-1, 2]}",
    );
    for part in [
        "4 malformed rows",
        "b.jsonl:1: 1 token ids",
        "b.jsonl:2: missing field `input_ids`",
        "b.jsonl:4: ",
        "b.jsonl:5: ",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    assert!(said("b.txt", b"ab\xff").contains("not UTF-8 at byte 2"));
    assert!(said("c.txt", b" \n").contains("there is no text"));
    assert!(said("c.jsonl", b"\n").contains("there are no token ids"));
    assert!(said("d.txt", b"\x1f\x8bxx").contains("gzip"));
}
