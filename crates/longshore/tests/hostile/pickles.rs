//! Pickles that lie: payloads, bombs, cycles and broken opcodes, as `.metadata` and as `common.pt`.

use crate::corpus::{Corpus, sparse};
use longshore_ckpt::torch_dist::pickle::Writer;

/// `os.system("touch executed")`, without `PROTO` and `STOP`.
fn payload() -> Vec<u8> {
    let mut out = b"cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85R".to_vec();
    // The same through the other ways to call something; all results but the first are dropped.
    out.extend(b"(X\x0e\x00\x00\x00touch executedios\nsystem\n0");
    out.extend(b"(cos\nsystem\nX\x0e\x00\x00\x00touch executedo0");
    out.extend(b"cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85\x810");
    out.extend(b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93X\x0e\x00\x00\x00touch executed\x85}\x920");
    out
}

fn whole(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

/// An `argparse.Namespace` with these attributes (pickled pairs) as the `args` of a common state.
fn args(attributes: &[u8]) -> Vec<u8> {
    whole(&[b"}X\x04\x00\x00\x00argscargparse\nNamespace\n)\x81}(".as_slice(), attributes, b"ubs"].concat())
}

fn text(value: &str) -> Vec<u8> {
    [b"X", (value.len() as u32).to_le_bytes().as_slice(), value.as_bytes()].concat()
}

pub(crate) fn make(corpus: &mut Corpus) {
    for (name, bytes) in broken() {
        corpus.table(&format!("pickle/table-{name}"), &bytes);
        corpus.common(&format!("pickle/common-{name}"), &bytes);
    }
    // A table that is one otherwise, with the payload where nobody looks.
    let table = [
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}(".as_slice(),
        &[text("state_dict_metadata"), b"}".to_vec(), text("planner_data"), payload(), text("storage_data")].concat(),
        b"}ub",
    ];
    corpus.table("pickle/payload-beside-the-table", &whole(&table.concat()));
    corpus.common("pickle/payload-as-args", &whole(&[b"}X\x04\x00\x00\x00args".as_slice(), &payload(), b"s"].concat()));
    let attribute = [text("hidden_size"), payload()].concat();
    corpus.common("pickle/payload-as-a-size", &args(&attribute));
    // Whoever copies the value of every attribute needs 24 GB.
    let mut shared = [text("a"), text(&"x".repeat(8 << 20)), b"q\x00".to_vec()].concat();
    for i in 0..3000 {
        shared.extend([text(&format!("a{i}")), b"h\x00".to_vec()].concat());
    }
    corpus.common("pickle/one-text-as-3000-attributes", &args(&shared));
    let mut sizes = Vec::new();
    for (name, value) in [("hidden_size", "-1"), ("num_layers", "9223372036854775808"), ("padded_vocab_size", "1e400")]
    {
        sizes.extend([text(name), format!("I{value}\n").into_bytes()].concat());
    }
    corpus.common("pickle/args-out-of-range", &args(&sizes));
    let mut itself = b"}q\x00X\x04\x00\x00\x00argscargparse\nNamespace\n)\x81q\x01}q\x02(".to_vec();
    itself.extend([text("hidden_size"), b"h\x01".to_vec(), text("num_layers"), b"h\x02ubs".to_vec()].concat());
    corpus.common("pickle/args-hold-themselves", &whole(&itself));
    // Strings of a megabyte, shared by every row: comparing and hashing them row by row takes minutes.
    corpus.table("pickle/rows-with-long-keys", &rows_with_long_names(true));
    corpus.table("pickle/rows-with-long-paths", &rows_with_long_names(false));
    // 48 MB that become one value each.
    let lists = [vec![b'('], vec![b']'; 48 << 20], vec![b'l']].concat();
    corpus.common("pickle/48-million-lists", &whole(&lists));
    let folder = corpus.table("pickle/table-of-zeros", b"");
    sparse(&folder.join(".metadata"), b"\x80\x02", (2 << 30) - 1);
    let folder = corpus.table(
        "pickle/common-of-zeros",
        &longshore_ckpt::torch_dist::metadata::write(&longshore_ckpt::torch_dist::metadata::Metadata::default()),
    );
    sparse(&folder.join("common.pt"), b"PK\x03\x04", 1 << 40);
}

/// Broken or monstrous whatever file it is.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let million = 1_000_000;
    let mut doubling = b")q\x00".to_vec();
    for i in 0..64u8 {
        doubling.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
    }
    let mut dicts = b"}q\x00".to_vec();
    for i in 0..64u8 {
        dicts.extend([b"}(K\x00h".as_slice(), &[i], b"K\x01h", &[i], b"uq", &[i + 1]].concat());
    }
    vec![
        ("empty", Vec::new()),
        ("payload", whole(&payload())),
        ("million-marks", whole(&vec![b'('; million])),
        ("million-lists-deep", whole(&[vec![b']'; million], vec![b'a'; million - 1]].concat())),
        ("million-tuples-deep", whole(&[vec![b')'], vec![0x85; million]].concat())),
        ("million-persistent-deep", whole(&[vec![b'N'], vec![b'Q'; million]].concat())),
        ("million-calls-deep", whole(&[b"ca\nb\n".to_vec(), b")R".repeat(million)].concat())),
        ("million-states-deep", whole(&[b"ca\nb\n)R".repeat(million), vec![b'b'; million - 1]].concat())),
        ("doubling-tuples", whole(&doubling)),
        ("doubling-dicts", whole(&dicts)),
        ("list-in-itself", whole(b"]q\x00h\x00ah\x00a")),
        ("dict-in-itself", whole(b"}q\x00h\x00h\x00sX\x01\x00\x00\x00ah\x00s")),
        ("object-in-itself", whole(b"ca\nb\n)Rq\x00h\x00b")),
        ("no-stop", b"\x80\x02N".to_vec()),
        ("stop-on-nothing", b"\x80\x02.".to_vec()),
        ("bytes-after-stop", b"\x80\x02N.N.".to_vec()),
        ("protocol-9", b"\x80\x09N.".to_vec()),
        ("extension", whole(b"\x82\x01")),
        ("buffer", b"\x80\x05\x97.".to_vec()),
        ("no-such-opcode", whole(b"\xff")),
        ("no-such-memo", whole(b"j\xff\xff\xff\xff")),
        ("memo-2-to-63", whole(b"Np9223372036854775807\n")),
        ("text-of-2-to-63", whole(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f")),
        ("text-of-2-to-64", whole(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab")),
        ("bytes-of-4-gib", whole(b"B\xff\xff\xff\xff")),
        ("bytearray-of-2-to-64", whole(b"\x96\xff\xff\xff\xff\xff\xff\xff\xff")),
        ("negative-long", whole(b"\x8b\xff\xff\xff\xff")),
        ("frame-of-2-to-64", whole(b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN")),
        ("long-of-a-megabyte", whole(&[b"\x8b\x00\x00\x10\x00".to_vec(), vec![0x7f; 1 << 20]].concat())),
        ("digits-of-a-megabyte", whole(&[b"I".to_vec(), vec![b'9'; 1 << 20], b"\n".to_vec()].concat())),
        ("unhashable-key", whole(b"}]]s")),
        ("odd-dict", whole(b"(Nd")),
        ("pop-below-mark", whole(b"N(\x85")),
        ("append-to-none", whole(b"NNa")),
        ("state-of-none", whole(b"NNb")),
        ("arguments-no-tuple", whole(b"ca\nb\nNR")),
        ("name-no-text", whole(b"NN\x93")),
        ("lone-surrogate", whole(b"X\x03\x00\x00\x00\xed\xa0\x80")),
        ("escapes", whole(b"ca\x1b[2Jb\n\x1b]0;c\x07\n)R")),
    ]
}

/// A table of 4000 rows, whose keys (or paths) are two strings of a megabyte in turn.
fn rows_with_long_names(keys: bool) -> Vec<u8> {
    let long = "n".repeat(1 << 20);
    let mut w = Writer::new();
    w.new_object("torch.distributed.checkpoint.metadata", "Metadata");
    w.raw(b"}(");
    w.str("state_dict_metadata");
    w.raw(b"}");
    w.str("storage_data");
    w.raw(b"}(");
    for i in 0..4000u64 {
        let name = format!("{long}{}", i * 7919 % 2);
        w.new_object("torch.distributed.checkpoint.metadata", "MetadataIndex");
        w.raw(b"}");
        w.shared_str("fqn");
        w.shared_str(if keys { &name } else { "k" });
        w.raw(b"sb");
        w.new_object("torch.distributed.checkpoint.filesystem", "_StorageInfo");
        w.raw(b"}(");
        w.shared_str("relative_path");
        w.shared_str(if keys { "p" } else { &name });
        w.shared_str("offset");
        w.uint(0);
        w.shared_str("length");
        w.uint(0);
        w.raw(b"ub");
    }
    w.raw(b"uub");
    w.finish()
}
