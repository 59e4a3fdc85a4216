//! Hugging Face folders that lie: safetensors headers, indices and configs.

use crate::corpus::{Corpus, fifo, link, sparse};
use longshore_ckpt::Dtype;
use longshore_ckpt::safetensors::header_bytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The config of the smallest model: one MLP layer.
fn config() -> Value {
    json!({
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "torch_dtype": "float32",
        "hidden_size": 4, "vocab_size": 8, "hybrid_override_pattern": "-", "num_hidden_layers": 1,
        "max_position_embeddings": 32, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false,
        "intermediate_size": 6, "mlp_hidden_act": "relu2",
        "mamba_num_heads": 4, "mamba_head_dim": 2, "n_groups": 2, "ssm_state_size": 2, "conv_kernel": 4,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2,
        "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 3, "moe_intermediate_size": 2,
        "moe_shared_expert_intermediate_size": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 2.5
    })
}

fn with(changes: &[(&str, Value)]) -> String {
    let mut config = config();
    for (name, value) in changes {
        config[*name] = value.clone();
    }
    config.to_string()
}

const TENSORS: [(&str, &[u64]); 6] = [
    ("backbone.embeddings.weight", &[8, 4]),
    ("backbone.layers.0.norm.weight", &[4]),
    ("backbone.layers.0.mixer.up_proj.weight", &[6, 4]),
    ("backbone.layers.0.mixer.down_proj.weight", &[4, 6]),
    ("backbone.norm_f.weight", &[4]),
    ("lm_head.weight", &[8, 4]),
];

/// Writes the smallest sound model.
pub(crate) fn sound(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), with(&[])).unwrap();
    fs::write(folder.join("model.safetensors"), weights(&TENSORS)).unwrap();
}

fn weights(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let list: Vec<_> = tensors.iter().map(|&(name, shape)| (name, Dtype::Float32, shape)).collect();
    let mut bytes = header_bytes(&list, &BTreeMap::new());
    let elements: u64 = tensors.iter().map(|t| t.1.iter().product::<u64>()).sum();
    for i in 0..elements {
        bytes.extend_from_slice(&(i as f32).to_le_bytes());
    }
    bytes
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

pub(crate) fn make(corpus: &mut Corpus) {
    headers(corpus);
    indices(corpus);
    configs(corpus);
}

fn headers(corpus: &mut Corpus) {
    let one = |name: &str, shape: &str, offsets: &str| {
        format!(r#"{name}:{{"dtype":"U8","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let mut add = |name: &str, bytes: &[u8]| {
        let folder = corpus.sound_hf(&format!("safetensors/{name}"));
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
    };
    add("empty", b"");
    add("seven-bytes", &[0; 7]);
    add("length-2-to-63", &[(1u64 << 63).to_le_bytes().as_slice(), b"{}"].concat());
    add("length-max", &[u64::MAX.to_le_bytes().as_slice(), b"{}"].concat());
    add("length-of-100-mb", &[100_000_000u64.to_le_bytes().as_slice(), b"{}"].concat());
    add("length-zero", &[0; 16]);
    add("not-utf8", &[7u64.to_le_bytes().as_slice(), b"{\"\xff\":0}"].concat());
    add("not-an-object", &file("[]", b""));
    add("unclosed", &file("{", b""));
    add("deep", &file(&format!("{{\"a\":{}", "[".repeat(1_000_000)), b""));
    add("deep-objects", &file(&"{\"a\":".repeat(1_000_000), b""));
    add("duplicate", &file(&format!("{{{},{}}}", one("\"a\"", "[1]", "[0,1]"), one("\"a\"", "[1]", "[1,2]")), b"xy"));
    add("overlap", &file(&format!("{{{},{}}}", one("\"a\"", "[2]", "[0,2]"), one("\"b\"", "[2]", "[1,3]")), b"xyz"));
    add("hole", &file(&format!("{{{},{}}}", one("\"a\"", "[1]", "[0,1]"), one("\"b\"", "[1]", "[2,3]")), b"xyz"));
    add("trailing", &file(&format!("{{{}}}", one("\"a\"", "[1]", "[0,1]")), b"xy"));
    add("short", &file(&format!("{{{}}}", one("\"a\"", "[3]", "[0,3]")), b"xy"));
    add("backwards", &file(&format!("{{{}}}", one("\"a\"", "[1]", "[1,0]")), b"x"));
    add("negative", &file(&format!("{{{}}}", one("\"a\"", "[-1]", "[0,1]")), b"x"));
    add("shape-overflows", &file(&format!("{{{}}}", one("\"a\"", "[4294967296,4294967296]", "[0,0]")), b""));
    add("shape-overflows-to-zero", &file(&format!("{{{}}}", one("\"a\"", "[0,9223372036854775808,4]", "[0,0]")), b""));
    add("offsets-2-to-64", &file(&format!("{{{}}}", one("\"a\"", "[1]", "[18446744073709551615,0]")), b""));
    add("float-shape", &file(&format!("{{{}}}", one("\"a\"", "[1e3]", "[0,1]")), b"x"));
    add("metadata-not-strings", &file(r#"{"__metadata__":{"a":1}}"#, b""));
    let rank = "1,".repeat(2_000_000);
    add("two-million-axes", &file(&format!("{{{}}}", one("\"a\"", &format!("[{rank}1]"), "[0,1]")), b"x"));
    let long = "n".repeat(5_000_000);
    add("name-of-5-mb", &file(&format!("{{{}}}", one(&format!("\"{long}\""), "[1]", "[0,1]")), b"x"));
    add("name-with-escapes", &file(&format!("{{{}}}", one(r#""\u001b[2J\n`rm` \u202e""#, "[1]", "[0,1]")), b"x"));
    add("name-is-empty", &file(&format!("{{{}}}", one("\"\"", "[1]", "[0,1]")), b"x"));
    // The number of MTP blocks is one more than the last index.
    add(
        "mtp-index-2-to-64",
        &file(&format!("{{{}}}", one("\"mtp.layers.18446744073709551615.x\"", "[1]", "[0,1]")), b"x"),
    );
    let mtp = [("num_nextn_predict_layers", json!(2)), ("mtp_hybrid_override_pattern", json!("-"))];
    fs::write(corpus.path("safetensors/mtp-index-2-to-64/config.json"), with(&mtp)).unwrap();

    let folder = corpus.sound_hf("safetensors/a-terabyte-of-nothing");
    sparse(&folder.join("model.safetensors"), &100_000_001u64.to_le_bytes(), 1 << 40);
    let folder = corpus.sound_hf("safetensors/a-header-of-zeros");
    sparse(&folder.join("model.safetensors"), &100_000_000u64.to_le_bytes(), 1 << 40);
    fifo(&corpus.sound_hf("safetensors/fifo").join("model.safetensors"));
    link("model.safetensors", &corpus.sound_hf("safetensors/link-to-itself").join("model.safetensors"));
    link("/dev/zero", &corpus.sound_hf("safetensors/device").join("model.safetensors"));
    let folder = corpus.sound_hf("safetensors/folder");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    fs::create_dir(folder.join("model.safetensors")).unwrap();
}

fn indices(corpus: &mut Corpus) {
    let mut add = |name: &str, index: &str| {
        let folder = corpus.sound_hf(&format!("index/{name}"));
        fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).unwrap();
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        folder
    };
    let map = |shard: &str| json!({"weight_map": {"a": shard}}).to_string();
    add("parent", &map("../../sound/model.safetensors"));
    add("absolute", &map("/etc/passwd"));
    add("dots", &map(".."));
    add("empty-name", &map(""));
    add("nul", &map("a\0b"));
    add("the-index", &map("model.safetensors.index.json"));
    add("long-name", &map(&"n".repeat(5000)));
    add("missing", &map("b.safetensors"));
    add("another-tensor", &map("a.safetensors"));
    add("no-map", "{}");
    add("map-of-lists", r#"{"weight_map": {"a": ["b"]}}"#);
    add("list", "[]");
    add("duplicate", r#"{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}"#);
    add("deep", &format!("{{\"x\": {}", "[".repeat(10_000_000)));
    let many: BTreeMap<String, String> = (0..100_000).map(|i| (format!("t{i}"), format!("f{i}"))).collect();
    add("many-missing", &json!({ "weight_map": many }).to_string());
    let folder = add("fifo", &map("b.safetensors"));
    fifo(&folder.join("b.safetensors"));
    let folder = add("link-loop", &map("b.safetensors"));
    link("c.safetensors", &folder.join("b.safetensors"));
    link("b.safetensors", &folder.join("c.safetensors"));
    let folder = add("index-is-fifo", "{}");
    fifo(&folder.join("model.safetensors.index.json"));
}

fn configs(corpus: &mut Corpus) {
    let mut add = |name: &str, config: &[u8]| {
        let folder = corpus.sound_hf(&format!("config/{name}"));
        fs::write(folder.join("config.json"), config).unwrap();
        folder
    };
    add("empty", b"");
    add("list", b"[]");
    add("byte-order-mark", &[b"\xef\xbb\xbf".as_slice(), with(&[]).as_bytes()].concat());
    add("utf16", &[0xff, 0xfe, b'{', 0, b'}', 0]);
    add("deep", "[".repeat(10 << 20).as_bytes());
    add("deep-value", with(&[]).replacen('{', &format!("{{\"x\": {}", "{\"a\":".repeat(1 << 20)), 1).as_bytes());
    add("duplicate", with(&[]).replacen('{', "{\"hidden_size\": 8,", 1).as_bytes());
    add("too-large", " ".repeat((16 << 20) + 1).as_bytes());
    let huge = with(&[("hybrid_override_pattern", json!("-".repeat(15 << 20))), ("num_hidden_layers", Value::Null)]);
    add("15-million-layers", huge.as_bytes());
    let experts = with(&[("hybrid_override_pattern", json!("E".repeat(15 << 20))), ("num_hidden_layers", Value::Null)]);
    add("15-million-moe-layers", experts.as_bytes());
    // The most that is accepted: the whole table of names has to fit into memory.
    let experts = with(&[("hybrid_override_pattern", json!("E".repeat(4096))), ("num_hidden_layers", Value::Null)]);
    add("262144-experts", experts.as_bytes());
    let layers = with(&[("hybrid_override_pattern", json!("M".repeat(8192))), ("num_hidden_layers", Value::Null)]);
    add("8192-layers", layers.as_bytes());
    let blocks = with(&[("hybrid_override_pattern", json!(format!("-{}", "/-".repeat(5 << 20))))]);
    add("5-million-mtp-blocks", blocks.as_bytes());
    add("negative", with(&[("hidden_size", json!(-4))]).as_bytes());
    add("zero", with(&[("hidden_size", json!(0))]).as_bytes());
    add("2-to-63", with(&[("hidden_size", json!(1u64 << 63))]).as_bytes());
    add("fraction", with(&[("hidden_size", json!(4.5))]).as_bytes());
    add("1e308", with(&[("hidden_size", json!(1e308))]).as_bytes());
    add("text", with(&[("hidden_size", json!("4"))]).as_bytes());
    let largest = json!(i32::MAX);
    let product =
        [("hidden_size", largest.clone()), ("vocab_size", largest.clone()), ("intermediate_size", largest.clone())];
    add("product-overflows", with(&product).as_bytes());
    let fields = [
        "mamba_num_heads",
        "mamba_head_dim",
        "n_groups",
        "ssm_state_size",
        "conv_kernel",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "moe_latent_size",
        "n_group",
        "topk_group",
    ];
    let mut all: Vec<_> = fields.iter().map(|f| (*f, largest.clone())).collect();
    all.push(("hybrid_override_pattern", json!("M*-E")));
    all.push(("num_hidden_layers", json!(4)));
    add("all-sizes-2-to-31", with(&all).as_bytes());
    let mtp = [("num_nextn_predict_layers", json!(i32::MAX)), ("mtp_hybrid_override_pattern", json!("E"))];
    add("mtp-depth-2-to-31", with(&mtp).as_bytes());
    let mtp = [("num_nextn_predict_layers", json!(u64::MAX)), ("mtp_hybrid_override_pattern", json!("E"))];
    add("mtp-depth-2-to-64", with(&mtp).as_bytes());
    add("pattern-of-other-letters", with(&[("hybrid_override_pattern", json!("XYZ\u{1b}[2J"))]).as_bytes());
    add("list-for-a-size", with(&[("hidden_size", json!(vec![0; 5_000_000]))]).as_bytes());
    let unknown: serde_json::Map<String, Value> = (0..500_000).map(|i| (format!("unknown{i}"), json!(0))).collect();
    let mut object = config();
    object.as_object_mut().unwrap().extend(unknown);
    add("500000-unknown-fields", object.to_string().as_bytes());
    fifo(&add("fifo", b"").join("config.json"));
    link("config.json", &add("link-to-itself", b"").join("config.json"));
    fifo(&add("tokenizer-is-fifo", with(&[]).as_bytes()).join("tokenizer.json"));
    link("tokenizer.json", &add("tokenizer-links-to-itself", with(&[]).as_bytes()).join("tokenizer.json"));
    sparse(&add("tokenizer-of-a-terabyte", with(&[]).as_bytes()).join("tokenizer.json"), b"{", 1 << 40);
}
