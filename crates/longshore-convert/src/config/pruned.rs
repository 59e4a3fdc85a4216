//! A pruned model: the config of what it was made from, with the smaller sizes that its checkpoint stores.

use crate::config::hf::{self, nemotron_h};
use crate::config::{Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe, json, release};
use crate::error::Problem;
use crate::quantized::hf_config::{insert_key, remove_key};
use serde_json::Value;

/// A field of config.json that pruning changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name, as NVIDIA's releases write it.
    pub field: String,
    /// In the config of the original.
    pub from: Value,
    /// As the checkpoint is; null where the model no longer has it.
    pub to: Value,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} -> {}", self.field, self.from, self.to)
    }
}

/// `base` with the sizes of `stored`, which arguments and tensors of a checkpoint agree on, and what changed; `None` where
/// the checkpoint is not a smaller model of the same kind.
///
/// Pruning leaves out layers, channels, heads and experts and adds nothing: every size is at most that of the original. So
/// another model, or the same sizes cut in another way, is never taken for a pruned one.
pub(crate) fn pruned(base: &ModelConfig, stored: &ModelConfig) -> Option<(ModelConfig, Vec<Change>)> {
    let mut config = base.clone();
    config.hidden_size = at_most(base.hidden_size, stored.hidden_size)?;
    config.layers = subsequence(&base.layers, &stored.layers)?;
    if let Some(mlp) = config.kinds().mlp {
        config.intermediate_size = Some(mlp.ffn);
    }
    match (&base.mtp, &stored.mtp) {
        (Some(ours), Some(theirs)) if ours.layers.len() == theirs.layers.len() => {
            let layers = subsequence(&ours.layers, &theirs.layers)?;
            config.mtp.iter_mut().for_each(|mtp| mtp.layers.clone_from(&layers));
        }
        // Whether a model without the MTP of its original is complete is not decided here (`--mtp`).
        (_, None) => {}
        _ => return None,
    }
    let (before, after) = (release::hf_json(base).0, release::hf_json(&config).0);
    let fields = before.as_object()?;
    let changes: Vec<_> = fields
        .iter()
        .map(|(field, from)| {
            let to = after.get(field).cloned().unwrap_or(Value::Null);
            Change { field: field.clone(), from: from.clone(), to }
        })
        .filter(|change| change.from != change.to)
        .collect();
    (!changes.is_empty() && config.contradictions().is_empty()).then_some((config, changes))
}

fn at_most(original: u64, pruned: u64) -> Option<u64> {
    (pruned <= original).then_some(pruned)
}

/// The layers that are left, each at most as large as one of its kind was.
fn subsequence(original: &[LayerSpec], left: &[LayerSpec]) -> Option<Vec<LayerSpec>> {
    let mut rest = original.iter();
    left.iter().map(|layer| smaller(rest.find(|o| o.letter() == layer.letter())?, layer)).collect()
}

/// The sizes of `pruned`; what is no size stays as in the original.
fn smaller(original: &LayerSpec, pruned: &LayerSpec) -> Option<LayerSpec> {
    Some(match (*original, *pruned) {
        (LayerSpec::Mamba(a), LayerSpec::Mamba(b)) => LayerSpec::Mamba(Mamba {
            heads: at_most(a.heads, b.heads)?,
            head_dim: at_most(a.head_dim, b.head_dim)?,
            groups: at_most(a.groups, b.groups)?,
            state: at_most(a.state, b.state)?,
            conv_kernel: at_most(a.conv_kernel, b.conv_kernel)?,
        }),
        (LayerSpec::Attention(a), LayerSpec::Attention(b)) => LayerSpec::Attention(Attention {
            heads: at_most(a.heads, b.heads)?,
            kv_heads: at_most(a.kv_heads, b.kv_heads)?,
            head_dim: at_most(a.head_dim, b.head_dim)?,
            ..a
        }),
        (LayerSpec::Mlp(a), LayerSpec::Mlp(b)) => LayerSpec::Mlp(Mlp { ffn: at_most(a.ffn, b.ffn)?, ..a }),
        (LayerSpec::Moe(a), LayerSpec::Moe(b)) => LayerSpec::Moe(Moe {
            experts: at_most(a.experts, b.experts)?,
            // Not stored by every writer.
            top_k: if b.top_k == 0 { a.top_k } else { at_most(a.top_k, b.top_k)? },
            expert_ffn: at_most(a.expert_ffn, b.expert_ffn)?,
            shared_ffn: at_most(a.shared_ffn, b.shared_ffn)?,
            latent: match (a.latent, b.latent) {
                (Some(a), Some(b)) => Some(at_most(a, b)?),
                (None, None) => None,
                _ => return None,
            },
            ..a
        }),
        _ => return None,
    })
}

/// The text of a config.json with the changes in it and every other byte as it was; each changed field is the last of its
/// file. `file` is its name in problems.
pub(crate) fn rewrite(
    text: &str,
    changes: &[Change],
    config: &ModelConfig,
    file: &str,
) -> Result<String, Vec<Problem>> {
    let problem = |field: &str, what: String| Problem::Config { file: file.into(), field: field.into(), what };
    let mut text = text.to_owned();
    for Change { field, to, .. } in changes {
        let names = nemotron_h::names(field);
        for name in names.iter().copied().chain([field.as_str()]) {
            text = remove_key(&text, name).unwrap_or(text);
        }
        if !to.is_null() {
            text = insert_key(&text, field, to).map_err(|e| vec![problem(field, e.what)])?;
        }
    }
    let value = json::parse(text.as_bytes()).map_err(|e| vec![problem("", e.what)])?;
    let read = hf::read(file, &value)?.config;
    let mtp = |config: &ModelConfig| config.mtp.as_ref().map(|mtp| mtp.layers.clone());
    if read.layers == config.layers && read.hidden_size == config.hidden_size && mtp(&read) == mtp(config) {
        return Ok(text);
    }
    let fields = changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>().join("`, `");
    Err(vec![problem(&fields, "cannot be rewritten: another field contradicts the pruned sizes".into())])
}
