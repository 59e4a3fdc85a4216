//! What quantization did to the outputs: source and result side by side on a text that nothing was calibrated on.

use crate::cli::run::EngineArgs;
use crate::engine::{Opened, scratch};
use crate::report::{Live, Report};
use crate::units::counted;
use anyhow::Result;
use longshore_infer::compare::{self, Comparison};
use longshore_infer::schedule::Schedule;
use longshore_infer::sweep::SweepOptions;
use serde::Serialize;

/// Passages that were written for this project, of which none is in the text for calibration.
const HELD_OUT: &str = include_str!("../held_out.txt");
/// The line between passages.
const BETWEEN: &str = "\n----\n";
/// Tokens of a passage at most, which matters to tokenizers of bytes.
const LONGEST: usize = 1024;

/// How the result's outputs differ from the source's.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outputs {
    /// What they were computed on.
    pub(super) text: String,
    /// Its positions.
    pub(super) tokens: u64,
    /// Mean of KL(source || result) over the positions, in nats.
    pub(super) kl_mean: f64,
    /// The largest.
    pub(super) kl_max: f64,
    /// Mean of KL(result || source), in nats.
    pub(super) kl_reverse_mean: f64,
    /// Positions with the same most likely token, of all.
    pub(super) top1_agreement: f64,
    /// Perplexity of the source and of the result; `None` on ids that are no text.
    pub(super) perplexity: Option<[f64; 2]>,
    /// Of the residual stream after each layer.
    pub(super) layers: Vec<OutputRow>,
}

/// The residual stream after a layer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OutputRow {
    pub(super) layer: usize,
    /// The layer's letter in Megatron's pattern.
    pub(super) kind: char,
    pub(super) sqnr_db: Option<f64>,
    /// Largest absolute error.
    pub(super) max_error: f64,
    /// Standard deviation of the source's values.
    pub(super) deviation: f64,
    /// Tokens that the router sent to other experts, of all.
    pub(super) rerouted: Option<f64>,
}

/// Runs both models in step.
pub(super) fn compare(
    source: Opened,
    result: Opened,
    engine: &EngineArgs,
    report: &Report,
    silent: &Report,
) -> Result<Outputs> {
    let (prompts, text) = prompts(&source)?;
    let demand = Schedule::whole(&prompts, engine.batch_tokens as usize).demand(32);
    let options = SweepOptions { batch_tokens: engine.batch_tokens as usize, scratch: scratch(engine) };
    let is_text = source.tokenizer.is_some();
    let source = source.load(engine, demand.clone(), 2, silent)?.model;
    let result = result.load(engine, demand, 2, silent)?.model;
    let layers = source.n_layers();
    let show = report.progress() == Live::Redraw;
    let mut after = |layer: usize| {
        if show {
            report.live(&format!("Comparing  layer {} of {layers}", layer + 1));
        }
    };
    let compared = compare::compare([&source, &result], &prompts, &options, true, &mut after);
    report.live("");
    Ok(summary(&compared?, text, is_text))
}

/// The held-out text as ids, a row for each passage; without a tokenizer ids by a formula, on which the models still
/// differ, if not as they do on text.
fn prompts(source: &Opened) -> Result<(Vec<Vec<u32>>, String)> {
    let Some(tokenizer) = &source.tokenizer else {
        let vocab = source.source.model.config.vocab_size.max(1);
        let row = |p: u64| (0..64).map(|i| ((i * i * 5 + i * 37 + p * 101 + 11) % vocab) as u32).collect();
        return Ok(((0..4).map(row).collect(), "4 rows of ids by a formula, for there is no tokenizer".to_owned()));
    };
    let mut prompts = Vec::new();
    for passage in HELD_OUT.split(BETWEEN) {
        let mut ids = tokenizer.encode(passage.trim(), true)?;
        ids.truncate(LONGEST);
        prompts.push(ids);
    }
    let text = counted(prompts.len() as u64, "held-out passage");
    Ok((prompts, text))
}

fn summary(compared: &Comparison, text: String, is_text: bool) -> Outputs {
    let prompts = &compared.prompts;
    let tokens: usize = prompts.iter().map(|p| p.positions).sum();
    let mean = |of: &dyn Fn(usize) -> f64| (0..prompts.len()).map(of).sum::<f64>() / tokens.max(1) as f64;
    let predicted = prompts.iter().map(|p| p.positions.saturating_sub(1)).sum::<usize>();
    let perplexity = |of: usize| (prompts.iter().map(|p| p.nll[of]).sum::<f64>() / predicted.max(1) as f64).exp();
    let layers = compared.layers.iter().map(|l| OutputRow {
        layer: l.layer,
        kind: l.kind,
        sqnr_db: l.distortion.sqnr(),
        max_error: l.hidden.max,
        deviation: l.hidden.deviation,
        rerouted: l.routes.map(|(other, all)| other as f64 / all.max(1) as f64),
    });
    Outputs {
        text,
        tokens: tokens as u64,
        kl_mean: mean(&|i| prompts[i].kl_mean * prompts[i].positions as f64),
        kl_max: prompts.iter().map(|p| p.kl_max).fold(0.0, f64::max),
        kl_reverse_mean: mean(&|i| prompts[i].kl_reverse_mean * prompts[i].positions as f64),
        top1_agreement: mean(&|i| prompts[i].same_top as f64),
        perplexity: (is_text && predicted > 0).then(|| [perplexity(0), perplexity(1)]),
        layers: layers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_infer::compare::{Difference, PromptDifference};

    fn prompt(positions: usize, kl_mean: f64, same_top: usize, nll: [f64; 2]) -> PromptDifference {
        let logits = Difference::default();
        let (kl_max, kl_reverse_mean, each) = (2.0 * kl_mean, 3.0 * kl_mean, Vec::new());
        PromptDifference { positions, logits, kl_mean, kl_max, kl_reverse_mean, nll, same_top, each }
    }

    #[test]
    fn means_are_over_positions_and_not_over_passages() {
        let nll = [8.0 * 2f64.ln(), 8.0 * 4f64.ln()];
        let prompts = vec![prompt(3, 0.1, 3, [0.0; 2]), prompt(7, 0.3, 2, nll)];
        let got = summary(&Comparison { layers: Vec::new(), prompts }, String::new(), true);
        assert_eq!(got.tokens, 10);
        assert!((got.kl_mean - 0.24).abs() < 1e-12 && (got.kl_reverse_mean - 0.72).abs() < 1e-12);
        assert_eq!((got.kl_max, got.top1_agreement), (0.6, 0.5));
        // The last position of a passage predicts nothing: 8 of 10 do.
        let [source, result] = got.perplexity.unwrap();
        assert!((source - 2.0).abs() < 1e-12 && (result - 4.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_to_compare_is_no_division_by_zero() {
        let got = summary(&Comparison::default(), String::new(), true);
        assert_eq!((got.kl_mean, got.top1_agreement, got.perplexity), (0.0, 0.0, None));
    }

    #[test]
    fn the_held_out_text_is_passages_that_calibration_has_not() {
        let calibration = include_str!("../../../calibration/default.jsonl");
        let passages: Vec<&str> = HELD_OUT.split(BETWEEN).map(str::trim).collect();
        assert!(passages.len() >= 8 && (8000..12_500).contains(&HELD_OUT.len()), "{}", HELD_OUT.len());
        for passage in passages {
            assert!(passage.chars().count() > 300, "{passage}");
            let words: Vec<&str> = passage.split_whitespace().collect();
            // No eight words in a row.
            assert!(words.windows(8).all(|words| !calibration.contains(&words.join(" "))), "{passage}");
        }
    }
}
