use super::*;
use serde_json::Value;

const CASES: &str = include_str!("../../tests/sampling/cases.json");

fn floats(value: &Value) -> Vec<f32> {
    let float = |x: &Value| x.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32);
    value.as_array().unwrap().iter().map(float).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn sampling_of(case: &Value) -> Sampling {
    let float = |name: &str| case[name].as_f64().unwrap() as f32;
    Sampling {
        temperature: float("temperature"),
        top_k: case["top_k"].as_u64().unwrap() as usize,
        top_p: float("top_p"),
        min_p: float("min_p"),
        repetition_penalty: float("repetition_penalty"),
        seed: 0,
    }
}

#[test]
fn the_tokens_left_and_their_scores_are_transformers() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() >= 100);
    for case in cases {
        let sampling = sampling_of(&case);
        let mut scores = floats(&case["logits"]);
        penalize(&mut scores, &ids(&case["history"]), sampling.repetition_penalty);
        for score in &mut scores {
            *score /= sampling.temperature;
        }
        let kept = kept(&scores, &sampling);
        let kept_ids: Vec<u32> = kept.iter().map(|&(id, _)| id).collect();
        assert_eq!(kept_ids, ids(&case["kept"]), "{case}");
        // Both sides divide f32 by f32: the scores are equal, not close.
        let kept_scores: Vec<f32> = kept.iter().map(|&(_, score)| score).collect();
        assert_eq!(kept_scores, floats(&case["scores"]), "{case}");
    }
}

#[test]
fn every_draw_is_a_token_left_and_frequencies_are_probabilities() {
    let logits = [1.0, 3.0, f32::NAN, 2.0, f32::NEG_INFINITY, 2.5];
    let sampling = Sampling { temperature: 0.8, top_k: 3, seed: 7, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut counts = [0_u32; 6];
    let n = 20_000;
    for _ in 0..n {
        counts[sampler.sample(&logits, &[]).id as usize] += 1;
    }
    let weight = |logit: f64| (logit / 0.8).exp();
    let total = weight(3.0) + weight(2.5) + weight(2.0);
    for (id, logit) in [(1, 3.0), (5, 2.5), (3, 2.0)] {
        let expected = weight(logit) / total;
        // Five standard deviations of a count.
        let tolerance = 5.0 * (expected * (1.0 - expected) / f64::from(n)).sqrt();
        assert!((f64::from(counts[id]) / f64::from(n) - expected).abs() < tolerance, "{counts:?}");
    }
    assert_eq!(counts[0] + counts[2] + counts[4], 0);
}

#[test]
fn a_seed_gives_the_same_tokens_for_ever() {
    let logits: Vec<f32> = (0..50).map(|i| ((i * 37) % 50) as f32 / 10.0).collect();
    let draws = |seed| -> Vec<u32> {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..12).map(|_| sampler.sample(&logits, &[]).id).collect()
    };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
    // From make_cases.py, which has its own ChaCha20.
    let known: Value = serde_json::from_str(include_str!("../../tests/sampling/draws.json")).unwrap();
    assert_eq!(draws(20_261_122), ids(&known["ids"]));
}

#[test]
fn the_block_function_is_that_of_rfc_8439() {
    // Section 2.3.2: key 00..1f, nonce 000000090000004a00000000, counter 1.
    let mut state = ChaCha::new(0).state;
    for (i, word) in state[4..12].iter_mut().enumerate() {
        let byte = 4 * i as u32;
        *word = byte | (byte + 1) << 8 | (byte + 2) << 16 | (byte + 3) << 24;
    }
    state[12..].copy_from_slice(&[1, 0x0900_0000, 0x4a00_0000, 0]);
    let expected = [
        0xe4e7_f110,
        0x1559_3bd1,
        0x1fdd_0f50,
        0xc471_20a3,
        0xc7f4_d1c7,
        0x0368_c033,
        0x9aaa_2204,
        0x4e6c_d4c3,
        0x4664_82d2,
        0x09aa_9f07,
        0x05d7_c214,
        0xa202_8bd9,
        0xd19c_12b5,
        0xb94e_16de,
        0xe883_d0cb,
        0x4e3c_50a2,
    ];
    assert_eq!(block(&state), expected);
}

#[test]
fn the_default_takes_the_first_of_the_most_likely() {
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    let logits = [f32::NAN, 1.0, 2.0, 2.0, f32::NEG_INFINITY];
    let sampled = sampler.sample(&logits, &[2]);
    assert_eq!(sampled.id, 2);
    let expected = 2.0 - (1_f64.exp() + 2.0 * 2_f64.exp()).ln();
    assert!((f64::from(sampled.logprob) - expected).abs() < 1e-6);
    assert_eq!(argmax(&[f32::NAN, f32::NAN]), 0);
    assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
    assert_eq!(argmax(&[1.0, f32::INFINITY, f32::INFINITY]), 1);
    assert_eq!(argmax(&[]), 0);
}

#[test]
fn the_penalty_applies_to_the_choice_and_not_to_the_log_probability() {
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling).unwrap();
    let logits = [3.0, 2.0];
    let sampled = sampler.sample(&logits, &[0, 0, 9]);
    assert_eq!(sampled, Sampled { id: 1, logprob: logprob(&logits, 1) });
}

#[test]
fn log_probabilities_of_any_logits_are_numbers_up_to_zero() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for logits in
        [vec![1000.0, -1000.0], vec![inf, 1.0, inf], vec![-inf, -inf], vec![nan], vec![nan, 0.0], vec![f32::MAX; 3]]
    {
        for id in 0..=logits.len() as u32 {
            let value = logprob(&logits, id);
            assert!(value <= 0.0, "{logits:?} {id} {value}");
        }
        assert!(Sampler::new(Sampling { temperature: 0.5, ..Sampling::default() }).is_ok_and(|mut sampler| {
            let sampled = sampler.sample(&logits, &[]);
            (sampled.id as usize) < logits.len() && sampled.logprob <= 0.0
        }));
    }
    assert_eq!(logprob(&[inf, 1.0, inf], 0), -(2_f32.ln()));
    assert_eq!(logprob(&[nan, 0.0], 1), 0.0);
}

#[test]
fn the_most_likely_are_in_order_and_equal_ones_by_id() {
    let logits = [1.0, 5.0, f32::NAN, 5.0, 0.0, 3.0];
    let top: Vec<u32> = top_logprobs(&logits, 4).iter().map(|&(id, _)| id).collect();
    assert_eq!(top, [1, 3, 5, 0]);
    assert!(top_logprobs(&logits, 4).iter().all(|&(id, value)| value == logprob(&logits, id)));
    assert_eq!(top_logprobs(&logits, 100).len(), 6);
    assert_eq!(top_logprobs(&logits, 100)[5], (2, f32::NEG_INFINITY));
    assert_eq!(top_logprobs(&logits, 0), []);
    assert_eq!(top_logprobs(&[], 3), []);
}

#[test]
fn all_wrong_options_are_named_at_once() {
    let sampling =
        Sampling { temperature: -1.0, top_k: 0, top_p: 1.5, min_p: f32::NAN, repetition_penalty: 0.0, seed: 0 };
    let expected = "temperature: expected 0 or more, found -1; top-p: expected 0 to 1, found 1.5; \
                    min-p: expected 0 to 1, found NaN; repetition penalty: expected more than 0, found 0";
    assert_eq!(Sampler::new(sampling).unwrap_err().to_string(), expected);
}
