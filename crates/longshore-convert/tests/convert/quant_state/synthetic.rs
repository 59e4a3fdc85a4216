//! Every format and role, and what is refused, in checkpoints of a few tensors.

use longshore_ckpt::torch_dist::extra_state as items;
use longshore_ckpt::torch_dist::item::{Frame, empty_extra_state, object_item};
use longshore_ckpt::torch_dist::metadata::{self, Metadata};
use longshore_ckpt::torch_dist::metadata_json;
use longshore_ckpt::torch_dist::pickle::{Plain, dump};
use longshore_ckpt::{Catalog, Dtype, Rect};
use longshore_convert::Error;
use longshore_convert::model::spec;
use longshore_convert::options::SpecName;
use longshore_convert::quantized::state::{QuantizerStates, Stage, StageState, extra_state};
use longshore_quant::{Attributes, BlockSizes, NumBits};
use tempfile::TempDir;

/// A checkpoint under construction: one file.
#[derive(Default)]
struct Checkpoint {
    table: Metadata,
    data: Vec<u8>,
}

impl Checkpoint {
    fn object(&mut self, key: &str, item: &[u8]) -> &mut Self {
        let path = self.table.add_path("__0_0.distcp");
        self.table.add_object(key, path, self.data.len() as u64, item.len() as u64);
        self.data.extend_from_slice(item);
        self
    }

    /// The extra state of a module.
    fn state(&mut self, module: &str, inner: &Plain) -> &mut Self {
        self.object(&format!("{module}._extra_state/shard_0_1"), &items::write(inner))
    }

    fn bytes(&mut self, key: &str, dtype: Dtype, shape: &[u64], payload: &[u8]) -> &mut Self {
        let frame = Frame::tensor(dtype, shape);
        let item = [&frame.head[..], payload, &frame.tail(crc32fast::hash(payload))].concat();
        let path = self.table.add_path("__0_0.distcp");
        self.table.add_chunk(key, dtype, shape, Rect::whole(shape), path, self.data.len() as u64, item.len() as u64);
        self.data.extend_from_slice(&item);
        self
    }

    fn tensor(&mut self, key: &str, shape: &[u64], values: &[f32]) -> &mut Self {
        let payload: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.bytes(key, Dtype::Float32, shape, &payload)
    }

    fn open(&self) -> (TempDir, Catalog) {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        put("__0_0.distcp", &self.data);
        put(".metadata", &metadata::write(&self.table));
        put("metadata.json", metadata_json());
        let catalog = Catalog::open(folder.path()).unwrap();
        (folder, catalog)
    }

    fn read(&self) -> QuantizerStates {
        let (_folder, mut catalog) = self.open();
        let states = QuantizerStates::read(&mut catalog).unwrap().unwrap();
        assert!(!catalog.tensors.keys().any(|name| name.contains("quantizer")));
        states
    }

    /// What is refused, a line for each problem.
    fn refusal(&self) -> String {
        let (_folder, mut catalog) = self.open();
        match QuantizerStates::read(&mut catalog) {
            Err(Error::Refused(problems)) => {
                problems.iter().fold(String::new(), |text, p| text + &p.to_string() + "\n")
            }
            other => panic!("expected a refusal, found {other:?}"),
        }
    }
}

fn attributes(num_bits: NumBits) -> Attributes {
    Attributes { num_bits, ..Attributes::default() }
}

fn off() -> Attributes {
    Attributes { enable: false, ..Attributes::default() }
}

fn fp8() -> Attributes {
    attributes(NumBits::Float(4, 3))
}

fn blocks(axes: &[(i32, Option<u32>)], dynamic: bool, scale_bits: Option<NumBits>) -> BlockSizes {
    BlockSizes { axes: axes.to_vec(), dynamic: Some(dynamic), scale_bits, four_over_six: None }
}

fn int4() -> Attributes {
    Attributes { block_sizes: Some(blocks(&[(-1, Some(2))], false, None)), ..attributes(NumBits::Int(4)) }
}

fn nvfp4(dynamic: bool) -> Attributes {
    let block_sizes = blocks(&[(-1, Some(16))], dynamic, Some(NumBits::Float(4, 3)));
    Attributes { block_sizes: Some(block_sizes), effective_bits: Some(4.5), ..attributes(NumBits::Float(2, 1)) }
}

/// A tensor of a stage as it is stored.
type Stored = (&'static str, &'static [u64], Vec<f32>);

/// The stages of a quantizer.
type Stages = Vec<(Attributes, Vec<Stored>)>;

fn stage<'a>(attributes: &'a Attributes, tensors: &[Stored]) -> StageState<'a> {
    let tensors = tensors.iter().map(|(name, shape, _)| (*name, Dtype::Float32, shape.to_vec())).collect();
    StageState { attributes, tensors }
}

/// Writes a quantizer of the given stages and reads it back.
fn through(module: &str, quantizer: &str, stages: &[(Attributes, Vec<Stored>)]) -> Vec<Stage> {
    let mut checkpoint = Checkpoint::default();
    let states: Vec<StageState<'_>> = stages.iter().map(|(attributes, tensors)| stage(attributes, tensors)).collect();
    checkpoint.state(module, &extra_state(&[(quantizer, &states)], 4, Dtype::Bfloat16));
    for (i, (_, tensors)) in stages.iter().enumerate() {
        let number = if stages.len() > 1 { format!(".{i}") } else { String::new() };
        for (name, shape, values) in tensors {
            checkpoint.tensor(&format!("{module}.{quantizer}{number}.{name}"), shape, values);
        }
    }
    // Without any tensor of a quantizer, only the folder says that there are states.
    checkpoint.tensor("x.input_quantizer._amax", &[1], &[1.0]);
    checkpoint.state(
        "x",
        &extra_state(&[("input_quantizer", &[stage(&fp8(), &[("_amax", &[1], vec![])])])], 1, Dtype::Float32),
    );
    checkpoint.read().stages(module, quantizer).to_vec()
}

#[test]
fn what_is_written_is_read_back_for_every_format_and_role() {
    let one = || vec![("_amax", [1].as_slice(), vec![3.5])];
    let rows = || vec![("_amax", [4, 1].as_slice(), vec![1.0, 2.0, 0.0, 4.0])];
    let eight = || vec![("_amax", [4, 2].as_slice(), (0..8_u8).map(f32::from).collect())];
    let smooth = ("_pre_quant_scale", [3].as_slice(), vec![0.5, -0.0, 2.0]);
    let square = blocks(&[(-1, Some(128)), (-2, Some(128))], false, None);
    let mx = blocks(&[(-1, Some(32))], true, Some(NumBits::Float(8, 0)));
    let token = Some(BlockSizes { axes: vec![(-1, None)], ..BlockSizes::default() });
    let int8 = attributes(NumBits::Int(8));
    let linear = "decoder.layers.0.mixer.in_proj";
    let cases: Vec<(&str, &str, Stages)> = vec![
        (linear, "weight_quantizer", vec![(fp8(), one())]),
        (linear, "input_quantizer", vec![(fp8(), one())]),
        (linear, "output_quantizer", vec![(off(), vec![])]),
        (linear, "weight_quantizer", vec![(Attributes { axis: Some(0), ..fp8() }, rows())]),
        (linear, "weight_quantizer", vec![(Attributes { axis: Some(0), ..int8.clone() }, rows())]),
        (linear, "input_quantizer", vec![(int8, [one(), vec![smooth.clone()]].concat())]),
        (linear, "input_quantizer", vec![(off(), vec![smooth])]),
        (linear, "weight_quantizer", vec![(int4(), eight())]),
        (linear, "weight_quantizer", vec![(int4(), eight()), (fp8(), one())]),
        (linear, "weight_quantizer", vec![(Attributes { block_sizes: Some(square), ..fp8() }, eight())]),
        (linear, "weight_quantizer", vec![(nvfp4(true), one())]),
        (
            linear,
            "weight_quantizer",
            vec![(nvfp4(false), [eight(), vec![("_global_amax", [1].as_slice(), vec![7.0])]].concat())],
        ),
        (linear, "weight_quantizer", vec![(Attributes { block_sizes: Some(mx), ..fp8() }, vec![])]),
        (linear, "input_quantizer", vec![(Attributes { block_sizes: token, dynamic: true, ..fp8() }, vec![])]),
        ("decoder.layers.2.self_attention.core_attention", "k_bmm_quantizer", vec![(fp8(), one())]),
        (
            "decoder.layers.1.mlp.experts.experts.3.linear_fc1",
            "weight_quantizer",
            vec![(int4(), eight()), (fp8(), one())],
        ),
    ];
    for (module, quantizer, stages) in cases {
        let read = through(module, quantizer, &stages);
        assert_eq!(read.len(), stages.len(), "{stages:?}");
        for (read, (attributes, tensors)) in read.iter().zip(&stages) {
            assert_eq!(&read.attributes, attributes);
            let found = [&read.amax, &read.global_amax, &read.pre_quant_scale];
            for (found, name) in found.into_iter().zip(["_amax", "_global_amax", "_pre_quant_scale"]) {
                let want = tensors.iter().find(|(stored, ..)| *stored == name);
                assert_eq!(found.is_some(), want.is_some(), "{attributes:?} {name}");
                let (Some(found), Some((_, shape, values))) = (found, want) else { continue };
                assert_eq!(found.tensor.shape, *shape);
                match &found.values {
                    Some(read) => assert_eq!(read.as_ref(), values.as_slice()),
                    None => assert_eq!(*shape, [4, 2], "only blocks stay where they are"),
                }
            }
        }
    }
}

#[test]
fn experts_of_a_group_get_their_own_weight_and_the_shared_input() {
    let mut checkpoint = Checkpoint::default();
    let layer = "decoder.layers.1.mlp.experts.experts";
    let amax: [Stored; 1] = [("_amax", &[1], vec![])];
    let (on, fp8_off) = (fp8(), off());
    for expert in 0..4_u8 {
        // Ranks of two experts each; the states of a rank are numbered from 0.
        let states = [stage(&on, &amax)];
        let state = extra_state(
            &[
                ("input_quantizer", &states),
                ("weight_quantizer.0", &states),
                ("weight_quantizer.1", &states),
                ("output_quantizer", &[stage(&fp8_off, &[])]),
            ],
            8,
            Dtype::Bfloat16,
        );
        checkpoint.state(&format!("{layer}.{expert}.linear_fc1"), &state);
        checkpoint.tensor(&format!("{layer}.{expert}.linear_fc1.weight_quantizer._amax"), &[], &[f32::from(expert)]);
    }
    checkpoint.tensor(&format!("{layer}.linear_fc1.input_quantizer._amax"), &[1], &[9.0]);
    let read = checkpoint.read();
    assert_eq!(read.modules.len(), 4);
    for expert in 0..4_u8 {
        let value = |quantizer| {
            let stages = read.stages(&format!("{layer}.{expert}.linear_fc1"), quantizer);
            assert_eq!(stages.len(), 1);
            stages[0].amax.as_ref().and_then(|a| a.values.as_ref()).map(|v| v.to_vec())
        };
        assert_eq!(value("weight_quantizer"), Some(vec![f32::from(expert)]));
        assert_eq!(value("input_quantizer"), Some(vec![9.0]));
        assert_eq!(value("output_quantizer"), None);
    }
}

#[test]
fn states_of_stacked_experts_are_those_of_each() {
    let mut checkpoint = Checkpoint::default();
    let off = off();
    let state = extra_state(&[("weight_quantizer", &[stage(&off, &[])])], 8, Dtype::Bfloat16);
    for expert in 0..2 {
        let key = format!("decoder.layers.1.mlp.experts.experts.linear_fc2._extra_state/shard_{expert}_2");
        checkpoint.object(&key, &items::write(&state));
    }
    checkpoint.tensor("x.input_quantizer._amax", &[1], &[1.0]);
    checkpoint.state(
        "x",
        &extra_state(&[("input_quantizer", &[stage(&fp8(), &[("_amax", &[1], vec![])])])], 1, Dtype::Float32),
    );
    let read = checkpoint.read();
    assert!(!read.stages("decoder.layers.1.mlp.experts.experts.1.linear_fc2", "weight_quantizer")[0].attributes.enable);
    assert_eq!(read.modules.len(), 3);
}

#[test]
fn without_arguments_the_states_of_experts_tell_the_spec() {
    let spec_of = |quantizer: &str, stages: &[StageState<'_>]| {
        let mut checkpoint = Checkpoint::default();
        let expert = "decoder.layers.1.mlp.experts.experts.0.linear_fc1";
        checkpoint.tensor("decoder.layers.0.mixer.in_proj.layer_norm_weight", &[1], &[1.0]);
        checkpoint.tensor(&format!("{expert}.weight"), &[1, 1], &[1.0]);
        checkpoint.state(expert, &extra_state(&[(quantizer, stages)], 1, Dtype::Bfloat16));
        spec(&checkpoint.open().1)
    };
    let (one, other) = (fp8(), int4());
    let stages = [stage(&other, &[]), stage(&one, &[])];
    // The expert, the experts of a group, the stages of one expert, the stages of those of a group.
    assert_eq!(spec_of("weight_quantizer", &stages[..1]), SpecName::Local);
    assert_eq!(spec_of("weight_quantizer.0", &stages[..1]), SpecName::Te);
    assert_eq!(spec_of("weight_quantizer", &stages), SpecName::Local);
    assert_eq!(spec_of("weight_quantizer.0", &stages), SpecName::Te);
}

/// A linear `p` with an FP8 weight whose state says that there is an amax.
fn one_linear() -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    checkpoint.state(
        "p",
        &extra_state(&[("weight_quantizer", &[stage(&fp8(), &[("_amax", &[1], vec![])])])], 4, Dtype::Bfloat16),
    );
    checkpoint
}

#[test]
fn all_that_is_wrong_is_told_together() {
    let mut checkpoint = one_linear();
    checkpoint.tensor("q.weight_quantizer._amax", &[1], &[1.0]);
    checkpoint.tensor("q.weight_quantizer.x.y._amax", &[1], &[1.0]);
    checkpoint.object("r._extra_state/shard_0_1", b"damaged");
    let refusal = checkpoint.refusal();
    let found: Vec<&str> = refusal.lines().collect();
    assert_eq!(found[0], "quantize   p.weight_quantizer._amax  its quantizer has it, but it is not in the checkpoint");
    assert!(found[1].starts_with("damaged    r._extra_state/shard_0_1  in `__0_0.distcp`"), "{}", found[1]);
    let orphan = "no `_extra_state` says what its quantizer does";
    assert_eq!(found[2], format!("quantize   q.weight_quantizer._amax  {orphan}"));
    assert_eq!(found[3], format!("quantize   q.weight_quantizer.x.y._amax  {orphan}"));
    assert_eq!(found.len(), 4);
}

#[test]
fn values_that_are_no_magnitudes_are_refused() {
    let refusal =
        |shape: &[u64], values: &[f32]| one_linear().tensor("p.weight_quantizer._amax", shape, values).refusal();
    assert!(refusal(&[1], &[f32::NAN]).contains("expected finite values from 0, found NaN"));
    assert!(refusal(&[1], &[-1.0]).contains("found -1"));
    assert!(refusal(&[2], &[1.0, 2.0]).contains("expected 1 to 1 values, found the shape [2]"));
    assert!(refusal(&[0], &[]).contains("found the shape [0]"));
    let mut integers = one_linear();
    integers.bytes("p.weight_quantizer._amax", Dtype::Int32, &[1], &[0; 4]);
    assert!(integers.refusal().contains("int32, expected a float of 16 or 32 bits"));
}

#[test]
fn compressed_weights_are_refused_by_name() {
    let mut checkpoint = one_linear();
    checkpoint.tensor("p.weight_quantizer._amax", &[1], &[1.0]);
    checkpoint.tensor("p.weight_quantizer._scale", &[1], &[1.0]);
    checkpoint.bytes("p.weight", Dtype::Uint8, &[2], &[0; 2]);
    assert_eq!(
        checkpoint.refusal(),
        "quantize   p.weight  compressed weights (`--compress`) are not supported; 1 more tensors of that kind\n"
    );
    let text = |s: &str| Plain::Str(s.into());
    let mut packed = one_linear();
    packed.tensor("p.weight_quantizer._amax", &[1], &[1.0]);
    packed.state("q", &Plain::Dict(vec![(text("modelopt_real_quantizer_state"), Plain::Dict(vec![]))]));
    assert!(packed.refusal().contains("compressed weights (`real_quantize`)"));
}

#[test]
fn attributes_that_are_not_understood_are_refused_by_name() {
    let text = |s: &str| Plain::Str(s.into());
    let refusal = |key: &str, value: Plain| {
        let state = Plain::Dict(vec![
            (text("_num_bits"), Plain::Int(8)),
            (text("_disabled"), Plain::Bool(false)),
            (text(key), value),
        ]);
        let states = Plain::Dict(vec![(text("weight_quantizer"), state)]);
        let mut checkpoint = Checkpoint::default();
        checkpoint.state("p", &Plain::Dict(vec![(text("modelopt_quantizer_state"), states)]));
        checkpoint.tensor("p.weight_quantizer._amax", &[1], &[1.0]);
        checkpoint.refusal().lines().next().unwrap().to_owned()
    };
    let named = |what: &str| format!("quantize   p.weight_quantizer  {what} is not supported");
    let tuple = |items: &[i64]| Plain::Tuple(items.iter().map(|&i| Plain::Int(i)).collect());
    assert_eq!(refusal("_axis", tuple(&[0, 2])), named("`_axis` (0, 2)"));
    assert_eq!(refusal("_num_bits", tuple(&[1, 2, 3])), named("`_num_bits` (1, 2, 3)"));
    assert_eq!(refusal("_rotate", Plain::Dict(vec![])), named("`_rotate` {}"));
    let scales = Plain::Dict(vec![(text("scale_block_sizes"), Plain::Int(1))]);
    assert_eq!(refusal("_block_sizes", scales), named(r#"`_block_sizes` {"scale_block_sizes": 1}"#));
}

#[test]
fn states_of_other_programs_are_told_and_ignored() {
    let mut checkpoint = one_linear();
    checkpoint.tensor("p.weight_quantizer._amax", &[1], &[1.0]);
    checkpoint.object("n._extra_state/shard_0_1", &object_item(&dump(&Plain::Int(1))));
    checkpoint.object("o._extra_state/shard_0_1", &empty_extra_state());
    checkpoint.state("t", &Plain::Dict(vec![(Plain::Str("extra_state".into()), Plain::None)]));
    let unknown = checkpoint.read().unknown;
    assert_eq!(
        unknown.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        ["n._extra_state/shard_0_1", "t._extra_state/shard_0_1"]
    );
}
