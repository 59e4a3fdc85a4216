//! Writes the seed corpora, `corpus/TARGET/NAME`, with longshore's own writers: `cargo run --example seeds`.

use longshore_ckpt::safetensors::{header_bytes, index_json};
use longshore_ckpt::torch_dist::extra_state;
use longshore_ckpt::torch_dist::item::{Frame, empty_extra_state, object_item};
use longshore_ckpt::torch_dist::metadata::{self, Metadata};
use longshore_ckpt::torch_dist::pickle::{Plain, Writer, dump};
use longshore_ckpt::{Dtype, Rect};
use longshore_convert::config::{hf, json, megatron};
use longshore_convert::manifest;
use longshore_convert::{Layout, SpecName};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn put(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("a folder for the corpus");
    fs::write(folder.join(name), bytes).expect("a writable folder");
}

fn main() {
    pickles();
    tables();
    items();
    extra_states();
    safetensors();
    configs();
    manifests();
    evaluation();
    // The pieces of these inputs are taken from both ends; any bytes will do as a start.
    let counting: Vec<u8> = (0..=255).collect();
    put("rect", "counting", &counting);
    put("region", "counting", &counting);
    put("glob", "stars", b"*.weight?a.b.weights*");
}

fn text(value: &str) -> Plain {
    Plain::Str(value.into())
}

/// One value of every kind that is written, and one of every kind that only Python writes.
fn pickles() {
    let common = Plain::Dict(vec![
        (text("args"), Plain::Namespace(arguments())),
        (text("checkpoint_version"), Plain::Float(3.0)),
        (text("list"), Plain::List(vec![Plain::None, Plain::Bool(true), Plain::Int(-1), Plain::Int(i64::MIN)])),
        (text("tuple"), Plain::Tuple(vec![Plain::Global("torch".into(), "bfloat16".into()), Plain::Int(70_000)])),
    ]);
    put("pickle", "common", dump(&common));
    put("megatron_args", "common", [b"\0".as_slice(), &dump(&common)].concat());
    for (name, bytes) in [
        ("protocol-0", b"(dp0\nVa\np1\n(lp2\nI1\naL2L\naF0.5\naI01\nassVb\n(S'x\\n'\nVy\\u00e9\ntp3\ns.".as_slice()),
        ("protocol-1", b"}q\0(U\x01a](K\x01M\x00\x01J\0\0\0\x80eX\x01\0\0\0bG?\xe0\0\0\0\0\0\0u."),
        ("protocol-4", b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94(\x8c\x01a\x8f\x94(K\x01K\x02\x90\x8c\x01b(K\x03\x91\x94u."),
        ("protocol-5", b"\x80\x05\x96\x02\0\0\0\0\0\0\0ab\x8e\x01\0\0\0\0\0\0\0c\x8d\x01\0\0\0\0\0\0\0d\x87."),
        ("objects", b"\x80\x02ccollections\nOrderedDict\n)R(K\x01K\x02uca\nb\n)\x81}bca\nc\n)}\x92(ia\nd\n(ca\ne\nNo\x8a\x02\xff\0\x87."),
        ("stack", b"\x80\x02NN0(NN1]q\0h\0aK\x01Q\x85r\0\x01\0\0j\0\x01\0\0\x94\x862\x86."),
    ] {
        put("pickle", name, bytes);
    }
}

fn arguments() -> Vec<(String, Plain)> {
    let config = hf::read("config.json", &config()).expect("a sound config").config;
    let layout = Layout { tp: 1, pp: 1, ep: 1, etp: 1 };
    megatron::args(&config, layout, SpecName::Te, 8, Some(Dtype::Bfloat16), None)
}

fn tables() {
    let mut table = Metadata::default();
    let path = table.add_path("__0_0.distcp");
    let half = |at: u64| Rect { offsets: vec![at, 0], sizes: vec![1, 3] };
    for at in 0..2 {
        table.add_chunk("w", Dtype::Bfloat16, &[2, 3], half(at), path, at * 100, 100);
    }
    table.add_chunk("scalar", Dtype::Float32, &[], Rect { offsets: vec![], sizes: vec![] }, path, 200, 100);
    table.add_object("w._extra_state/shard_0_1", path, 300, 50);
    put("metadata", "small", metadata::write(&table));
    put("pickle", "table", metadata::write(&table));
    put("metadata", "empty", metadata::write(&Metadata::default()));
    // As other writers have it: another class, a tuple of slots, a transform.
    let mut w = Writer::new();
    w.new_object("torch.distributed.checkpoint.metadata", "Metadata");
    w.raw(b"N}(");
    w.str("state_dict_metadata");
    w.raw(b"}");
    w.str("storage_data");
    w.raw(b"}u\x86b");
    put("metadata", "slots", w.finish());
}

fn items() {
    for (name, dtype) in [("v2", Dtype::Bfloat16), ("v3", Dtype::Float8E4m3)] {
        let frame = Frame::tensor(dtype, &[2, 3]);
        let payload = vec![0; frame.payload_len as usize];
        put("item", name, [frame.head.clone(), payload, frame.tail(1)].concat());
    }
    put(
        "item",
        "empty-tensor",
        [Frame::tensor(Dtype::Float32, &[0]).head, Frame::tensor(Dtype::Float32, &[0]).tail(0)].concat(),
    );
    put("item", "state", empty_extra_state());
    put("item", "object", object_item(&dump(&Plain::Dict(vec![(text("a"), Plain::Int(1))]))));
}

/// A quantizer's state, no state, and a tensor that is none.
fn extra_states() {
    let shape = Plain::Dict(vec![
        (text("shape"), Plain::Size(vec![4, 1])),
        (text("dtype"), Plain::Global("torch".into(), "bfloat16".into())),
    ]);
    let quantizer = Plain::Dict(vec![
        (text("_num_bits"), Plain::Tuple(vec![Plain::Int(4), Plain::Int(3)])),
        (text("_amax"), shape),
    ]);
    let inner =
        Plain::Dict(vec![(text("modelopt_quantizer_state"), Plain::Dict(vec![(text("weight_quantizer"), quantizer)]))]);
    put("extra_state", "quantizer", extra_state::write(&inner));
    put("extra_state", "small", extra_state::write(&Plain::None));
    put("extra_state", "empty", empty_extra_state());
    put("extra_state", "object", object_item(&dump(&Plain::List(vec![text("other")]))));
}

fn safetensors() {
    let shapes: [&[u64]; 3] = [&[2, 3], &[], &[0, 4]];
    let tensors =
        [("a", Dtype::Float32, shapes[0]), ("b.\u{e9}\"", Dtype::Bfloat16, shapes[1]), ("c", Dtype::Uint8, shapes[2])];
    let mut file = header_bytes(&tensors, &BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    file.resize(file.len() + 26, 0);
    put("safetensors_header", "three", file);
    put("safetensors_header", "none", header_bytes(&[], &BTreeMap::new()));
    let map =
        BTreeMap::from([("a", "a.safetensors"), ("b", "b.safetensors")].map(|(t, f)| (t.to_owned(), f.to_owned())));
    put("safetensors_index", "two", index_json(2, &map));
}

/// A model with every kind of layer, of the smallest sizes.
fn config() -> serde_json::Value {
    json!({
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "torch_dtype": "bfloat16",
        "hidden_size": 4, "vocab_size": 8, "hybrid_override_pattern": "ME*-E", "num_hidden_layers": 5,
        "max_position_embeddings": 32, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false,
        "intermediate_size": 6, "mlp_hidden_act": "relu2", "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 2, "mamba_num_heads": 4, "mamba_head_dim": 2, "n_groups": 2, "ssm_state_size": 2,
        "conv_kernel": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 2, "moe_shared_expert_intermediate_size": 3, "moe_latent_size": 2, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "time_step_limit": [0.0, 1.0],
        "num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"
    })
}

fn configs() {
    let plain = config().to_string();
    put("hf_config", "pattern", &plain);
    put("hf_config", "special", plain.replace("[0.0,1.0]", "[0.0, Infinity]"));
    let names = plain.replace("\"ME*-E\"", r#"["mamba","moe","attention","mlp","moe"]"#);
    put("hf_config", "names", names.replace("hybrid_override_pattern\":[", "layers_block_type\":["));
    put("hf_config", "slashes", plain.replace("ME*-E", "M|E*-E/*E"));
    put("run_config", "nested", RUN_CONFIG);
    put("hf_config", "tagged", br#"{"time_step_limit": [0.0, {"__float__": "Infinity"}, NaN, -Infinity, 1e400]}"#);
    assert!(json::parse(plain.as_bytes()).is_ok());
}

/// Fields in both places where Megatron-Bridge has them, with an alias.
const RUN_CONFIG: &str = r#"_target_: megatron.bridge.training.config.ConfigContainer
model:
  _target_: megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider
  activation_func: &f
    _target_: megatron.core.activations.squared_relu
    _call_: false
  transformer:
    num_layers: 4
    hidden_size: 64
    num_moe_experts: 8
    params_dtype: {_target_: torch.bfloat16, _call_: false}
  hybrid_override_pattern: "ME*-"
  share_embeddings_and_output_weights: false
  layernorm_epsilon: 1.0e-05
  mlp_func: *f
  vocab_size: 256
  hf_model_id: org/name
"#;

fn manifests() {
    let chunk = |offset, start, shape| manifest::Chunk { file: 0, offset, start, shape, crc32: 7 };
    let tensor = manifest::Tensor {
        dtype: Dtype::Bfloat16,
        shape: vec![2, 3],
        chunks: vec![chunk(0, None, None), chunk(6, Some(vec![1, 0]), Some(vec![1, 3]))],
    };
    let manifest = manifest::Manifest {
        schema: 1,
        program: "longshore 0".into(),
        fingerprint: "0".into(),
        origin: manifest::Origin {
            architecture: "NemotronHForCausalLM".into(),
            vocab_size: 8,
            dtypes: BTreeMap::from([("w".to_owned(), Dtype::Float32)]),
            dropped: vec!["x".into()],
        },
        files: vec![manifest::File { name: "a/b".into(), size: 12, crc32: 1 }],
        tensors: BTreeMap::from([("w".to_owned(), tensor)]),
    };
    put("manifest", "one", manifest.to_json());
}

/// Questions in each form and answers to them.
fn evaluation() {
    let question = json!({"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 2});
    put("mmlu", "jsonl", format!("\0{question}\n{question}\n"));
    put("mmlu", "csv", b"\x01\"q, r\",a,b,c,d,C\nq,a,b,c,d,A\n");
    put("mmlu", "csv-header", b"\x01question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,3\n");
    let fixture = "../crates/longshore-eval/tests/fixtures/wrong/test-00000-of-00001.parquet";
    let parquet = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture)).expect("the fixture");
    put("mmlu", "parquet", [b"\x02".as_slice(), &parquet].concat());
    let record = json!({
        "subject": "s", "index": 0, "prompt_hash": "00", "logits": [0.5, -1.0, 2.0, 0.0], "choice": "C", "answer": "A",
        "correct": false,
    });
    put("eval_records", "one", format!("{record}\n"));
    let report = json!({
        "schema": 1, "command": "eval", "task": "ppl", "windows": [{"nll": 1.5, "tokens": 3}, {"nll": 2.0, "tokens": 4}],
    });
    put("eval_records", "report", report.to_string());
    put("eval_text", "text", "Call me Ishmael.\n");
    put("eval_text", "ids", "{\"input_ids\": [1, 2, 3]}\n");
}
