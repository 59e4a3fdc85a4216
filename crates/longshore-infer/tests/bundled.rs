//! The engine on the model that the repository bundles: against what transformers computed with it, and against itself.

use longshore_convert::source::Source;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::cache::Sequence;
use longshore_infer::error::Error;
use longshore_infer::generate::{GenerateOptions, generate};
use longshore_infer::memory::Demand;
use longshore_infer::model::{Model, ModelOptions, Positions, Run};
use longshore_infer::resume::{Place, Resumed, SavedPass, Saving, key};
use longshore_infer::sample::{Sampler, Sampling};
use longshore_infer::schedule::Schedule;
use longshore_infer::sweep::{Sweep, SweepOptions};
use longshore_infer::tokenizer::Tokenizer;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m")
}

fn model(precision: Precision, dt_min: Option<f32>, memory: Option<(u64, Demand)>) -> Result<Arc<Model<Cpu>>, Error> {
    let source = Source::open(&folder(), None, false).expect("the bundled model opens");
    let backend = Cpu::new(2, precision).expect("threads start");
    Model::load(source, backend, &ModelOptions { dt_min, memory, threads: 2, quant: None, packed: false })
}

#[derive(serde::Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
}

/// A prompt; for every position the five largest logits; the tokens that follow.
#[derive(serde::Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    tops: Vec<Vec<(usize, f32)>>,
    greedy: Vec<u32>,
}

#[test]
fn transformers_logits_and_tokens_are_ours() {
    let reference: Reference = serde_json::from_str(include_str!("bundled/reference.json")).expect("a reference");
    let tokenizer = Tokenizer::load(&folder()).expect("a tokenizer").expect("a tokenizer");
    // transformers clamps the time steps of prompts by the config's `time_step_min`.
    let model = model(Precision::Float32, Some(0.001), None).expect("a model");
    let options = GenerateOptions {
        max_new: 32,
        stop: Vec::new(),
        chunk: 5,
        top_logprobs: 0,
        scratch: std::env::temp_dir(),
        candidates: usize::MAX,
    };
    for prompt in reference.prompts {
        assert_eq!(tokenizer.encode(&prompt.text, true).expect("ids"), prompt.ids);
        let mut sequence = Sequence::new();
        let run = Run { sequence: &mut sequence, ids: &prompt.ids, prefill: true, keep_trail: false };
        let logits = model.step(&mut [run], Positions::All).expect("a step").logits;
        for (row, top) in logits.chunks_exact(model.vocab()).zip(&prompt.tops) {
            for (id, want) in top {
                // The logits have a deviation of 3.
                assert!((row[*id] - want).abs() <= 6e-5, "{}: {} instead of {want}", prompt.text, row[*id]);
            }
        }
        let mut samplers = [Sampler::new(Sampling::default()).expect("greedy")];
        let out = generate(&model, &[prompt.ids], &options, &mut samplers, &mut |_, _| true).expect("tokens");
        let got: Vec<u32> = out.texts[0].0.iter().map(|t| t.id).collect();
        assert_eq!(got, prompt.greedy, "{}", prompt.text);
    }
}

/// The model in the least memory that it can do with.
fn smallest(precision: Precision, demand: &Demand) -> Arc<Model<Cpu>> {
    // A tenth of the checkpoint at first, then what the error says is needed.
    let mut budget = 2 << 20;
    loop {
        match model(precision, None, Some((budget, demand.clone()))) {
            Ok(model) => return model,
            Err(Error::Memory { needed, .. }) => budget = needed,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Nine prompts of 70 tokens, and a model in the least memory that they can do with.
fn tight(precision: Precision) -> (Vec<Vec<u32>>, Arc<Model<Cpu>>) {
    let prompts: Vec<Vec<u32>> = (0..9).map(|p| (0..70).map(|i| (p * 131 + i * 7) % 4096).collect()).collect();
    let model = smallest(precision, &Schedule::whole(&prompts, 64).demand(8));
    assert_eq!(model.resident_bytes(), 0);
    (prompts, model)
}

#[test]
fn a_sweep_reads_every_weight_once() {
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let (prompts, model) = tight(precision);
        let options = SweepOptions { batch_tokens: 64, scratch: std::env::temp_dir() };
        let mut sweep = Sweep::new(&model, &prompts, &options, false).expect("a sweep");
        assert!(sweep.spilled_bytes() > 0);
        let before = model.source().bytes_read();
        sweep.run(&mut ()).expect("layers");
        let mut rows = 0;
        sweep.each_logits(8, |_, _| true, |_, _, _| rows += 1).expect("logits");
        assert_eq!(rows, 630);
        let read = model.source().bytes_read() - before;
        // All tensors but the embedding, whose rows were read before, and the final norm, which was read at the start.
        let catalog = &model.source().catalog;
        let tensors = catalog
            .tensors
            .iter()
            .filter(|(n, _)| !matches!(n.as_str(), "backbone.embeddings.weight" | "backbone.norm_f.weight"));
        let stored: u64 = tensors.clone().map(|(_, t)| t.size()).sum();
        // Norms, biases and the scan's parameters become float32.
        let vectors: u64 =
            tensors.filter(|(_, t)| t.shape.len() != 2 && t.dtype.size() == 2).map(|(_, t)| t.size()).sum();
        assert_eq!(read, stored + vectors, "{precision:?}");
    }
}

#[test]
fn a_sweep_goes_on_in_another_process_with_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = Place { beside: &folder.path().join("out"), mark: ".evaluation-" };
    let options = SweepOptions { batch_tokens: 64, scratch: folder.path().to_owned() };
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let (prompts, model) = tight(precision);
        let stream = |sweep: &Sweep<Cpu>| -> Vec<u32> {
            let rows = |batch| sweep.hidden(batch).expect("rows").1;
            (0..sweep.n_batches()).flat_map(rows).map(f32::to_bits).collect()
        };
        let mut whole = Sweep::new(&model, &prompts, &options, false).expect("a sweep");
        whole.run(&mut ()).expect("layers");
        let key = key(model.source(), &prompts, &precision.arithmetic()).expect("a key");
        let mut begun = 0;
        loop {
            let mut saved = SavedPass::open(place, &key, Duration::ZERO).expect("a folder").0;
            let mut sweep = Sweep::new(&model, &prompts, &options, false).expect("a sweep");
            assert!(sweep.spilled_bytes() > 0);
            match sweep.resume(&mut saved, |_, ()| true).expect("a state") {
                Resumed::Layers(layers) => assert_eq!(layers.len(), begun * 5),
                other => assert!(other == Resumed::Nothing && begun == 0, "{other:?}"),
            }
            // Five layers a process.
            let goes_on = (0..5).all(|_| {
                let is_layer = sweep.next_layer(&mut ()).expect("a layer");
                assert!(!is_layer || matches!(sweep.save(&mut saved, &()), Saving::Saved));
                is_layer
            });
            if !goes_on {
                assert!(stream(&sweep) == stream(&whole), "{precision:?}");
                saved.discard().expect("it goes");
                break;
            }
            begun += 1;
        }
        assert!(begun > 1);
    }
}

#[test]
fn shared_beginnings_change_no_bit() {
    // Long beginnings, short ones, a prompt that is another's beginning, equal ones, one alone.
    let prompt = |begin: u32, shared: u32, len: u32| -> Vec<u32> {
        let own = |i| if i < shared { begin * 131 + i * 7 } else { begin + len * 17 + i * 13 };
        (0..len).map(|i| own(i) % 4096).collect()
    };
    let beginnings = [(1, 150), (2, 20), (3, 9), (4, 40)];
    let alike = |(begin, shared)| (0..5).map(move |i| prompt(begin, shared, shared + 1 + i * 11));
    let prompts: Vec<Vec<u32>> = (0..4)
        .flat_map(|i| beginnings.map(|b| alike(b).nth(i).expect("five")))
        .chain([prompt(1, 150, 140), prompt(9, 0, 30), prompt(9, 0, 30)])
        .collect();
    let scratch = tempfile::tempdir().expect("a folder");
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let last_logits = |model: &Arc<Model<Cpu>>, schedule: Schedule| {
            let mut sweep = Sweep::over(model, &prompts, schedule, scratch.path()).expect("a sweep");
            sweep.run(&mut ()).expect("layers");
            let mut logits = vec![Vec::new(); prompts.len()];
            let last = |prompt: usize, at: usize| at + 1 == prompts[prompt].len();
            let take = |prompt: usize, _, row: &[f32]| logits[prompt] = row.iter().map(|x| x.to_bits()).collect();
            sweep.each_logits(3, last, take).expect("logits");
            logits
        };
        let all = model(precision, None, None).expect("a model");
        let whole = last_logits(&all, Schedule::whole(&prompts, 64));
        assert!(whole.iter().all(|row| !row.is_empty()));
        for batch in [7, 64, 1000] {
            let schedule = Schedule::shared(&prompts, 0, batch);
            assert!(schedule.rows() < prompts.iter().map(Vec::len).sum::<usize>() - 600, "{}", schedule.rows());
            assert!(last_logits(&all, schedule.clone()) == whole, "{precision:?} {batch}");
            // In just enough memory.
            let tight = smallest(precision, &schedule.demand(3));
            assert!(last_logits(&tight, schedule) == whole, "{precision:?} {batch}, little memory");
        }
    }
}

#[test]
fn too_little_memory_is_an_error_that_says_how_much_is_needed() {
    let demand = Demand { states: 1, state_tokens: 10, prompt_tokens: 10, batch_tokens: 10, logits: 1, decode: true };
    let Err(error) = model(Precision::Float32, None, Some((1000, demand))) else { panic!("it fits nowhere") };
    let text = error.to_string();
    assert!(text.contains("are allowed") && text.contains("1000"), "{text}");
}

#[test]
fn ids_beyond_the_vocabulary_and_empty_prompts_are_refused() {
    let model = model(Precision::Float32, None, None).expect("a model");
    let options = SweepOptions { batch_tokens: 64, scratch: std::env::temp_dir() };
    let error = |prompts: &[Vec<u32>]| match Sweep::new(&model, prompts, &options, false) {
        Ok(_) => panic!("it is refused"),
        Err(error) => error.to_string(),
    };
    assert_eq!(error(&[vec![1], vec![2, 4096]]), "token 4096 at position 1 of prompt 1: expected an id below 4096");
    assert_eq!(error(&[vec![]]), "prompt 0 has no tokens");
}
