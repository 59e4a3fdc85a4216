//! Llama models: against what transformers computed (`reference.json`, which `make_reference.py` wrote), against themselves,
//! and on the trained model of the shared data, where it is present.

#![expect(clippy::print_stderr, reason = "a test says what it skips")]

mod folder;
#[path = "../../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;

use longshore_convert::source::Source;
use longshore_infer::backend::Backend;
use longshore_infer::backend::cpu::isa::Isa;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::cache::Sequence;
use longshore_infer::error::Error;
use longshore_infer::generate::{GenerateOptions, generate};
use longshore_infer::layers::Norm;
use longshore_infer::memory::Demand;
use longshore_infer::model::{Model, ModelOptions, Positions, Run};
use longshore_infer::sample::{Sampler, Sampling};
use longshore_infer::sweep::{Sweep, SweepOptions};
use longshore_infer::tokenizer::Tokenizer;
use shared_data::shared;
use std::path::Path;
use std::sync::Arc;

const REFERENCE: &str = include_str!("reference.json");

/// A prompt; the deviation of its logits, for every position the five largest, the tokens that follow.
#[derive(serde::Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    deviation: f32,
    tops: Vec<Vec<(usize, f32)>>,
    greedy: Vec<u32>,
}

fn prompts() -> Vec<Prompt> {
    let reference: serde_json::Value = serde_json::from_str(REFERENCE).expect("a reference");
    serde_json::from_value(reference["prompts"].clone()).expect("prompts")
}

/// The small model.
fn small() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    folder::write(dir.path());
    dir
}

fn load(
    folder: &Path,
    (precision, isa, threads): (Precision, Isa, usize),
    memory: Option<(u64, Demand)>,
) -> Result<Arc<Model<Cpu>>, Error> {
    let source = Source::open(folder, None, false).expect("the model opens");
    let backend = Cpu::with_isa(threads, precision, isa).expect("threads start");
    Model::load(source, backend, &ModelOptions { threads, memory, ..ModelOptions::default() })
}

fn model(folder: &Path, precision: Precision) -> Arc<Model<Cpu>> {
    load(folder, (precision, Isa::detect(), 2), None).expect("the model loads")
}

fn greedy(model: &Arc<Model<Cpu>>, ids: &[u32], max_new: usize) -> Vec<u32> {
    let options = GenerateOptions {
        max_new,
        stop: Vec::new(),
        chunk: 3,
        top_logprobs: 0,
        scratch: std::env::temp_dir(),
        candidates: usize::MAX,
    };
    let mut samplers = [Sampler::new(Sampling::default()).expect("greedy")];
    let out = generate(model, &[ids.to_vec()], &options, &mut samplers, &mut |_, _| true).expect("tokens");
    out.texts[0].0.iter().map(|token| token.id).collect()
}

/// All logits of a prompt, read in pieces of `cut` tokens.
fn logits(model: &Arc<Model<Cpu>>, ids: &[u32], cut: usize) -> Vec<f32> {
    let mut sequence = Sequence::new();
    let step = |ids| {
        let run = Run { sequence: &mut sequence, ids, prefill: true, keep_trail: false };
        model.step(&mut [run], Positions::All).expect("a step").logits
    };
    ids.chunks(cut).flat_map(step).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn transformers_logits_and_tokens_are_ours() {
    let dir = small();
    let model = model(dir.path(), Precision::Float32);
    for prompt in prompts() {
        let got = logits(&model, &prompt.ids, 1000);
        for (row, top) in got.chunks_exact(model.vocab()).zip(&prompt.tops) {
            for (id, want) in top {
                let off = (row[*id] - want).abs() / prompt.deviation;
                assert!(off <= 2e-5, "{} instead of {want}", row[*id]);
            }
        }
        assert_eq!(got.len(), prompt.tops.len() * model.vocab());
        assert_eq!(greedy(&model, &prompt.ids, prompt.greedy.len()), prompt.greedy);
    }
}

#[test]
fn its_norms_round_before_they_multiply_in_bfloat16_alone() {
    let rounds_first = |name| longshore_convert::arch::find(name).expect("an architecture").norms_round_first;
    assert_eq!(["llama", "nemotron_h"].map(rounds_first), [true, false]);
    let (x, weight) = (vec![3.0, -4.0, 0.1, 7.7], vec![1.003, 0.7, 1.3, 0.9]);
    let normed = |precision, rounds_first| {
        let backend = Cpu::new(1, precision).expect("threads start");
        let norm = Norm { weight: backend.vector(weight.clone()), eps: 1e-5, rounds_first };
        let mut out = backend.buffer(1, 4);
        backend.rms_norm(&backend.upload(4, &x), &norm, &mut out);
        backend.download(&out, 0..1)
    };
    let plain = normed(Precision::Float32, false);
    assert_eq!(bits(&normed(Precision::Float32, true)), bits(&plain));
    assert_eq!(bits(&normed(Precision::Bfloat16, false)), bits(&plain));
    assert_ne!(bits(&normed(Precision::Bfloat16, true)), bits(&plain));
}

#[test]
fn schedules_cuts_threads_and_instructions_do_not_change_a_bit() {
    let dir = small();
    let prompts: Vec<Vec<u32>> = prompts().into_iter().map(|p| p.ids).collect();
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let best = Isa::detect();
        let model = load(dir.path(), (precision, best, 1), None).expect("the model loads");
        let want: Vec<Vec<u32>> = prompts.iter().map(|ids| bits(&logits(&model, ids, 1))).collect();
        let others = Isa::available().filter(|&isa| precision == Precision::Float32 || isa == best);
        for (isa, cut) in others.zip([64, 7, 1000, 65]) {
            let other = load(dir.path(), (precision, isa, 3), None).expect("the model loads");
            for (ids, want) in prompts.iter().zip(&want) {
                assert!(bits(&logits(&other, ids, cut)) == *want, "{precision:?} {isa:?}, cut {cut}");
            }
        }
        // Both prompts in one step.
        let mut sequences: Vec<Sequence<Cpu>> = prompts.iter().map(|_| Sequence::new()).collect();
        let runs = sequences.iter_mut().zip(&prompts);
        let mut runs: Vec<_> =
            runs.map(|(sequence, ids)| Run { sequence, ids, prefill: true, keep_trail: false }).collect();
        let together = bits(&model.step(&mut runs, Positions::All).expect("a step").logits);
        assert!(together == want.concat(), "{precision:?} in one step");
        // Layer by layer, nothing resident, activations on disk.
        let demand =
            Demand { states: 2, state_tokens: 200, prompt_tokens: 104, batch_tokens: 16, logits: 5, decode: false };
        let mut budget = 0;
        let tight = loop {
            match load(dir.path(), (precision, best, 2), Some((budget, demand.clone()))) {
                Ok(model) => break model,
                Err(Error::Memory { needed, .. }) => budget = needed,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(tight.resident_layers(), (0, 4));
        let options = SweepOptions { batch_tokens: 16, scratch: std::env::temp_dir() };
        let mut sweep = Sweep::new(&tight, &prompts, &options, false).expect("a sweep");
        assert!(sweep.spilled_bytes() > 0);
        sweep.run(&mut ()).expect("layers");
        let mut swept = Vec::new();
        sweep.each_logits(5, |_, _| true, |_, _, row| swept.extend(bits(row))).expect("logits");
        assert!(swept == want.concat(), "{precision:?} sweep");
    }
}

#[test]
fn tokens_that_are_taken_back_leave_no_position_behind() {
    let dir = small();
    let model = model(dir.path(), Precision::Float32);
    let ids = &prompts()[1].ids;
    let mut sequence = Sequence::new();
    let step = |sequence: &mut Sequence<Cpu>, ids: &[u32]| {
        let run = Run { sequence, ids, prefill: false, keep_trail: true };
        model.step(&mut [run], Positions::All).expect("a step").logits
    };
    step(&mut sequence, &ids[..66]);
    let guesses = [ids[66], 3, 3, 3];
    step(&mut sequence, &guesses);
    model.rewind(&mut sequence, guesses.len(), 1);
    let got = step(&mut sequence, &ids[67..]);
    assert_eq!(bits(&got), bits(&logits(&model, ids, 1000)[67 * model.vocab()..]));
}

#[test]
fn a_trained_model_tells_transformers_story() {
    const STORY: &str = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, \
        red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\"";
    // What transformers 5.23 decodes greedily in float32, and in what text that ends.
    const NEXT: [u32; 78] = [
        432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410, 408, 419, 292, 411, 322,
        265, 282, 295, 433, 426, 385, 328, 432, 358, 394, 261, 370, 432, 352, 266, 268, 388, 426, 338, 391, 266, 267,
        337, 335, 312, 432, 398, 312, 286, 267, 414, 270, 333, 415, 426, 13, 438, 310, 439, 419, 357, 336, 432, 313,
        438, 310, 432, 278, 316, 439, 419, 298, 414, 267, 265, 282,
    ];
    let Some(folder) = shared("data/models/stories260K/hf") else { return };
    let tokenizer = Tokenizer::load(&folder).expect("a tokenizer").expect("a tokenizer");
    let ids = tokenizer.encode("Once upon a time", true).expect("ids");
    assert_eq!(ids, [1, 403, 407, 261, 378]);
    let got = greedy(&model(&folder, Precision::Float32), &ids, 82);
    assert_eq!(got[..78], NEXT);
    assert_eq!(tokenizer.decode(&got, true).expect("text"), STORY);
}
