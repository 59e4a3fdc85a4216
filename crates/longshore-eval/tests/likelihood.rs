//! Windows, likelihoods, perplexity and divergence. Reference values are numpy's and scipy's, computed from the definitions.

#![expect(clippy::unwrap_used, reason = "a test's helpers are part of it")]

use longshore_eval::divergence::{Divergence, Position};
use longshore_eval::perplexity::{Perplexity, Window, Windowing, log_probs, nll};
use std::ops::Range;

/// The deviation of window sums from the mean, and the sample deviation, of the six values below.
const CLUSTERED: f64 = 0.473_242_362_150_022_8;
const BY_TOKEN: f64 = 0.559_016_994_374_947_5;

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} {b}");
}

fn scored(windowing: Windowing, tokens: usize) -> Vec<(Range<usize>, Range<usize>)> {
    windowing.windows(tokens).unwrap().into_iter().map(|w| (w.tokens, w.scored)).collect()
}

#[test]
fn whole_windows_lie_side_by_side_and_drop_the_rest() {
    assert_eq!(scored(Windowing::Whole { length: 4 }, 11), [(0..4, 1..4), (4..8, 5..8)]);
    assert_eq!(Windowing::default(), Windowing::Whole { length: 2048 });
    // The 341469 tokens of wikitext-2's test split for Llama: 166 windows in the papers' code.
    assert_eq!(Windowing::default().windows(341_469).unwrap().len(), 166);
}

#[test]
fn strided_windows_score_each_token_but_the_first_once() {
    let windows = scored(Windowing::Strided { length: 4, stride: 2 }, 9);
    assert_eq!(windows, [(0..4, 1..4), (2..6, 4..6), (4..8, 6..8), (6..9, 8..9)]);
    for (tokens, length, stride) in [(9, 4, 3), (100, 7, 5), (12, 5, 1), (64, 16, 15), (3, 10, 4)] {
        let windows = Windowing::Strided { length, stride }.windows(tokens).unwrap();
        let all: Vec<usize> = windows.iter().flat_map(|w| w.scored.clone()).collect();
        assert_eq!(all, (1..tokens).collect::<Vec<_>>(), "{tokens} {length} {stride}");
        let inside =
            |w: &Window| w.tokens.len() <= length && w.scored.start > w.tokens.start && w.tokens.end == w.scored.end;
        assert!(windows.iter().all(inside));
    }
    // Side by side, with the rest; a rest of one token has nothing before it.
    assert_eq!(scored(Windowing::Strided { length: 4, stride: 4 }, 10), [(0..4, 1..4), (4..8, 5..8), (8..10, 9..10)]);
    assert_eq!(scored(Windowing::Strided { length: 4, stride: 4 }, 9), [(0..4, 1..4), (4..8, 5..8)]);
}

#[test]
fn llama_cpps_windows_score_their_second_half() {
    let windows = Windowing::LlamaCpp { length: 512 }.windows(1300).unwrap();
    assert_eq!((windows.len(), windows[1].tokens.clone(), windows[1].scored.clone()), (2, 512..1024, 769..1024));
    assert!(windows.iter().all(|w| w.begin_of_text && w.scored.len() == 512 - 512 / 2 - 1));
    assert_eq!(scored(Windowing::LlamaCpp { length: 5 }, 5), [(0..5, 3..5)]);
}

#[test]
fn windows_that_score_nothing_are_refused() {
    let error = |w: Windowing, tokens| w.windows(tokens).unwrap_err().to_string();
    assert_eq!(error(Windowing::default(), 2047), "a text of 2047 tokens is too short for a window of 2048");
    assert_eq!(error(Windowing::Whole { length: 1 }, 9), "a window of 1 tokens scores nothing; it takes 2");
    assert_eq!(error(Windowing::LlamaCpp { length: 2 }, 9), "a window of 2 tokens scores nothing; it takes 3");
    for stride in [0, 5] {
        assert!(error(Windowing::Strided { length: 4, stride }, 9).starts_with("expected a stride of 1 to 4"));
    }
    assert!(Windowing::Strided { length: 4, stride: 2 }.windows(1).is_err());
    assert!(Windowing::Whole { length: usize::MAX }.windows(9).is_err());
}

#[test]
fn likelihoods_are_those_of_a_softmax_in_f64() {
    let row = [1.5, -2.0, 0.25, 3.0];
    let mut logs = Vec::new();
    log_probs(&row, &mut logs);
    let expected = [1.757_580_508_495_379_3, 5.257_580_508_495_379, 3.007_580_508_495_379, 0.257_580_508_495_379_2];
    for (target, expected) in expected.into_iter().enumerate() {
        close(nll(&row, target as u32).unwrap(), expected);
        close(-logs[target], expected);
    }
    close(nll(&[1000.0, -1000.0, 999.0], 1).unwrap(), 2_000.313_261_687_518_2);
    assert_eq!(nll(&[0.0, f32::NEG_INFINITY], 1).unwrap(), f64::INFINITY);
    assert_eq!(nll(&row, 4).unwrap_err().to_string(), "token 4 is outside the vocabulary of 4");
    for bad in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
        assert!(nll(&bad, 1).is_err(), "{bad:?}");
    }
}

#[test]
fn perplexities_and_their_errors_are_those_of_their_definitions() {
    let mut text = Perplexity::default();
    for window in [&[2.0, 1.0][..], &[3.5, 0.5, 2.5], &[], &[4.0]] {
        text.add_window(window).unwrap();
    }
    let figures = text.figures(Some(3), Some(27)).unwrap();
    assert_eq!((figures.tokens, figures.windows), (6, 3));
    close(figures.nll, 2.25);
    close(figures.nll_error.unwrap(), CLUSTERED);
    close(figures.perplexity, 2.25f64.exp());
    close(figures.perplexity_error.unwrap(), 2.25f64.exp() * CLUSTERED);
    close(figures.perplexity_error_by_token.unwrap(), 2.25f64.exp() * BY_TOKEN);
    close(figures.word_perplexity.unwrap(), 4.5f64.exp());
    close(figures.byte_perplexity.unwrap(), 0.5f64.exp());
    close(figures.bits_per_byte.unwrap(), 0.5 / 2f64.ln());
    close(figures.bits_per_byte_error.unwrap(), CLUSTERED * 6.0 / 27.0 / 2f64.ln());
    let without = text.figures(None, Some(0)).unwrap();
    assert_eq!((without.word_perplexity, without.byte_perplexity, without.bits_per_byte_error), (None, None, None));
}

#[test]
fn one_window_has_no_clustered_error_and_nothing_no_figures() {
    let mut text = Perplexity::default();
    assert_eq!(text.figures(None, None), None);
    assert!(text.add_window(&[1.0, f64::NAN]).is_err());
    assert_eq!(text.figures(None, None), None);
    text.add_window(&[1.0, 2.0]).unwrap();
    let figures = text.figures(None, None).unwrap();
    assert_eq!((figures.nll_error, figures.perplexity_error), (None, None));
    close(figures.perplexity_error_by_token.unwrap(), 1.5f64.exp() * 0.5);
}

fn rows(base: &[f32], other: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let (mut p, mut q) = (Vec::new(), Vec::new());
    log_probs(base, &mut p);
    log_probs(other, &mut q);
    (p, q)
}

#[test]
fn divergences_are_those_of_their_definitions() {
    let (p, q) = rows(&[1.5, -2.0, 0.25, 3.0], &[1.0, 0.5, -1.0, 2.5]);
    let position = Position::of(&p, &q, 2).unwrap();
    close(position.kl, 0.092_195_423_693_634_25);
    close(position.reverse_kl, 0.205_301_777_451_758_23);
    close(position.nll_difference, p[2] - q[2]);
    assert!(position.same_top);
    let equal = Position::of(&p, &p, 0).unwrap();
    assert_eq!((equal.kl, equal.reverse_kl, equal.nll_difference), (0.0, 0.0, 0.0));
    // Logits that tie: the first counts.
    let (p, q) = rows(&[1.0, 1.0, 0.0], &[1.0, 0.5, 0.0]);
    assert!(Position::of(&p, &q, 0).unwrap().same_top);
    let (p, q) = rows(&[1.0, 1.0, 0.0], &[0.5, 1.0, 0.0]);
    assert!(!Position::of(&p, &q, 0).unwrap().same_top);
}

#[test]
fn what_only_one_model_rules_out_is_infinitely_far() {
    let (p, q) = rows(&[0.0, f32::NEG_INFINITY], &[0.0, 0.0]);
    let position = Position::of(&p, &q, 0).unwrap();
    close(position.kl, 2f64.ln());
    assert_eq!(position.reverse_kl, f64::INFINITY);
    assert!(Position::of(&p, &q[..1], 0).is_err());
    assert!(Position::of(&p, &q, 2).is_err());
    let (p, q) = rows(&[0.0, f32::NAN], &[0.0, 0.0]);
    assert!(Position::of(&p, &q, 0).is_err());
}

#[test]
fn a_summary_has_numpys_quantiles_and_errors_by_window() {
    let position = |i: u32| Position {
        kl: f64::from(i * i) / 1000.0,
        reverse_kl: 2.0,
        same_top: !i.is_multiple_of(4),
        nll_difference: if i <= 1000 { 0.5 } else { -0.25 },
    };
    let mut text = Divergence::default();
    assert_eq!(text.summary(), None);
    text.add_window(&[]);
    text.add_window(&(1..=1000).map(position).collect::<Vec<_>>());
    text.add_window(&(1001..=2000).map(position).collect::<Vec<_>>());
    let summary = text.summary().unwrap();
    assert_eq!((summary.positions, summary.windows), (2000, 2));
    close(summary.kl.mean, 2001.0 * 4001.0 / 6.0 / 1000.0);
    let quantiles = [summary.kl_median, summary.kl_p99, summary.kl_p999, summary.kl_max];
    for (found, expected) in quantiles.into_iter().zip([1001.0005, 3920.43961, 3_992.007_997, 4000.0]) {
        close(found, expected);
    }
    assert_eq!((summary.reverse_kl.mean, summary.reverse_kl.error), (2.0, Some(0.0)));
    assert_eq!((summary.same_top.mean, summary.same_top.error), (0.75, Some(0.0)));
    // Two windows that differ: half of their distance.
    close(summary.nll_difference.mean, 0.125);
    close(summary.nll_difference.error.unwrap(), 0.375);
}
