use super::*;
use crate::config::hf::tests::{read_file, shared};
use crate::config::{Activation, Attention, Forward, LayerSpec, Mamba, Mlp, Moe, Mtp};
use longshore_ckpt::torch_dist::pickle::{self, Pickle};

const LAYOUT: Layout = Layout { tp: 2, pp: 2, ep: 2, etp: 1 };

/// Every kind of layer, latent experts, groups, and two MTP blocks.
fn example() -> ModelConfig {
    let mamba = LayerSpec::Mamba(Mamba { heads: 8, head_dim: 16, groups: 2, state: 16, conv_kernel: 4 });
    let attention = LayerSpec::Attention(Attention { heads: 4, kv_heads: 2, head_dim: 32, rotary: None });
    let moe = LayerSpec::Moe(Moe {
        experts: 8,
        top_k: 4,
        expert_ffn: 32,
        shared_ffn: 48,
        latent: Some(24),
        n_group: 4,
        topk_group: 2,
        norm_topk_prob: true,
        routed_scaling_factor: 2.5,
    });
    ModelConfig {
        layers: vec![mamba, attention, LayerSpec::Mlp(Mlp { ffn: 96, activation: Activation::ReluSquared }), moe],
        mtp: Some(Mtp { depth: 2, layers: vec![attention, moe], repeated: Some(false) }),
        dtype: Some(Dtype::Bfloat16),
        intermediate_size: Some(96),
        max_position_embeddings: 512,
        forward: Forward { residual_in_fp32: Some(false), ..Forward::default() },
        ..ModelConfig::minimal(crate::config::hf::nemotron_h::ARCHITECTURE, 64, 250)
    }
}

/// The tensors that show a size, as Megatron names them.
fn keys(config: &ModelConfig) -> BTreeMap<String, Vec<u64>> {
    let (h, mut keys) = (config.hidden_size, BTreeMap::new());
    let mut layer = |prefix: String, spec: &LayerSpec| {
        let mut put = |name: &str, shape: &[u64]| _ = keys.insert(format!("{prefix}{name}"), shape.to_vec());
        match *spec {
            LayerSpec::Mamba(m) => {
                put("mixer.A_log", &[m.heads]);
                put("mixer.in_proj.weight.x", &[m.heads * m.head_dim, h]);
                put("mixer.in_proj.weight.B", &[m.groups * m.state, h]);
                put("mixer.conv1d.weight.x", &[m.heads * m.head_dim, 1, m.conv_kernel]);
            }
            LayerSpec::Attention(a) => {
                put("self_attention.linear_qkv.weight", &[(a.heads + 2 * a.kv_heads) * a.head_dim, h]);
                put("self_attention.linear_proj.weight", &[h, a.heads * a.head_dim]);
            }
            LayerSpec::Mlp(m) => put("mlp.linear_fc1.weight", &[m.ffn, h]),
            LayerSpec::Moe(m) => {
                put("mlp.router.weight", &[m.experts, h]);
                put("mlp.experts.experts.linear_fc1.weight", &[m.experts, m.expert_ffn, m.latent.unwrap_or(h)]);
                put("mlp.shared_experts.linear_fc1.weight", &[m.shared_ffn, h]);
                if let Some(latent) = m.latent {
                    put("mlp.fc1_latent_proj.weight", &[latent, h]);
                }
            }
        }
    };
    for (i, spec) in config.layers.iter().enumerate() {
        layer(format!("decoder.layers.{i}."), spec);
    }
    if let Some(mtp) = &config.mtp {
        for d in 0..mtp.blocks() {
            for (k, spec) in mtp.layers.iter().enumerate() {
                layer(format!("mtp.layers.{d}.mtp_model_layer.layers.{k}."), spec);
            }
        }
    }
    keys.insert("embedding.word_embeddings.weight".into(), vec![256, h]);
    keys.insert("output_layer.weight".into(), vec![256, h]);
    keys
}

fn stored_args(config: &ModelConfig) -> Args {
    stored(args(config, LAYOUT, SpecName::Te, 256, config.dtype, Some(64)))
}

/// Arguments as they come back from their pickle.
fn stored(args: Vec<(String, Plain)>) -> Args {
    let common = Plain::Dict(vec![(Plain::Str("args".into()), Plain::Namespace(args))]);
    Args::from_common(Pickle::parse(&pickle::dump(&common)).unwrap().root())
}

fn fields(problems: &[Problem]) -> Vec<&str> {
    problems
        .iter()
        .map(|p| if let Problem::Config { field, .. } = p { field.as_str() } else { panic!("{p}") })
        .collect()
}

#[test]
fn a_model_survives_being_stored() {
    let mut repeated = example();
    repeated.mtp.as_mut().unwrap().repeated = Some(true);
    for config in [example(), repeated, ModelConfig { mtp: None, ..example() }] {
        let args = stored_args(&config);
        assert_eq!(read(&args, &keys(&config)).unwrap(), (config.clone(), vec![]));
        assert_eq!(contradictions(&args, &config), []);
    }
}

#[test]
fn the_arguments_are_those_of_megatron() {
    let list = args(&example(), LAYOUT, SpecName::Local, 256, Some(Dtype::Bfloat16), None);
    let args = stored(list.clone());
    assert_eq!(args.values.len(), list.len(), "no name twice");
    let is = |name: &str, value: Arg| assert_eq!(args.values.get(name), Some(&value), "{name}");
    is("hybrid_layer_pattern", "M*-E/*E/*E".into());
    is("hybrid_override_pattern", "M*-E".into());
    is("mtp_num_layers", Arg::Int(2));
    is("num_layers", Arg::Int(4));
    is("params_dtype", Arg::Dtype(Dtype::Bfloat16));
    is("moe_grouped_gemm", Arg::Bool(false));
    is("make_vocab_size_divisible_by", Arg::Int(128));
    is("world_size", Arg::Int(4));
    is("data_parallel_size", Arg::Int(1));
    is("no_save_optim", Arg::Bool(true));
    assert_eq!(args.values.get("spec"), None);
}

#[test]
fn world_sizes_are_the_smallest() {
    let of = |tp, pp, ep, etp| world_size(Layout { tp, pp, ep, etp });
    assert_eq!([of(1, 1, 1, 1), of(2, 2, 1, 2), of(2, 1, 2, 1), of(2, 1, 4, 2), of(4, 3, 6, 1)], [1, 4, 2, 8, 36]);
}

#[test]
fn without_arguments_only_the_heads_are_unknown() {
    let config = example();
    let problems = read(&Args::default(), &keys(&config)).unwrap_err();
    // The width of a head gives the number of heads.
    assert_eq!(fields(&problems), ["mamba_num_groups", "mamba_state_dim", "kv_channels"]);
    let few = [("mamba_state_dim", 16u64), ("num_query_groups", 2)];
    let few: Args = few.into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
    let (found, assumed) = read(&few, &keys(&config)).unwrap();
    let (json, named) = hf_json(&found);
    for field in ["num_experts_per_tok", "routed_scaling_factor"] {
        assert!(json.get(field).is_none() && named.iter().any(|line| line.starts_with(field)), "{named:?}");
    }
    assert_eq!(found.pattern(), "M*-E");
    assert_eq!(found.layers[..3], config.layers[..3]);
    assert_eq!(found.mtp.unwrap().blocks(), 2);
    assert_eq!(found.vocab_size, 256);
    let names: Vec<&str> = assumed.iter().filter_map(|line| line.split(' ').next()).collect();
    let expected =
        ["num_nextn_predict_layers", "n_group", "max_position_embeddings", "vocab_size", "layer_norm_epsilon"];
    assert_eq!(names, expected);
}

#[test]
fn arguments_and_tensors_must_agree() {
    let config = example();
    for (name, value) in [
        ("hidden_size", Arg::Int(32)),
        ("hybrid_layer_pattern", "MM-E/*E/*E".into()),
        ("hybrid_layer_pattern", "M*-E/*-/*-".into()),
        ("mamba_num_heads", Arg::Int(4)),
        ("num_query_groups", Arg::Int(4)),
        ("kv_channels", Arg::Int(16)),
        ("moe_ffn_hidden_size", Arg::Int(33)),
        ("moe_latent_size", Arg::Int(64)),
        ("untie_embeddings_and_output_weights", Arg::Bool(false)),
        ("swiglu", Arg::Bool(true)),
        ("apply_layernorm_1p", Arg::Bool(true)),
        ("normalization", "LayerNorm".into()),
        ("moe_router_score_function", "softmax".into()),
        ("window_size", Arg::Opaque),
    ] {
        let mut args = stored_args(&config);
        args.values.insert(name.into(), value);
        let problems = read(&args, &keys(&config)).unwrap_err();
        assert!(fields(&problems).contains(&name), "{name}: {problems:?}");
    }
}

#[test]
fn a_base_config_with_other_heads_is_a_contradiction() {
    let (config, mut args) = (example(), stored_args(&example()));
    args.values.insert("kv_channels".into(), Arg::Int(16));
    args.values.insert("num_attention_heads".into(), Arg::Int(8));
    args.values.insert("moe_router_topk_scaling_factor".into(), Arg::None);
    args.values.insert("hybrid_layer_pattern".into(), "M*|-E".into());
    let found = contradictions(&args, &config);
    assert_eq!(fields(&found), ["num_attention_heads", "kv_channels", "moe_router_topk_scaling_factor"]);
}

#[test]
fn a_gpt_model_is_no_hybrid() {
    let stacked = BTreeMap::from([("decoder.layers.self_attention.linear_qkv.weight".to_owned(), vec![2, 8, 8])]);
    let problems = read(&Args::default(), &stacked).unwrap_err();
    assert!(problems[0].to_string().contains("a GPT model"), "{problems:?}");
    let both = ["self_attention.linear_qkv", "mlp.linear_fc1"];
    let layers = both.map(|name| (format!("decoder.layers.0.{name}.weight"), vec![8, 8]));
    let problems = read(&Args::default(), &BTreeMap::from(layers)).unwrap_err();
    assert!(problems[0].to_string().contains("several layers in one"), "{problems:?}");
}

/// The goldens' arguments lack everything about experts but their number; the tensors show the rest.
#[test]
fn goldens_that_megatron_saved_are_read_as_their_hf_twins() {
    let Some(shared) = shared() else { return };
    for (mc, hf) in [
        ("nemotron_h_dense_local_tp2_pp2", "nemotron_h_dense"),
        ("nemotron_h_fp32_ssm_te", "nemotron_h_fp32_ssm"),
        ("nemotron_h_latent_mtp_te", "nemotron_h_latent_mtp"),
        ("nemotron_h_moe_local_ep2_iter", "nemotron_h_moe"),
        ("nemotron_h_moe_te_tp2_ep2_etp1", "nemotron_h_moe"),
    ] {
        let text = std::fs::read_to_string(shared.join("golden/torch_dist").join(mc).join("keys.json")).unwrap();
        let listing: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        let shape = |v: &serde_json::Value| {
            v["shape"].as_array().map(|s| s.iter().filter_map(serde_json::Value::as_u64).collect())
        };
        let keys = listing.iter().filter_map(|(name, v)| Some((name.clone(), shape(v)?))).collect();
        let twin = read_file(&shared.join("golden/hf").join(hf)).config;
        let stored = common(&shared.join("golden/torch_dist").join(mc));
        let args = Args::from_common(stored.root());
        let (config, _) = read(&args, &keys).unwrap();
        assert_eq!(contradictions(&args, &twin), [], "{mc}");
        let has_experts = twin.pattern().contains('E');
        assert_eq!(
            hf_json(&config).0.get("num_experts_per_tok").is_none(),
            has_experts || twin.kinds().moe.is_none(),
            "{mc}"
        );
        let mut expected = ModelConfig { forward: config.forward.clone(), ..twin };
        for layer in expected.layers.iter_mut().chain(expected.mtp.iter_mut().flat_map(|m| &mut m.layers)) {
            if let LayerSpec::Moe(m) = layer {
                (m.top_k, m.routed_scaling_factor) = (0, 0.0);
            }
        }
        assert_eq!(config, expected, "{mc}");
    }
}

/// The pickle in the `common.pt` of a golden: the first record of the archive, stored.
fn common(root: &std::path::Path) -> Pickle {
    let inner = ["release", "iter_0000005"].map(|name| root.join(name).join("common.pt"));
    let bytes = inner.iter().find_map(|path| std::fs::read(path).ok()).unwrap();
    let field = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let record = &bytes[30 + field(26) + field(28)..];
    // The sizes stand behind the record, after this signature.
    let end = record.windows(4).position(|w| w == b"PK\x07\x08").unwrap();
    Pickle::parse(&record[..end]).unwrap()
}
