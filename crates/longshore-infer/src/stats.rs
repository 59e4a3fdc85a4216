//! What calibration counts of the inputs of a linear.

use serde::{Deserialize, Serialize};

/// Which statistics are wanted beside the amax of the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsWanted {
    /// Largest magnitude of every channel (`SmoothQuant`).
    pub channel_amax: bool,
    /// Sum of the magnitudes of every channel (AWQ).
    pub channel_sum: bool,
    /// Whether the channels of routed second linears are those of rows multiplied with their router weights, as
    /// [`InputStats::weighted_amax`] is; those of tokens that chose their experts, then.
    pub weighted: bool,
}

/// The rows that a linear has read, as it read them: rounded where the precision rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputStats {
    /// Rows. Of routed experts: all rows of all of them.
    pub tokens: u64,
    /// Largest magnitude.
    pub amax: f32,
    /// Routed second linears: the largest magnitude of the rows multiplied with their router weights, which is what
    /// Megatron's experts read. `amax` is of the rows before that, which is what other engines quantize.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_amax: Option<f32>,
    /// Largest magnitude of every channel, `[width]`, of routed experts `[experts, width]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_amax: Option<Vec<f32>>,
    /// Sum of the magnitudes of every channel, of the same shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_sum: Option<Vec<f64>>,
    /// Routed experts: rows of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_tokens: Vec<u64>,
}
