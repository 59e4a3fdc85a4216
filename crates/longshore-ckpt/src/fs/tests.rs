//! Tests of reading, writing, publishing and staging.

use super::*;
use rustix::fs::{CWD, FileType};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// The path and kind of an [`Error::Io`].
fn io_of(error: Error) -> (PathBuf, io::ErrorKind) {
    match error {
        Error::Io { path, source, .. } => (path, source.kind()),
        other => panic!("expected an I/O error, found {other:?}"),
    }
}

#[test]
fn read_small_names_its_limit() {
    let dir = temp();
    let path = dir.path().join("f");
    write(&path, "12345");
    assert_eq!(read_small(&path, 5).unwrap(), b"12345");
    assert_eq!(read_small(&path, u64::MAX).unwrap(), b"12345");
    match read_small(&path, 4).unwrap_err() {
        Error::Malformed { what, .. } => assert_eq!(what, "expected at most 4 bytes, found 5"),
        other => panic!("{other:?}"),
    }
    assert_eq!(io_of(read_small(&dir.path().join("none"), 4).unwrap_err()).1, io::ErrorKind::NotFound);
}

#[test]
fn a_read_past_the_end_is_an_error() {
    let dir = temp();
    let path = dir.path().join("f");
    write(&path, "12345");
    let file = ReadFile::open(&path).unwrap();
    file.advise_sequential();
    file.drop_cache(0, 5);
    let mut two = [0; 2];
    file.read_exact_at(3, &mut two).unwrap();
    assert_eq!((&two, file.len(), file.path()), (b"45", 5, path.as_path()));
    for offset in [4, 5, 1 << 40, i64::MAX as u64, u64::MAX] {
        assert_eq!(io_of(file.read_exact_at(offset, &mut two).unwrap_err()).1, io::ErrorKind::UnexpectedEof);
    }
    std::fs::write(&path, "12").unwrap();
    let error = file.read_exact_at(3, &mut two).unwrap_err();
    assert_eq!(io_of(error).1, io::ErrorKind::UnexpectedEof, "truncated since");
}

#[test]
fn only_regular_files_are_opened() {
    let dir = temp();
    let (pipe, link) = (dir.path().join("pipe"), dir.path().join("link"));
    fifo(&pipe);
    symlink(&pipe, &link).unwrap();
    for path in [pipe.as_path(), &link, dir.path(), Path::new("/dev/null")] {
        assert_eq!(io_of(ReadFile::open(path).unwrap_err()).0, path);
        assert!(read_small(path, 10).is_err());
        assert!(file_len(path).is_err());
    }
    write(&dir.path().join("f"), "x");
    let good = dir.path().join("good");
    symlink("f", &good).unwrap();
    assert_eq!(ReadFile::open(&good).unwrap().len(), 1);
    assert_eq!(file_len(&good).unwrap(), 1);
}

#[test]
fn the_identity_changes_with_the_file() {
    let dir = temp();
    let path = dir.path().join("f");
    write(&path, "one");
    let file = ReadFile::open(&path).unwrap();
    assert_eq!(file.identity(), Identity::of(&path).unwrap());
    let text = serde_json::to_string(&file.identity()).unwrap();
    assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), file.identity());
    assert_eq!(serde_json::from_value::<Identity>(json!(file.identity())).unwrap(), file.identity());
    write_durable(&path, b"two").unwrap();
    assert_ne!(file.identity(), Identity::of(&path).unwrap(), "same length, another inode");
}

#[test]
fn names_are_listed_in_order() {
    let dir = temp();
    for name in ["b", "a", "C"] {
        write(&dir.path().join(name), "");
    }
    assert_eq!(list(dir.path()).unwrap(), ["C", "a", "b"]);
    assert!(list(&dir.path().join("a")).is_err());
}

#[test]
fn free_space_is_that_of_the_nearest_ancestor() {
    let dir = temp();
    write(&dir.path().join("f"), "");
    assert!(free_space(&dir.path().join("x/y/z")).unwrap() > 0);
    assert!(free_space(&dir.path().join("f/y")).unwrap() > 0);
    assert!(free_space(Path::new("no/such/relative/path")).unwrap() > 0);
}

#[test]
fn a_written_file_holds_what_was_written() {
    let dir = temp();
    let path = dir.path().join("f");
    let block: Vec<u8> = (0..=255).cycle().take((5 << 20) + 7).collect();
    let mut file = SeqWriter::create(&path).unwrap();
    file.preallocate(100 << 20).unwrap();
    for _ in 0..8 {
        file.write(&block).unwrap();
    }
    assert_eq!(file.position(), 8 * block.len() as u64);
    file.finish().unwrap();
    assert!(std::fs::read(&path).unwrap() == block.repeat(8), "what was reserved and not written is cut off");
}

#[test]
fn space_that_is_not_there_is_an_error() {
    let dir = temp();
    let mut file = SeqWriter::create(&dir.path().join("f")).unwrap();
    // A filesystem without fallocate says nothing.
    if let Err(e) = file.preallocate(1 << 62) {
        assert_eq!(io_of(e).0, dir.path().join("f"));
    }
}

#[test]
fn a_writer_never_writes_through_a_link() {
    let dir = temp();
    let (target, soft, hard) = (dir.path().join("target"), dir.path().join("soft"), dir.path().join("hard"));
    write(&target, "precious");
    symlink(&target, &soft).unwrap();
    std::fs::hard_link(&target, &hard).unwrap();
    let pipe = dir.path().join("pipe");
    fifo(&pipe);
    for path in [&soft, &hard, &pipe] {
        let mut file = SeqWriter::create(path).unwrap();
        file.write(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(read(path), "new");
    }
    assert_eq!(read(&target), "precious");
    assert_eq!(io_of(SeqWriter::create(dir.path()).unwrap_err()).0, dir.path());
}

#[test]
fn write_durable_replaces_and_leaves_no_trace() {
    let dir = temp();
    let path = dir.path().join("f");
    write(&dir.path().join("f.tmp"), "left by a crash");
    write_durable(&path, b"1").unwrap();
    write_durable(&path, b"2").unwrap();
    copy_small(&path, &dir.path().join("g"), 1).unwrap();
    assert_eq!(list(dir.path()).unwrap(), ["f", "g"]);
    assert_eq!(read(&dir.path().join("g")), "2");
    assert!(copy_small(&path, &dir.path().join("h"), 0).is_err());
}

#[test]
fn write_output_replaces_files_and_writes_into_pipes() {
    let dir = temp();
    let (file, pipe) = (dir.path().join("f"), dir.path().join("pipe"));
    write(&file, "old");
    write_output(&file, b"new").unwrap();
    assert_eq!(read(&file), "new");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || read(&pipe)
    });
    write_output(&pipe, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), "through");
    assert_eq!(list(dir.path()).unwrap(), ["f", "pipe"]);
}

#[test]
fn folders_are_created_with_their_parents_and_removed_without_following() {
    let dir = temp();
    let deep = dir.path().join("a/b/c");
    create_dir(&deep).unwrap();
    create_dir(&deep).unwrap();
    write(&dir.path().join("outside"), "precious");
    symlink(dir.path(), deep.join("up")).unwrap();
    let link = dir.path().join("link");
    symlink(dir.path().join("a"), &link).unwrap();
    remove_all(&link).unwrap();
    assert!(is_dir(&deep));
    remove_all(&dir.path().join("a")).unwrap();
    remove_all(&dir.path().join("a")).unwrap();
    assert_eq!(list(dir.path()).unwrap(), ["outside"]);
    assert_eq!(io_of(create_dir(&dir.path().join("outside/x")).unwrap_err()).0, dir.path().join("outside/x"));
    assert!(create_dir(&dir.path().join("outside")).is_err());
}

#[test]
fn publish_new_takes_an_absent_or_empty_place_only() {
    let dir = temp();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    write(&from.join("f"), "1");
    publish_new(&from, &to).unwrap();
    assert_eq!(read(&to.join("f")), "1");

    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    publish_new(&to, &empty).unwrap();
    assert_eq!(read(&empty.join("f")), "1");
    assert!(!exists(&to));

    write(&to.join("mine"), "");
    assert_eq!(io_of(publish_new(&empty, &to).unwrap_err()), (to.clone(), io::ErrorKind::DirectoryNotEmpty));
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    write(&file, "");
    std::fs::create_dir(dir.path().join("hollow")).unwrap();
    symlink("hollow", &link).unwrap();
    for place in [&file, &link] {
        assert_eq!(io_of(publish_new(&empty, place).unwrap_err()), (place.clone(), io::ErrorKind::NotADirectory));
    }
    assert_eq!(read(&empty.join("f")), "1");
}

#[test]
fn publish_over_swaps_and_says_where_the_old_folder_is() {
    type Publish = fn(&Path, &Path) -> Result<PathBuf>;
    for (publish, slash) in [(publish_over as Publish, ""), (publish::replace, ""), (publish::replace, "/")] {
        let dir = temp();
        let (from, to) = (dir.path().join("from"), dir.path().join(format!("to{slash}")));
        write(&from.join("f"), "new");
        write(&to.join("f"), "old");
        let old = publish(&from, &to).unwrap();
        assert_eq!((read(&to.join("f")), read(&old.join("f"))), ("new".to_owned(), "old".to_owned()));
        remove_all(&old).unwrap();
        assert_eq!(list(dir.path()).unwrap(), ["to"]);
    }
}

#[test]
fn a_failed_replacement_puts_the_old_folder_back() {
    let dir = temp();
    let to = dir.path().join("to");
    write(&to.join("f"), "old");
    assert!(publish::replace(&dir.path().join("none"), &to).is_err());
    assert!(publish_over(&dir.path().join("none"), &to).is_err());
    assert_eq!(read(&to.join("f")), "old");
    assert_eq!(list(dir.path()).unwrap(), ["to"]);
}

#[test]
fn a_staged_run_goes_from_first_file_to_publication() {
    let dir = temp();
    let dst = dir.path().join("new/parent/out");
    let staging = Staging::open(&dst, "f1").unwrap();
    assert_eq!(staging.path(), dir.path().join("new/parent/out.partial-f1"));
    for name in ["a.bin", "release/b.bin"] {
        let mut file = staging.create_file(name).unwrap();
        file.write(b"data").unwrap();
        file.finish().unwrap();
        assert!(exists(&staging.temp_path(name)) && !exists(&staging.final_path(name)));
        staging.commit_file(name).unwrap();
        assert!(!exists(&staging.temp_path(name)) && exists(&staging.final_path(name)));
    }
    publish_new(&staging.files(), &dst).unwrap();
    staging.discard().unwrap();
    assert_eq!(list(dst.parent().unwrap()).unwrap(), ["out"]);
    assert_eq!(read(&dst.join("release/b.bin")), "data");
}

#[test]
fn names_that_leave_the_staging_folder_are_refused() {
    let dir = temp();
    let staging = Staging::open(&dir.path().join("out"), "f1").unwrap();
    for name in ["", "..", "../x", "/etc/x", "a/../../x", "./x"] {
        assert!(staging.create_file(name).is_err(), "{name}");
        assert!(staging.commit_file(name).is_err(), "{name}");
    }
    symlink(dir.path(), staging.files().join("sub")).unwrap();
    assert!(staging.create_file("sub/x").is_err(), "a folder that is a link");
    for fingerprint in ["", "a/b", "..", "a.b"] {
        assert!(Staging::open(&dir.path().join("out"), fingerprint).is_err(), "{fingerprint}");
    }
    assert!(Staging::open(Path::new("/"), "f1").is_err());
    assert!(Staging::open(&dir.path().join(".."), "f1").is_err());
}

#[test]
fn a_second_run_is_refused_until_the_first_ends() {
    let dir = temp();
    let dst = dir.path().join("out");
    let first = Staging::open(&dst, "f1").unwrap();
    let (path, kind) = io_of(Staging::open(&dst, "f1").unwrap_err());
    assert_eq!((path, kind), (first.path().join("lock"), io::ErrorKind::WouldBlock));
    let message = Staging::open(&dst, "f1").unwrap_err().to_string();
    assert!(message.contains("another run holds"), "{message}");
    Staging::open(&dst, "f2").unwrap();
    drop(first);
    Staging::open(&dst, "f1").unwrap().discard().unwrap();
    Staging::open(&dst, "f1").unwrap();
}

#[test]
fn one_of_many_runs_at_once_gets_the_folder() {
    let dir = temp();
    let dst = dir.path().join("out");
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    match Staging::open(&dst, "f1") {
                        Ok(staging) => {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            staging.record(&json!(1)).unwrap();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            staging.discard().unwrap();
                        }
                        Err(e) => assert!(matches!(e, Error::Io { .. }), "{e}"),
                    }
                }
            });
        }
    });
    assert_eq!(most.into_inner(), 1);
}

#[test]
fn planted_links_are_refused() {
    let dir = temp();
    let (dst, elsewhere) = (dir.path().join("out"), dir.path().join("elsewhere"));
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, dir.path().join("out.partial-f1")).unwrap();
    assert_eq!(io_of(Staging::open(&dst, "f1").unwrap_err()).0, dir.path().join("out.partial-f1"));
    for inner in ["lock", "journal", "files"] {
        let staging = dir.path().join("out.partial-f2");
        std::fs::create_dir(&staging).unwrap();
        symlink(elsewhere.join("x"), staging.join(inner)).unwrap();
        assert_eq!(io_of(Staging::open(&dst, "f2").unwrap_err()).0, staging.join(inner));
        std::fs::remove_file(staging.join(inner)).unwrap();
        fifo(&staging.join(inner));
        assert!(Staging::open(&dst, "f2").is_err());
        remove_all(&staging).unwrap();
    }
    assert!(list(&elsewhere).unwrap().is_empty());
}

#[test]
fn a_journal_torn_anywhere_keeps_its_whole_lines() {
    let dir = temp();
    let dst = dir.path().join("out");
    let staging = Staging::open(&dst, "f1").unwrap();
    let entries: Vec<Value> = (0..3).map(|i| json!({ "file": format!("part {i}\n"), "crc": i })).collect();
    for entry in &entries {
        staging.record(entry).unwrap();
    }
    assert_eq!(staging.journal_entries(), Vec::<Value>::new(), "of earlier runs only");
    drop(staging);
    let path = dir.path().join("out.partial-f1/journal");
    let whole = std::fs::read(&path).unwrap();
    for len in 0..=whole.len() {
        for tail in [&b""[..], &[0; 9]] {
            std::fs::write(&path, [&whole[..len], tail].concat()).unwrap();
            let staging = Staging::open(&dst, "f1").unwrap();
            let lines = whole[..len].split(|&b| b == b'\n').count() - 1;
            assert_eq!(staging.journal_entries(), entries[..lines], "{len}");
            staging.record(&json!("next")).unwrap();
            drop(staging);
            let again = Staging::open(&dst, "f1").unwrap().journal_entries();
            assert_eq!(again.last(), Some(&json!("next")));
            assert_eq!(again.len(), lines + 1);
        }
    }
}

#[test]
fn a_journal_broken_in_the_middle_is_malformed() {
    let dir = temp();
    write(&dir.path().join("out.partial-f1/journal"), "1\nx\n2\n");
    match Staging::open(&dir.path().join("out"), "f1").unwrap_err() {
        Error::Malformed { offset, .. } => assert_eq!(offset, 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn threads_record_whole_lines() {
    let dir = temp();
    let dst = dir.path().join("out");
    let staging = Staging::open(&dst, "f1").unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let staging = &staging;
            scope.spawn(move || (0..10).for_each(|i| staging.record(&json!([t, i])).unwrap()));
        }
    });
    drop(staging);
    let mut entries = Staging::open(&dst, "f1").unwrap().journal_entries();
    entries.sort_by_key(ToString::to_string);
    let want: Vec<Value> = (0..4).flat_map(|t| (0..10).map(move |i| json!([t, i]))).collect();
    assert_eq!(entries, want);
}

#[test]
fn leftovers_are_replaced_and_other_stagings_reported() {
    let dir = temp();
    let dst = dir.path().join("out");
    write(&dir.path().join("out.partial-f1/files/a.tmp"), "a long leftover of a crash");
    write(&dir.path().join("other.partial-f1/x"), "");
    let staging = Staging::open(&dst, "f1").unwrap();
    let mut file = staging.create_file("a").unwrap();
    file.write(b"short").unwrap();
    file.finish().unwrap();
    staging.commit_file("a").unwrap();
    assert_eq!(read(&staging.final_path("a")), "short");
    Staging::open(&dst, "e0").unwrap();
    let names = ["out.partial-e0", "out.partial-f1"].map(|name| dir.path().join(name));
    assert_eq!(stale_stagings(&dst), names);
    assert_eq!(stale_stagings(&dir.path().join("none/out")), Vec::<PathBuf>::new());
}

#[test]
fn errors_name_the_destinations_parent() {
    let dir = temp();
    write(&dir.path().join("file"), "");
    let error = Staging::open(&dir.path().join("file/out"), "f1").unwrap_err();
    assert_eq!(io_of(error).0, dir.path().join("file"));

    let staging = Staging::open(&dir.path().join("gone/out"), "f1").unwrap();
    remove_all(&dir.path().join("gone")).unwrap();
    assert_eq!(io_of(staging.create_file("a").unwrap_err()).0, staging.temp_path("a"));
    assert_eq!(io_of(publish_new(&staging.files(), &dir.path().join("gone/out")).unwrap_err()).0, staging.files());
}
