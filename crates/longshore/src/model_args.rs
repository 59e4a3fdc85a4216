//! Model arguments of `MLM_EXTRA_ARGS` against the model that the source describes.

use crate::extra_args::Expected;
use longshore_convert::Problem;
use longshore_convert::config::{LayerSpec, ModelConfig};

/// Every argument that decides shapes and contradicts `model`.
pub(crate) fn contradictions(expected: &[Expected], model: &ModelConfig) -> Vec<Problem> {
    let contradicting = differing(expected, model).filter(|(argument, _)| argument.shape);
    let problem = |(argument, fact): (&Expected, String)| Problem::Option {
        option: format!("--{} {}", argument.name, argument.value),
        what: format!("the model has {fact} (from $MLM_EXTRA_ARGS)"),
    };
    contradicting.map(problem).collect()
}

/// A line for every argument about how Megatron computes that is not as in `model`, which it does not change.
pub(crate) fn without_effect(expected: &[Expected], model: &ModelConfig) -> Vec<String> {
    let line = |(argument, fact): (&Expected, String)| {
        format!("`--{} {}` has no effect: the model has {fact} ($MLM_EXTRA_ARGS)", argument.name, argument.value)
    };
    differing(expected, model).filter(|(argument, _)| !argument.shape).map(line).collect()
}

/// The names of `expected` that this model gives no value to compare with.
pub(crate) fn unchecked(expected: &[Expected], model: &ModelConfig) -> Vec<String> {
    expected.iter().filter(|e| fact(&e.name, model).is_none()).map(|e| format!("--{}", e.name)).collect()
}

/// The arguments that are not as in the model, with what that has.
fn differing<'a>(expected: &'a [Expected], model: &'a ModelConfig) -> impl Iterator<Item = (&'a Expected, String)> {
    let compared = expected.iter().filter_map(|e| Some((e, fact(&e.name, model)?)));
    compared.filter(|(e, fact)| !agree(&e.name, &e.value, fact))
}

fn agree(name: &str, value: &str, fact: &str) -> bool {
    match (value.parse::<f64>(), fact.parse::<f64>()) {
        #[expect(clippy::float_cmp, reason = "both are the same decimal number, read by the same function")]
        (Ok(a), Ok(b)) => a == b,
        _ if name.ends_with("pattern") => trunk(value) == trunk(fact),
        _ => value == fact,
    }
}

/// The trunk's letters: without pipeline marks (`|`) and the MTP blocks after `/`.
fn trunk(pattern: &str) -> String {
    pattern.split('/').next().unwrap_or_default().replace('|', "")
}

/// What the model has in the place of a Megatron argument, as that argument's value; `None` where it has nothing.
fn fact(name: &str, model: &ModelConfig) -> Option<String> {
    let layers = || model.all_layers();
    let mamba = || layers().find_map(|l| if let LayerSpec::Mamba(m) = l { Some(m) } else { None });
    let attention = || layers().find_map(|l| if let LayerSpec::Attention(a) = l { Some(a) } else { None });
    let mlp = || layers().find_map(|l| if let LayerSpec::Mlp(m) = l { Some(m) } else { None });
    let moe = || layers().find_map(|l| if let LayerSpec::Moe(m) = l { Some(m) } else { None });
    let number = match name {
        // Megatron takes it for the experts too, where they have no size of their own.
        "ffn-hidden-size" => mlp().map(|m| m.ffn).or_else(|| Some(moe()?.expert_ffn))?,
        "hidden-size" => model.hidden_size,
        "kv-channels" => attention()?.head_dim,
        "mamba-head-dim" => mamba()?.head_dim,
        "mamba-num-groups" => mamba()?.groups,
        "mamba-num-heads" => mamba()?.heads,
        "mamba-state-dim" => mamba()?.state,
        "moe-ffn-hidden-size" => moe()?.expert_ffn,
        "moe-latent-size" => moe()?.latent?,
        "moe-router-group-topk" => moe()?.topk_group,
        "moe-router-num-groups" => moe()?.n_group,
        "moe-router-topk" => moe()?.top_k,
        "moe-shared-expert-intermediate-size" => moe()?.shared_ffn,
        "mtp-num-layers" => model.mtp.as_ref().map_or(0, |mtp| mtp.depth),
        "num-attention-heads" => attention()?.heads,
        "num-experts" => moe()?.experts,
        "num-layers" => model.layers.len() as u64,
        "num-query-groups" => attention()?.kv_heads,
        "vocab-size" => model.vocab_size,
        _ => return text_fact(name, model),
    };
    Some(number.to_string())
}

fn text_fact(name: &str, model: &ModelConfig) -> Option<String> {
    let mtp = model.mtp.as_ref();
    let routed_scaling_factor = || {
        model.all_layers().find_map(|l| if let LayerSpec::Moe(m) = l { Some(m.routed_scaling_factor) } else { None })
    };
    match name {
        "hybrid-layer-pattern" | "hybrid-override-pattern" => return Some(model.pattern()),
        "mtp-hybrid-override-pattern" => return Some(mtp?.layers.iter().map(LayerSpec::letter).collect()),
        "mtp-use-repeated-layer" => return Some(mtp?.repeated?.to_string()),
        "moe-router-topk-scaling-factor" => return Some(routed_scaling_factor()?.to_string()),
        "norm-epsilon" => return Some(model.norm_eps.to_string()),
        "untie-embeddings-and-output-weights" => return Some((!model.tie_word_embeddings).to_string()),
        _ => {}
    }
    // What every model of this architecture has.
    if model.architecture != "NemotronHForCausalLM" {
        return None;
    }
    let fact = match name {
        "add-qkv-bias" | "apply-layernorm-1p" | "swiglu" => "false",
        "disable-bias-linear" | "is-hybrid-model" | "squared-relu" | "moe-router-enable-expert-bias" => "true",
        "moe-router-score-function" => "sigmoid",
        "normalization" => "RMSNorm",
        "position-embedding-type" => "none",
        _ => return None,
    };
    Some(fact.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_convert::config::{Activation, Attention, Mlp};

    fn model() -> ModelConfig {
        let attention = Attention { heads: 4, kv_heads: 2, head_dim: 64, rotary: None };
        let layers = vec![
            LayerSpec::Mlp(Mlp { ffn: 768, activation: Activation::ReluSquared }),
            LayerSpec::Attention(attention),
        ];
        ModelConfig { layers, ..ModelConfig::minimal("NemotronHForCausalLM", 256, 4096) }
    }

    fn expected(pairs: &[(&str, &str)]) -> Vec<Expected> {
        let shape = |name: &str| !matches!(name, "norm-epsilon" | "squared-relu" | "position-embedding-type");
        let one = |(name, value): &(&str, &str)| Expected {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            shape: shape(name),
        };
        pairs.iter().map(one).collect()
    }

    #[test]
    fn arguments_that_agree_pass_in_any_spelling() {
        let pairs = [
            ("num-layers", "2"),
            ("hidden-size", "256"),
            ("hybrid-override-pattern", "-|*/*-"),
            ("norm-epsilon", "0.00001"),
            ("squared-relu", "true"),
            ("untie-embeddings-and-output-weights", "true"),
        ];
        assert_eq!(contradictions(&expected(&pairs), &model()), []);
    }

    #[test]
    fn every_contradiction_is_named() {
        let pairs = [("num-layers", "24"), ("swiglu", "true"), ("normalization", "LayerNorm"), ("hidden-size", "256")];
        let text: Vec<String> = contradictions(&expected(&pairs), &model()).iter().map(Problem::to_string).collect();
        assert_eq!(
            text,
            [
                "option     `--num-layers 24`: the model has 2 (from $MLM_EXTRA_ARGS)",
                "option     `--swiglu true`: the model has false (from $MLM_EXTRA_ARGS)",
                "option     `--normalization LayerNorm`: the model has RMSNorm (from $MLM_EXTRA_ARGS)",
            ]
        );
    }

    #[test]
    fn what_decides_no_shape_is_a_warning() {
        let expected = expected(&[("norm-epsilon", "1e-6"), ("position-embedding-type", "none"), ("num-layers", "3")]);
        assert_eq!(
            without_effect(&expected, &model()),
            ["`--norm-epsilon 1e-6` has no effect: the model has 0.00001 ($MLM_EXTRA_ARGS)"]
        );
        assert_eq!(contradictions(&expected, &model()).len(), 1);
    }

    #[test]
    fn an_argument_without_a_counterpart_is_unchecked() {
        assert_eq!(unchecked(&expected(&[("num-experts", "8"), ("num-layers", "2")]), &model()), ["--num-experts"]);
    }
}
