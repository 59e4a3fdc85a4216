//! Folders that lie: trackers, missing and irregular files, links.

use crate::corpus::{Corpus, fifo, link, sparse};
use std::fs;

pub(crate) fn make(corpus: &mut Corpus) {
    let mut tracker = |name: &str, text: &[u8]| {
        let folder = corpus.sound_mc(&format!("tracker/{name}"));
        fs::write(folder.join("latest_checkpointed_iteration.txt"), text).unwrap();
        folder
    };
    tracker("parent", b"../../sound-mc/release");
    tracker("absolute", b"/etc");
    tracker("empty", b"");
    tracker("dots", b"..");
    tracker("nul", b"release\0");
    tracker("not-utf8", b"\xff\xfe");
    tracker("escapes", b"\x1b[2J");
    tracker("2-to-64", b"18446744073709551616");
    tracker("negative", b"-1");
    tracker("long", &[b'1'; 300]);
    tracker("missing-iteration", b"7");
    fifo(&tracker("fifo", b"").join("latest_checkpointed_iteration.txt"));
    link(
        "latest_checkpointed_iteration.txt",
        &tracker("link-to-itself", b"").join("latest_checkpointed_iteration.txt"),
    );
    sparse(&tracker("terabyte", b"").join("latest_checkpointed_iteration.txt"), b"release", 1 << 40);
    let folder = tracker("folder-links-to-itself", b"release");
    fs::remove_dir_all(folder.join("release")).unwrap();
    link("release", &folder.join("release"));

    let mut marker = |name: &str, text: &[u8]| {
        let folder = corpus.sound_mc(&format!("marker/{name}")).join("release");
        fs::write(folder.join("metadata.json"), text).unwrap();
        folder
    };
    marker("empty", b"");
    marker("list", b"[]");
    marker("deep", "[".repeat(1 << 20).as_bytes());
    marker("other-backend", b"{\"sharded_backend\": \"\\u001b[2J\"}");
    fifo(&marker("fifo", b"").join("metadata.json"));
    sparse(&marker("terabyte", b"").join("metadata.json"), b"{", 1 << 40);

    fs::remove_file(corpus.sound_mc("folder/no-table").join("release/.metadata")).unwrap();
    fifo(&corpus.sound_mc("folder/table-is-fifo").join("release/.metadata"));
    fifo(&corpus.sound_mc("folder/common-is-fifo").join("release/common.pt"));
    fs::remove_file(corpus.sound_mc("folder/no-common").join("release/common.pt")).unwrap();
    fifo(&corpus.sound_mc("folder/travelling-config-is-fifo").join("release/hf/config.json"));
    fifo(&corpus.sound_mc("folder/travelling-file-is-fifo").join("release/hf/tokenizer.json"));
    // A checkpoint from elsewhere must not carry the reader's files away.
    link("/etc/passwd", &corpus.sound_mc("folder/travelling-file-is-link").join("release/hf/tokenizer.json"));
    let folder = corpus.sound_mc("folder/travelling-folder-is-link").join("release");
    fs::remove_dir_all(folder.join("hf")).unwrap();
    link("hf", &folder.join("hf"));
    corpus.entry("folder/empty");
    let folder = corpus.entry("folder/both-formats");
    fs::write(folder.join("metadata.json"), "{}").unwrap();
    fs::write(folder.join("model.safetensors"), [2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']).unwrap();
}
