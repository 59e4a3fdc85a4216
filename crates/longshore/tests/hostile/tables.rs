//! `.metadata` files that are tables, but lie about paths, places, chunks and shapes; and lies of the manifest.

use crate::corpus::{Corpus, fifo, link};
use longshore_ckpt::torch_dist::item::Frame;
use longshore_ckpt::torch_dist::metadata::{Metadata, TensorEntry, write};
use longshore_ckpt::{Dtype, Rect};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn rect(offsets: &[u64], sizes: &[u64]) -> Rect {
    Rect { offsets: offsets.to_vec(), sizes: sizes.to_vec() }
}

/// A float32 item of these sizes, all zeros.
fn item(sizes: &[u64]) -> Vec<u8> {
    let frame = Frame::tensor(Dtype::Float32, sizes);
    let payload = vec![0; frame.payload_len as usize];
    [frame.head.clone(), payload.clone(), frame.tail(crc32fast_zero(payload.len()))].concat()
}

/// CRC-32 of zeros; 0 would mean that there is none, which is legal too.
fn crc32fast_zero(len: usize) -> u32 {
    let mut crc = !0u32;
    for _ in 0..len * 8 {
        crc = (crc >> 1) ^ (0xedb8_8320 & (0u32.wrapping_sub(crc & 1)));
    }
    !crc
}

/// One tensor `w` of this shape in pieces, each a sound item.
fn pieces(corpus: &mut Corpus, name: &str, shape: &[u64], rects: &[Rect]) {
    let (mut table, mut data) = (Metadata::default(), Vec::new());
    let path = table.add_path("__0_0.distcp");
    for rect in rects {
        let item = item(&rect.sizes);
        table.add_chunk("w", Dtype::Float32, shape, rect.clone(), path, data.len() as u64, item.len() as u64);
        data.extend(item);
    }
    let folder = corpus.table(name, &write(&table));
    fs::write(folder.join("__0_0.distcp"), data).unwrap();
}

/// One tensor `w`, `[2, 3]` float32, whose only item lies at this place.
fn place(corpus: &mut Corpus, name: &str, path: &str, offset: u64, length: u64) -> std::path::PathBuf {
    let mut table = Metadata::default();
    let path = table.add_path(path);
    table.add_chunk("w", Dtype::Float32, &[2, 3], rect(&[0, 0], &[2, 3]), path, offset, length);
    let folder = corpus.table(name, &write(&table));
    fs::write(folder.join("__0_0.distcp"), item(&[2, 3])).unwrap();
    folder
}

/// One tensor `w` of this shape without any chunk.
fn shape(corpus: &mut Corpus, name: &str, shapes: &[&[u64]]) {
    let mut table = Metadata::default();
    for (i, shape) in shapes.iter().enumerate() {
        let zeros = vec![0; shape.len()];
        table.add_chunk(&format!("w{i}"), Dtype::Float64, shape, rect(&zeros, &zeros), 0, 0, 0);
    }
    table.add_path("__0_0.distcp");
    let folder = corpus.table(name, &write(&table));
    fs::write(folder.join("__0_0.distcp"), b"").unwrap();
}

pub(crate) fn make(corpus: &mut Corpus) {
    paths(corpus);
    chunks(corpus);
    vocabulary(corpus);
    manifests(corpus);
}

fn paths(corpus: &mut Corpus) {
    let len = item(&[2, 3]).len() as u64;
    for (name, path) in [
        ("parent", "../../../etc/passwd"),
        ("parent-later", "a/../../x"),
        ("absolute", "/etc/passwd"),
        ("empty", ""),
        ("dot", "."),
        ("backslash", "..\\x"),
        ("nul", "a\0b"),
        ("missing", "__9_9.distcp"),
        ("escapes", "\u{1b}[2J\n\u{202e}"),
        ("table-itself", ".metadata"),
    ] {
        place(corpus, &format!("path/{name}"), path, 0, len);
    }
    place(corpus, "path/long", &"n".repeat(5000), 0, len);
    place(corpus, "path/deep", &vec!["a"; 5000].join("/"), 0, len);
    fifo(&place(corpus, "path/fifo", "__1_0.distcp", 0, len).join("__1_0.distcp"));
    link("/dev/zero", &place(corpus, "path/device", "__1_0.distcp", 0, len).join("__1_0.distcp"));
    link("__1_0.distcp", &place(corpus, "path/link-to-itself", "__1_0.distcp", 0, len).join("__1_0.distcp"));
    fs::create_dir(place(corpus, "path/folder", "__1_0.distcp", 0, len).join("__1_0.distcp")).unwrap();
    place(corpus, "place/past-the-end", "__0_0.distcp", 1, len);
    place(corpus, "place/far-past-the-end", "__0_0.distcp", 1 << 62, len);
    place(corpus, "place/end-overflows", "__0_0.distcp", u64::MAX, len);
    place(corpus, "place/no-length", "__0_0.distcp", 0, 0);
    place(corpus, "place/length-2-to-63", "__0_0.distcp", 0, 1 << 63);
    place(corpus, "place/inside-the-item", "__0_0.distcp", 8, len - 16);
}

fn chunks(corpus: &mut Corpus) {
    let mut add = |name: &str, rects: &[Rect]| pieces(corpus, &format!("chunks/{name}"), &[2, 3], rects);
    let (left, right) = (rect(&[0, 0], &[2, 2]), rect(&[0, 2], &[2, 1]));
    add("hole", std::slice::from_ref(&left));
    add("overlap", &[left.clone(), rect(&[0, 1], &[2, 2])]);
    add("hole-and-overlap", &[rect(&[0, 0], &[1, 3]), rect(&[0, 1], &[1, 2]), rect(&[1, 0], &[1, 1])]);
    add("twice", &[left.clone(), right.clone(), left.clone()]);
    add("outside", &[left.clone(), rect(&[0, 2], &[2, 2])]);
    add("end-overflows", &[left, rect(&[0, 2], &[2, 0]), rect(&[1, u64::MAX], &[1, 0])]);
    add("of-another-rank", &[rect(&[0], &[6])]);
    add("of-no-rank", &[rect(&[], &[])]);
    add("empty", &[rect(&[0, 0], &[0, 3]), rect(&[0, 0], &[2, 0])]);
    // Chunks that all begin in row 0: comparing each with each takes 10^10 steps.
    let columns = 100_000;
    let many: Vec<Rect> = (0..columns).map(|i| rect(&[0, i], &[1, 1])).collect();
    let (mut table, item) = (Metadata::default(), item(&[1, 1]));
    let path = table.add_path("__0_0.distcp");
    for rect in many {
        table.add_chunk("w", Dtype::Float32, &[1, columns], rect, path, 0, item.len() as u64);
    }
    let folder = corpus.table("chunks/100000-columns", &write(&table));
    fs::write(folder.join("__0_0.distcp"), item).unwrap();

    let mut table = Metadata::default();
    table.tensors.insert("w".into(), TensorEntry { dtype: Dtype::Float32, shape: vec![2, 3], chunks: Vec::new() });
    corpus.table("chunks/none", &write(&table));

    shape(corpus, "shape/2-to-63", &[&[1 << 63]]);
    shape(corpus, "shape/product-overflows", &[&[1 << 32, 1 << 32]]);
    shape(corpus, "shape/zero-times-overflow", &[&[0, 1 << 63, 1 << 63]]);
    shape(corpus, "shape/overflow-times-zero", &[&[1 << 63, 1 << 63, 0]]);
    shape(corpus, "shape/sum-overflows", &[&[1 << 60], &[1 << 60], &[1 << 60]]);
    shape(corpus, "shape/100-axes", &[&[1; 100]]);
    shape(corpus, "shape/no-axes", &[&[]]);
}

/// Checkpoints of the sound model whose embedding claims more rows than memory has bytes.
fn vocabulary(corpus: &mut Corpus) {
    for (name, rows) in [("2-to-31", 1u64 << 31), ("2-to-61", 1 << 61), ("2-to-62", 1 << 62)] {
        let folder = corpus.sound_mc(&format!("vocabulary/{name}")).join("release");
        let bytes = fs::read(folder.join(".metadata")).unwrap();
        let mut table = longshore_ckpt::torch_dist::metadata::parse(&bytes).unwrap();
        let embedding = table.tensors.get_mut("embedding.word_embeddings.weight").unwrap();
        embedding.shape = vec![rows, 1];
        embedding.dtype = Dtype::Uint8;
        embedding.chunks[0].rect = rect(&[0, 0], &[1, 1]);
        fs::write(folder.join(".metadata"), write(&table)).unwrap();
    }
}

fn manifests(corpus: &mut Corpus) {
    let mut add = |name: &str, change: &dyn Fn(&mut Value), config: bool| {
        let root = corpus.sound_mc(&format!("manifest/{name}"));
        let folder = root.join("release");
        let path = folder.join("longshore.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(&path, manifest.to_string()).unwrap();
        if !config {
            fs::remove_dir_all(folder.join("hf")).unwrap();
        }
        folder
    };
    let name = |text: &'static str| move |m: &mut Value| m["files"][0]["name"] = json!(text);
    add("parent", &name("../../../../etc/passwd"), true);
    add("absolute", &name("/etc/passwd"), true);
    add("empty-name", &name(""), true);
    add("nul", &name("a\0b"), true);
    add("schema-2", &|m| m["schema"] = json!(2), true);
    add("negative-size", &|m| m["files"][0]["size"] = json!(-1), true);
    add("size-2-to-64", &|m| m["files"][0]["size"] = json!(u64::MAX), true);
    add("file-out-of-range", &|m| first_chunk(m)["file"] = json!(u32::MAX), true);
    add("offset-2-to-64", &|m| first_chunk(m)["offset"] = json!(u64::MAX), true);
    add("start-of-another-rank", &|m| first_chunk(m)["start"] = json!(vec![0; 9]), true);
    add("shape-overflows", &|m| first_chunk(m)["shape"] = json!([u64::MAX, u64::MAX]), true);
    add(
        "chunk-100000-times",
        &|m| {
            let chunk = first_chunk(m).clone();
            first_tensor(m)["chunks"] = json!(vec![chunk; 100_000]);
        },
        true,
    );
    add(
        "file-100000-times",
        &|m| {
            let file = m["files"][1].clone();
            m["files"] = json!(vec![file; 100_000]);
        },
        true,
    );
    add("no-files", &|m| m["files"] = json!([]), true);
    add("no-tensors", &|m| m["tensors"] = json!({}), true);
    add("unknown-dtype", &|m| first_tensor(m)["dtype"] = json!("complex128"), true);
    // Without a config the manifest says how many rows count.
    for (name, rows) in [("vocabulary-0", 0), ("vocabulary-2-to-31", 1 << 31), ("vocabulary-2-to-64", u64::MAX)] {
        add(name, &move |m| m["origin"]["vocab_size"] = json!(rows), false);
    }
    let write = |folder: &Path, bytes: &[u8]| fs::write(folder.join("longshore.json"), bytes).unwrap();
    write(&add("not-json", &|_| (), true), b"\x00");
    write(&add("deep", &|_| (), true), "[".repeat(10 << 20).as_bytes());
    write(&add("deep-field", &|_| (), true), "{\"x\":".repeat(1 << 20).as_bytes());
    fifo(&add("fifo", &|_| (), true).join("longshore.json"));
    link("longshore.json", &add("link-to-itself", &|_| (), true).join("longshore.json"));
}

fn first_tensor(manifest: &mut Value) -> &mut Value {
    manifest["tensors"].as_object_mut().unwrap().values_mut().next().unwrap()
}

fn first_chunk(manifest: &mut Value) -> &mut Value {
    &mut first_tensor(manifest)["chunks"][0]
}
