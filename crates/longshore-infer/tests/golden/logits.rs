//! Logits, residual stream, routing and greedy tokens.

use crate::shared_data::shared;
use longshore_convert::source::Source;
use longshore_infer::backend::cpu::isa::Isa;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::backend::{Backend, Routing};
use longshore_infer::cache::Sequence;
use longshore_infer::error::Error;
use longshore_infer::generate::{GenerateOptions, generate, generate_with_guesses};
use longshore_infer::memory::Demand;
use longshore_infer::model::{Model, ModelOptions, Observer, Positions, Run};
use longshore_infer::mtp::Mtp;
use longshore_infer::sample::{Sampler, Sampling};
use longshore_infer::sweep::{Sweep, SweepOptions};
use safetensors::SafeTensors;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MODELS: [&str; 8] = [
    "nemotron_h_dense",
    "nemotron_h_dtclamp",
    "nemotron_h_moe",
    "nemotron_h_moe_groups",
    "nemotron_h_latent_mtp",
    "nemotron_h_fp32_ssm",
    "llama",
    "llama_tied",
];
/// The bound that the specification sets for float32.
const TOLERANCE: f32 = 2e-5;

fn model_of(folder: &Path, precision: Precision, isa: Isa, threads: usize, dt_min: Option<f32>) -> Arc<Model<Cpu>> {
    let source = Source::open(folder, None, false).expect("a golden model opens");
    let backend = Cpu::with_isa(threads, precision, isa).expect("threads start");
    Model::load(source, backend, &ModelOptions { dt_min, threads, ..ModelOptions::default() })
        .expect("a golden model loads")
}

/// The model with the least memory that it can do with.
fn smallest(folder: &Path, precision: Precision, demand: &Demand) -> Arc<Model<Cpu>> {
    let mut budget = 0;
    loop {
        let source = Source::open(folder, None, false).expect("a golden model opens");
        let backend = Cpu::new(2, precision).expect("threads start");
        let memory = Some((budget, demand.clone()));
        match Model::load(source, backend, &ModelOptions { memory, threads: 2, ..ModelOptions::default() }) {
            Ok(model) => return model,
            Err(Error::Memory { needed, .. }) => budget = needed,
            Err(error) => panic!("{error}"),
        }
    }
}

struct Golden {
    folder: PathBuf,
    bytes: Vec<u8>,
    json: serde_json::Value,
}

impl Golden {
    fn open(name: &str) -> Option<Self> {
        let folder = shared(&format!("golden/hf/{name}"))?;
        let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden values");
        let json = std::fs::read(folder.join("golden.json")).expect("golden values");
        Some(Self { folder, bytes, json: serde_json::from_slice(&json).expect("golden values") })
    }

    fn values(&self, key: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).expect("golden values");
        let tensor = file.tensor(key).expect("a golden value");
        tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn integers(&self, key: &str) -> Option<Vec<u32>> {
        let file = SafeTensors::deserialize(&self.bytes).expect("golden values");
        let tensor = file.tensor(key).ok()?;
        Some(
            tensor.data().as_chunks().0.iter().map(|&b| u32::try_from(i64::from_le_bytes(b)).expect("an id")).collect(),
        )
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        (0..3).map(|p| self.integers(&format!("p{p}.input_ids")).expect("a prompt")).collect()
    }

    /// transformers' clamp of the time steps of prompts, where the model has time steps.
    fn dt_min(&self) -> Option<f32> {
        let config = std::fs::read(self.folder.join("config.json")).expect("a config");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("a config");
        config["time_step_min"].as_f64().map(|bound| bound as f32)
    }

    /// Logits of a prompt that transformers computed token by token; those of the whole prompt where it computes the same.
    fn stepped(&self, prompt: usize) -> Vec<f32> {
        let key = format!("p{prompt}.logits_step.fp32");
        let file = SafeTensors::deserialize(&self.bytes).expect("golden values");
        let has_steps = file.tensor(&key).is_ok();
        self.values(&if has_steps { key } else { format!("p{prompt}.logits.fp32") })
    }

    /// The unit in which logits of a prompt are compared: those of tied embeddings have a deviation of 8.
    fn unit(&self, prompt: usize) -> f32 {
        let is_tied = self.folder.ends_with("llama_tied");
        if is_tied { deviation(&self.values(&format!("p{prompt}.logits.fp32"))) } else { 1.0 }
    }
}

fn furthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0.0, |worst: f32, (a, b)| if (a - b).abs() > worst { (a - b).abs() } else { worst })
}

/// Standard deviation of values whose mean is about 0.
fn deviation(values: &[f32]) -> f32 {
    (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
}

fn options() -> SweepOptions {
    SweepOptions { batch_tokens: 16, scratch: std::env::temp_dir() }
}

/// Sequences and prompts as large as the goldens'.
fn demand(decode: bool) -> Demand {
    Demand { states: 3, state_tokens: 240, prompt_tokens: 68, batch_tokens: 16, logits: 3, decode }
}

/// The routing of every prompt and layer.
#[derive(Default)]
struct Routes(std::collections::BTreeMap<(usize, usize), Routing>);

impl Observer for Routes {
    fn routing(&mut self, layer: usize, rows: &[(usize, Range<usize>)], routing: &Routing) {
        let total: usize = rows.iter().map(|r| r.1.len()).sum();
        let (experts, top_k) = (routing.logits.len() / total, routing.experts.len() / total);
        let mut row = 0;
        for (prompt, range) in rows {
            let all = self.0.entry((*prompt, layer)).or_default();
            let end = row + range.len();
            all.logits.extend(&routing.logits[row * experts..end * experts]);
            all.experts.extend(&routing.experts[row * top_k..end * top_k]);
            all.weights.extend(&routing.weights[row * top_k..end * top_k]);
            row = end;
        }
    }
}

#[test]
fn float32_sweeps_agree_with_transformers_layer_by_layer() {
    for name in MODELS {
        let Some(golden) = Golden::open(name) else { return };
        for isa in Isa::available() {
            let model = model_of(&golden.folder, Precision::Float32, isa, 2, golden.dt_min());
            let prompts = golden.prompts();
            let mut sweep = Sweep::new(&model, &prompts, &options(), false).expect("a sweep");
            let mut routes = Routes::default();
            let width = model.hidden();
            let mut worst: f32 = 0.0;
            for layer in 0..=model.n_layers() {
                // A block of transformers may be two layers here, and it replaces the last row by the final-normed state.
                let states = golden.values("p0.hidden.fp32").len() / (prompts[0].len() * width);
                let per_block = model.n_layers() / (states - 1);
                if layer < model.n_layers() && layer.is_multiple_of(per_block) {
                    for batch in 0..sweep.n_batches() {
                        let (names, rows) = sweep.hidden(batch).expect("activations");
                        for ((prompt, position), row) in names.into_iter().zip(rows.chunks_exact(width)) {
                            let want = golden.values(&format!("p{prompt}.hidden.fp32"));
                            let at = (layer / per_block * prompts[prompt].len() + position) * width;
                            // The stream grows to a deviation of 12; what counts is the difference in its unit.
                            let want = &want[at..at + width];
                            worst = worst.max(furthest(row, want) / deviation(want).max(1.0));
                        }
                    }
                }
                assert_eq!(sweep.next_layer(&mut routes).expect("a layer"), layer < model.n_layers());
            }
            assert!(worst <= TOLERANCE, "{name} {isa:?}: residual stream differs by {worst}");
            for ((prompt, layer), route) in &routes.0 {
                let key = |what: &str| format!("p{prompt}.{what}.{layer}.fp32");
                assert_eq!(
                    Some(&route.experts),
                    golden.integers(&key("topk_idx")).as_ref(),
                    "{name} {}",
                    key("topk_idx")
                );
                assert!(furthest(&route.logits, &golden.values(&key("router"))) <= TOLERANCE);
                assert!(furthest(&route.weights, &golden.values(&key("topk_w"))) <= TOLERANCE);
            }
            let mut worst: f32 = 0.0;
            sweep
                .each_logits(
                    7,
                    |_, _| true,
                    |prompt, position, logits| {
                        let want = golden.values(&format!("p{prompt}.logits.fp32"));
                        let want = &want[position * logits.len()..][..logits.len()];
                        worst = worst.max(furthest(logits, want) / golden.unit(prompt));
                    },
                )
                .expect("logits");
            eprintln!("{name} {isa:?}: logits differ by {worst:e}");
            assert!(worst <= TOLERANCE, "{name} {isa:?}: logits differ by {worst}");
        }
    }
}

#[test]
fn float32_steps_agree_with_transformers_and_choose_its_tokens() {
    for name in MODELS {
        let Some(golden) = Golden::open(name) else { return };
        let model = model_of(&golden.folder, Precision::Float32, Isa::detect(), 2, golden.dt_min());
        for (p, prompt) in golden.prompts().iter().enumerate() {
            let want = golden.stepped(p);
            let mut sequence = Sequence::new();
            let mut worst: f32 = 0.0;
            for (t, id) in prompt.iter().enumerate() {
                // transformers clamps where it has no cache yet: in the first step.
                let run = Run { sequence: &mut sequence, ids: &[*id], prefill: t == 0, keep_trail: false };
                let out = model.step(&mut [run], Positions::Last).expect("a step");
                worst = worst.max(furthest(&out.logits, &want[t * model.vocab()..][..model.vocab()]) / golden.unit(p));
            }
            assert!(worst <= TOLERANCE, "{name} prompt {p}: logits differ by {worst}");

            let want: Vec<u32> = serde_json::from_value(golden.json["greedy"][format!("p{p}.fp32.cached")].clone())
                .expect("greedy tokens");
            let mut sequence = Sequence::new();
            let (mut ids, mut prefill, mut got) = (prompt.clone(), true, Vec::new());
            while got.len() < want.len() {
                let run = Run { sequence: &mut sequence, ids: &ids, prefill, keep_trail: false };
                let out = model.step(&mut [run], Positions::Last).expect("a step");
                let best = (0..out.logits.len()).max_by(|&a, &b| out.logits[a].total_cmp(&out.logits[b]));
                got.push(best.expect("a token") as u32);
                (ids, prefill) = (vec![got[got.len() - 1]], false);
            }
            assert_eq!(got, want, "{name} prompt {p}");
        }
    }
}

/// All logits of all prompts, as bits.
fn bits(model: &Arc<Model<Cpu>>, prompts: &[Vec<u32>], cut: usize) -> Vec<u32> {
    let mut out = Vec::new();
    for prompt in prompts {
        let mut sequence = Sequence::new();
        for ids in prompt.chunks(cut) {
            let run = Run { sequence: &mut sequence, ids, prefill: true, keep_trail: false };
            out.extend(model.step(&mut [run], Positions::All).expect("a step").logits.iter().map(|x| x.to_bits()));
        }
    }
    out
}

#[test]
fn cuts_threads_instructions_and_schedules_do_not_change_a_bit() {
    for name in MODELS {
        let Some(golden) = Golden::open(name) else { return };
        let prompts = golden.prompts();
        for precision in [Precision::Float32, Precision::Bfloat16] {
            let model = model_of(&golden.folder, precision, Isa::detect(), 1, None);
            let want = bits(&model, &prompts, 1);
            for (threads, cut) in [(1, 1000), (2, 7), (3, 2)] {
                let other = model_of(&golden.folder, precision, Isa::detect(), threads, None);
                assert!(bits(&other, &prompts, cut) == want, "{name} {precision:?} {threads} threads, cut {cut}");
            }
            if precision == Precision::Float32 {
                for isa in Isa::available() {
                    let other = model_of(&golden.folder, precision, isa, 2, None);
                    assert!(bits(&other, &prompts, 5) == want, "{name} {isa:?}");
                }
            }
            // All prompts in one step, and layer by layer with activations on disk.
            let mut sequences: Vec<Sequence<Cpu>> = prompts.iter().map(|_| Sequence::new()).collect();
            let mut runs: Vec<_> = sequences
                .iter_mut()
                .zip(&prompts)
                .map(|(sequence, ids)| Run { sequence, ids, prefill: true, keep_trail: false })
                .collect();
            let together = model.step(&mut runs, Positions::All).expect("a step").logits;
            assert!(together.iter().map(|x| x.to_bits()).eq(want.iter().copied()), "{name} {precision:?} batch");
            let tight = smallest(&golden.folder, precision, &demand(false));
            let mut sweep = Sweep::new(&tight, &prompts, &options(), false).expect("a sweep");
            assert!(sweep.spilled_bytes() > 0);
            sweep.run(&mut ()).expect("layers");
            let mut swept = Vec::new();
            sweep
                .each_logits(5, |_, _| true, |_, _, row| swept.extend(row.iter().map(|x| x.to_bits())))
                .expect("logits");
            assert!(swept == want, "{name} {precision:?} sweep");
        }
    }
}

/// Mean divergence KL(want || got) in nats, and the share of positions with the same most likely token.
fn divergence(want: &[f32], got: &[f32], vocab: usize) -> (f64, f64) {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let top = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(f64::from(b)));
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - top).exp()).sum();
        row.iter().map(|&x| f64::from(x) - top - sum.ln()).collect()
    };
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let (mut kl, mut same, mut rows) = (0.0, 0.0, 0.0);
    for (want, got) in want.chunks_exact(vocab).zip(got.chunks_exact(vocab)) {
        let (p, q) = (log_softmax(want), log_softmax(got));
        kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        same += f64::from(u8::from(best(want) == best(got)));
        rows += 1.0;
    }
    (kl / rows, same / rows)
}

#[test]
fn bfloat16_is_no_further_from_float32_than_transformers_own() {
    for isa in Isa::available() {
        bfloat16_on(isa);
    }
}

fn bfloat16_on(isa: Isa) {
    let (mut ours, mut theirs) = ((0.0, 0.0), (0.0, 0.0));
    for name in MODELS {
        let Some(golden) = Golden::open(name) else { return };
        let model = model_of(&golden.folder, Precision::Bfloat16, isa, 2, golden.dt_min());
        for (p, prompt) in golden.prompts().iter().enumerate() {
            let mut sequence = Sequence::new();
            let run = Run { sequence: &mut sequence, ids: prompt, prefill: true, keep_trail: false };
            let got = model.step(&mut [run], Positions::All).expect("a step").logits;
            let want = golden.values(&format!("p{p}.logits.fp32"));
            let a = divergence(&want, &got, model.vocab());
            let b = divergence(&want, &golden.values(&format!("p{p}.logits.bf16")), model.vocab());
            eprintln!(
                "{isa:?} {name} prompt {p}: KL {:.2e} against {:.2e}, agreement {:.3} against {:.3}",
                a.0, b.0, a.1, b.1
            );
            ours = (ours.0 + a.0, ours.1 + a.1);
            theirs = (theirs.0 + b.0, theirs.1 + b.1);
        }
    }
    assert!(ours.0 <= theirs.0, "divergence {} against transformers' {}", ours.0, theirs.0);
    assert!(ours.1 >= theirs.1, "agreement {} against transformers' {}", ours.1, theirs.1);
}

#[test]
fn a_checkpoint_that_megatron_wrote_gives_the_bits_of_its_source() {
    for (mc, hf) in [
        ("nemotron_h_dense_local_tp2_pp2", "nemotron_h_dense"),
        ("nemotron_h_moe_te_tp2_ep2_etp1", "nemotron_h_moe"),
        ("nemotron_h_moe_local_ep2_iter", "nemotron_h_moe"),
        ("nemotron_h_latent_mtp_te", "nemotron_h_latent_mtp"),
    ] {
        let (Some(golden), Some(mc)) = (Golden::open(hf), shared(&format!("golden/torch_dist/{mc}"))) else { return };
        let prompts = golden.prompts();
        for precision in [Precision::Float32, Precision::Bfloat16] {
            let a = model_of(&golden.folder, precision, Isa::detect(), 2, None);
            // Megatron's own checkpoints do not say how many experts a token has.
            let source = Source::open(&mc, Some(&golden.folder), false).expect("a checkpoint opens");
            let backend = Cpu::new(2, precision).expect("threads start");
            let b = Model::load(source, backend, &ModelOptions::default()).expect("a checkpoint loads");
            assert!(bits(&a, &prompts, 16) == bits(&b, &prompts, 16), "{} {precision:?}", mc.display());
        }
    }
}

#[test]
fn guesses_agree_with_the_reference_and_change_no_token() {
    let Some(golden) = Golden::open("nemotron_h_latent_mtp") else { return };
    // The trunk is transformers', with its clamp.
    let model = model_of(&golden.folder, Precision::Float32, Isa::detect(), 2, golden.dt_min());
    let mtp = Mtp::load(&model).expect("MTP layers");
    for (p, prompt) in golden.prompts().iter().enumerate() {
        let mut sequence = Sequence::new();
        let run = Run { sequence: &mut sequence, ids: prompt, prefill: true, keep_trail: false };
        let out = model.step(&mut [run], Positions::None).expect("a step");
        let mut state = mtp.new_state();
        let rows = prompt.len() - 1;
        let backend = model.backend();
        let h = backend.upload(model.hidden(), &backend.download(&out.normed, 0..rows));
        let normed = mtp.step(&mut state, 0, &h, &prompt[1..]).expect("an MTP step");
        let worst =
            furthest(&mtp.logits(&normed, rows).expect("logits"), &golden.values(&format!("p{p}.mtp_logits.fp32")));
        eprintln!("prompt {p}: MTP logits differ by {worst:e}");
        assert!(worst <= TOLERANCE, "prompt {p}: MTP logits differ by {worst}");
    }
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let model = model_of(&golden.folder, precision, Isa::detect(), 2, None);
        let mtp = Mtp::load(&model).expect("MTP layers");
        for prompt in golden.prompts() {
            for chunk in [4, 100] {
                let options = GenerateOptions {
                    max_new: 40,
                    stop: Vec::new(),
                    chunk,
                    top_logprobs: 2,
                    scratch: std::env::temp_dir(),
                    candidates: usize::MAX,
                };
                let mut samplers = [Sampler::new(Sampling::default()).expect("greedy")];
                let plain = generate(&model, std::slice::from_ref(&prompt), &options, &mut samplers, &mut |_, _| true);
                let mut seen = Vec::new();
                let guessed = generate_with_guesses(&model, &mtp, &prompt, &options, &mut |_, token| {
                    seen.push(token.clone());
                    true
                });
                let (plain, guessed) = (plain.expect("tokens"), guessed.expect("tokens"));
                assert_eq!(plain.texts, guessed.texts);
                assert_eq!(seen, guessed.texts[0].0);
                let (made, right) = guessed.guesses.expect("guesses were made");
                assert!(made > 0 && right <= made);
            }
        }
    }
}

#[test]
fn streamed_layers_give_the_tokens_of_resident_ones() {
    let Some(golden) = Golden::open("nemotron_h_moe") else { return };
    let prompts = golden.prompts();
    let options = GenerateOptions {
        max_new: 12,
        stop: vec![3],
        chunk: 8,
        top_logprobs: 3,
        scratch: std::env::temp_dir(),
        candidates: usize::MAX,
    };
    let mut all = Vec::new();
    let roomy = model_of(&golden.folder, Precision::Float32, Isa::detect(), 2, None);
    let tight = smallest(&golden.folder, Precision::Float32, &demand(true));
    assert!(roomy.is_resident() && tight.resident_layers().0 == 0);
    for model in [roomy, tight] {
        let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
        let mut samplers = [3, 4, 5].map(|seed| Sampler::new(Sampling { seed, ..sampling }).expect("options"));
        let out = generate(&model, &prompts, &options, &mut samplers, &mut |_, _| true).expect("tokens");
        all.push(out.texts);
    }
    assert_eq!(all[0], all[1]);
}
