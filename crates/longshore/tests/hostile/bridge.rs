//! Checkpoints of other programs that lie: Megatron-Bridge's `run_config.yaml`, and the formats that are refused by name.

use crate::corpus::{Corpus, fifo, link, sparse};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

pub(crate) fn make(corpus: &mut Corpus) {
    let mut config = |name: &str, text: &[u8]| {
        fs::write(folder(corpus, &format!("bridge/{name}")).join("run_config.yaml"), text).unwrap();
    };
    config("empty", b"");
    config("not-utf8", b"model:\n  num_layers: \xff");
    config("no-model", b"train: {}\n");
    config("model-is-list", b"model: [1, 2]\n");
    config("escapes", b"model:\n  hybrid_override_pattern: \"\\x1b[2J\"\n");
    config("payload", b"model:\n  num_layers: !!python/object/apply:os.system [\"touch executed\"]\n");
    config("target", b"model:\n  num_layers:\n    _target_: os.system\n    _args_: [touch executed]\n");
    config("deep", &[b"model: ".as_slice(), &b"[".repeat(1 << 19)].concat());
    config("doubling", doubling().as_bytes());
    config("key-in-itself", b"model: &a\n  num_layers: *a\n");
    config("fields-of-2-to-62", sizes(1 << 62).as_bytes());
    config("fields-of-a-million", sizes(1_000_000).as_bytes());
    config("fields-below-0", sizes(-1).as_bytes());
    config("two-mebibytes", &b"# \n".repeat(700_000));
    fifo(&folder(corpus, "bridge/fifo").join("run_config.yaml"));
    link("run_config.yaml", &folder(corpus, "bridge/link-to-itself").join("run_config.yaml"));
    sparse(&folder(corpus, "bridge/terabyte").join("run_config.yaml"), b"model:", 1 << 40);
    let folder = folder(corpus, "bridge/tokenizer-is-link");
    fs::write(folder.join("run_config.yaml"), "model:\n  num_attention_heads: 1\n").unwrap();
    link("../../../sound", &folder.join("tokenizer"));

    let other = |corpus: &mut Corpus, name: &str, file: &str| {
        let path = corpus.entry(&format!("other/{name}")).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"\x80\x02cos\nsystem\nX\x0e\0\0\0touch executed\x85R.").unwrap();
    };
    other(corpus, "legacy", "iter_0000001/mp_rank_00/model_optim_rng.pt");
    other(corpus, "nemo", "model.nemo");
    other(corpus, "pytorch", "pytorch_model.bin");
}

/// A Megatron checkpoint without arguments and without a config of Hugging Face.
pub(crate) fn folder(corpus: &mut Corpus, name: &str) -> PathBuf {
    let folder = corpus.sound_mc(name).join("release");
    for file in ["common.pt", "longshore.json"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    fs::remove_dir_all(folder.join("hf")).unwrap();
    folder
}

/// Aliases that would be 2 to the 40 values.
fn doubling() -> String {
    let mut text = "model:\n  a0: &a0 [1, 1]\n".to_owned();
    for i in 1..40 {
        let before = i - 1;
        writeln!(text, "  a{i}: &a{i} [*a{before}, *a{before}]").unwrap();
    }
    text
}

/// Every size of a hybrid model.
fn sizes(n: i64) -> String {
    const FIELDS: [&str; 14] = [
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "ffn_hidden_size",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
        "num_moe_experts",
        "mamba_num_heads",
        "mamba_head_dim",
        "mamba_num_groups",
        "mamba_state_dim",
        "mtp_num_layers",
    ];
    let fields = FIELDS.map(|field| format!("  {field}: {n}\n")).concat();
    format!("model:\n  hybrid_override_pattern: \"ME*-\"\n{fields}  vocab_size: {n}\n")
}
