//! What calibration saw: the magnitudes of inputs, and how many tokens reached each expert.

use crate::units::count;
use longshore_infer::calibrate::Calibration;
use longshore_infer::site::Site;
use serde::Serialize;

/// Tokens below which an expert's share in a magnitude is chance.
const FEW: u64 = 10;

/// What a linear has read.
#[derive(Clone, Debug, Serialize)]
pub(super) struct InputRow {
    /// The trunk's layer; `None` for the output layer.
    pub(super) layer: Option<usize>,
    pub(super) kind: Site,
    /// Rows, those of all experts.
    pub(super) tokens: u64,
    /// Largest magnitude.
    pub(super) amax: f32,
    /// The same of rows times their router weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weighted_amax: Option<f32>,
}

/// What the routed experts of a layer saw.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ExpertTokens {
    pub(super) layer: usize,
    /// Tokens of each.
    pub(super) tokens: Vec<u64>,
    /// Experts with fewer than 10, or less than a hundredth of the mean.
    pub(super) few: Vec<usize>,
    /// Those of them with none.
    pub(super) none: Vec<usize>,
}

impl ExpertTokens {
    pub(super) fn new(layer: usize, tokens: Vec<u64>) -> Self {
        let limit = tokens.iter().sum::<u64>() as f64 / tokens.len().max(1) as f64 / 100.0;
        let is_few = |&(_, &n): &(usize, &u64)| n < FEW || (n as f64) < limit;
        let few: Vec<usize> = tokens.iter().enumerate().filter(is_few).map(|(expert, _)| expert).collect();
        let none = few.iter().copied().filter(|&expert| tokens[expert] == 0).collect();
        Self { layer, tokens, few, none }
    }

    /// Mean over the experts.
    pub(super) fn mean(&self) -> f64 {
        self.tokens.iter().sum::<u64>() as f64 / self.tokens.len().max(1) as f64
    }
}

/// What the linears have read, layer by layer.
pub(super) fn inputs(observed: &Calibration) -> Vec<InputRow> {
    let layers = observed.layers.iter().enumerate();
    let rows = layers.flat_map(|(layer, sites)| sites.iter().map(move |(&site, stats)| (Some(layer), site, stats)));
    let output = (observed.output.tokens > 0).then_some((None, Site::Output, &observed.output));
    rows.chain(output)
        .map(|(layer, kind, stats)| InputRow {
            layer,
            kind,
            tokens: stats.tokens,
            amax: stats.amax,
            weighted_amax: stats.weighted_amax,
        })
        .collect()
}

/// What the routed experts saw, layer by layer.
pub(super) fn experts(observed: &Calibration) -> Vec<ExpertTokens> {
    let tokens = |(layer, sites): (usize, &longshore_infer::calibrate::LayerStats)| {
        let stats = sites.get(&Site::ExpertFc1).filter(|stats| !stats.expert_tokens.is_empty())?;
        Some(ExpertTokens::new(layer, stats.expert_tokens.clone()))
    };
    observed.layers.iter().enumerate().filter_map(tokens).collect()
}

/// That calibration has not seen enough, where it has not.
pub(super) fn warning(experts: &[ExpertTokens]) -> Option<String> {
    let sum = |of: &dyn Fn(&ExpertTokens) -> usize| experts.iter().map(of).sum::<usize>() as u64;
    let (few, none, all) = (sum(&|e| e.few.len()), sum(&|e| e.none.len()), sum(&|e| e.tokens.len()));
    let worst = experts.iter().max_by_key(|e| (e.few.len(), std::cmp::Reverse(e.layer))).filter(|_| few > 0)?;
    let shown: Vec<String> = worst.few.iter().take(8).map(ToString::to_string).collect();
    let more = if worst.few.len() > shown.len() { ", ..." } else { "" };
    Some(format!(
        "{} of {} experts saw fewer than {FEW} tokens or less than 1 % of the mean, {} of them none; most in layer {} ({}{more}): \
         calibrate on more text, or with --all-experts",
        count(few),
        count(all),
        count(none),
        worst.layer,
        shown.join(", "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_is_less_than_ten_tokens_or_a_hundredth_of_the_mean() {
        let got = ExpertTokens::new(3, vec![10, 9, 0, 11]);
        assert_eq!((got.few, got.none), (vec![1, 2], vec![2]));
        // The mean is 2,005.
        let got = ExpertTokens::new(3, vec![4000, 19, 21, 3980]);
        assert_eq!((got.few.as_slice(), got.none.len()), ([1].as_slice(), 0));
        assert_eq!(ExpertTokens::new(0, Vec::new()).few, [0; 0]);
    }

    #[test]
    fn the_warning_names_the_worst_layer() {
        let experts = [ExpertTokens::new(1, vec![50; 4]), ExpertTokens::new(4, vec![0, 50, 1, 50])];
        assert_eq!(warning(&experts[..1]), None);
        let text = warning(&experts).unwrap();
        assert!(text.starts_with("2 of 8 experts") && text.contains("1 of them none"), "{text}");
        assert!(text.contains("most in layer 4 (0, 2)"), "{text}");
        assert_eq!(warning(&[]), None);
    }
}
