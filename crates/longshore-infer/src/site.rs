//! The places in a layer where a quantizer may stand, by their paths in Megatron.

use longshore_convert::config::{LayerSpec, Mamba};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A linear, or an operand of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Input projection of a Mamba mixer.
    MambaIn,
    /// Output projection of a Mamba mixer.
    MambaOut,
    /// Projection to queries, keys and values.
    Qkv,
    /// Output projection of attention.
    Proj,
    /// First linear of a dense MLP.
    Fc1,
    /// Second linear of a dense MLP.
    Fc2,
    /// First linears of the routed experts, which share one input quantizer.
    ExpertFc1,
    /// Second linears of the routed experts, which share one input quantizer.
    ExpertFc2,
    /// First linear of the shared expert.
    SharedFc1,
    /// Second linear of the shared expert.
    SharedFc2,
    /// Down projection before the routed experts.
    LatentDown,
    /// Up projection behind the routed experts.
    LatentUp,
    /// Queries: no linear, an operand of attention.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// The output layer, which is in no layer of the trunk.
    Output,
}

impl Site {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::MambaIn,
        Self::MambaOut,
        Self::Qkv,
        Self::Proj,
        Self::Fc1,
        Self::Fc2,
        Self::ExpertFc1,
        Self::ExpertFc2,
        Self::SharedFc1,
        Self::SharedFc2,
        Self::LatentDown,
        Self::LatentUp,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
    ];

    /// The module's path inside its layer (that of the output layer: inside the model).
    pub fn module(self) -> &'static str {
        match self {
            Self::MambaIn => "mixer.in_proj",
            Self::MambaOut => "mixer.out_proj",
            Self::Qkv => "self_attention.linear_qkv",
            Self::Proj => "self_attention.linear_proj",
            Self::Fc1 => "mlp.linear_fc1",
            Self::Fc2 => "mlp.linear_fc2",
            Self::ExpertFc1 => "mlp.experts.linear_fc1",
            Self::ExpertFc2 => "mlp.experts.linear_fc2",
            Self::SharedFc1 => "mlp.shared_experts.linear_fc1",
            Self::SharedFc2 => "mlp.shared_experts.linear_fc2",
            Self::LatentDown => "mlp.fc1_latent_proj",
            Self::LatentUp => "mlp.fc2_latent_proj",
            Self::Query => "self_attention.core_attention.q_bmm_quantizer",
            Self::Key => "self_attention.core_attention.k_bmm_quantizer",
            Self::Value => "self_attention.core_attention.v_bmm_quantizer",
            Self::Output => "output_layer",
        }
    }

    /// Whether every expert has a weight of its own here.
    pub fn is_routed(self) -> bool {
        matches!(self, Self::ExpertFc1 | Self::ExpertFc2)
    }
}

/// Sites are stored as their paths.
impl Serialize for Site {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.module())
    }
}

impl<'de> Deserialize<'de> for Site {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let module = String::deserialize(deserializer)?;
        let found = Self::ALL.into_iter().find(|site| site.module() == module);
        found.ok_or_else(|| serde::de::Error::custom(format!("no module `{module}`")))
    }
}

/// The linears of a layer with their shapes `(out, in)`; those of routed experts once, with the shape of one expert.
pub fn linears(spec: &LayerSpec, hidden: u64) -> Vec<(Site, (u64, u64))> {
    match *spec {
        LayerSpec::Mamba(Mamba { heads, head_dim, groups, state, .. }) => {
            let inner = heads * head_dim;
            let projected = 2 * inner + 2 * groups * state + heads;
            vec![(Site::MambaIn, (projected, hidden)), (Site::MambaOut, (hidden, inner))]
        }
        LayerSpec::Attention(a) => {
            let qkv = (a.heads + 2 * a.kv_heads) * a.head_dim;
            vec![(Site::Qkv, (qkv, hidden)), (Site::Proj, (hidden, a.heads * a.head_dim))]
        }
        LayerSpec::Mlp(m) => vec![(Site::Fc1, (m.fc1_rows(), hidden)), (Site::Fc2, (hidden, m.ffn))],
        LayerSpec::Moe(m) => {
            let width = m.latent.unwrap_or(hidden);
            let mut linears = vec![
                (Site::ExpertFc1, (m.expert_ffn, width)),
                (Site::ExpertFc2, (width, m.expert_ffn)),
                (Site::SharedFc1, (m.shared_ffn, hidden)),
                (Site::SharedFc2, (hidden, m.shared_ffn)),
            ];
            if m.latent.is_some() {
                linears.extend([(Site::LatentDown, (width, hidden)), (Site::LatentUp, (hidden, width))]);
            }
            linears
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_stored_as_its_path() {
        for site in Site::ALL {
            let json = serde_json::to_string(&site).unwrap();
            assert_eq!(json, format!("\"{}\"", site.module()));
            assert_eq!(serde_json::from_str::<Site>(&json).unwrap(), site);
        }
        assert!(serde_json::from_str::<Site>("\"mixer\"").is_err());
    }
}
