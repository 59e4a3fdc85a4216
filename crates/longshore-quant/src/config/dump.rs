//! What ModelOpt stores of a config and of a quantizer in a checkpoint: every field with its value.

use super::{Entry, Plain, QuantConfig};
use crate::{Attributes, Bias, BlockSizes, NumBits};

/// A tensor that a quantizer keeps: `_amax`, `_pre_quant_scale`, `_global_amax`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its name in the quantizer.
    pub name: String,
    /// Its shape in the module, `[]` for a scalar.
    pub shape: Vec<u64>,
    /// Its type's name in `torch`.
    pub dtype: String,
}

/// A quantizer as `_extra_state` describes it.
#[derive(Clone, Debug)]
pub struct QuantizerState<'a> {
    /// Its attributes.
    pub attributes: &'a Attributes,
    /// The type of the tensors it has seen, `None` if none.
    pub input_dtype: Option<&'a str>,
    /// Its tensors.
    pub buffers: &'a [Buffer],
    /// Rows of the weight, for one that is quantized in blocks.
    pub rows: u64,
}

impl From<NumBits> for Plain {
    fn from(bits: NumBits) -> Self {
        let int = |value: u8| Self::Int(value.into());
        match bits {
            NumBits::Int(bits) => int(bits),
            NumBits::Float(exponent, mantissa) => Self::Tuple(vec![int(exponent), int(mantissa)]),
        }
    }
}

fn mode_type(dynamic: bool) -> Plain {
    Plain::str(if dynamic { "dynamic" } else { "static" })
}

impl BlockSizes {
    fn dump(&self) -> Plain {
        let axes = self.axes.iter().map(|&(axis, block)| (Plain::Int(axis.into()), block.map(i64::from).into()));
        let kind = self.dynamic.map(|dynamic| ("type", mode_type(dynamic)));
        let scale = self.scale_bits.map(|bits| ("scale_bits", bits.into()));
        // ModelOpt's field takes whole numbers, so that a truth value is stored as one.
        let ranges = self.four_over_six.map(|on| ("four_over_six", Plain::Int(on.into())));
        let named = [kind, scale, ranges].into_iter().flatten().map(|(name, value)| (Plain::str(name), value));
        Plain::Dict(axes.chain(named).collect())
    }
}

impl Bias {
    fn dump(&self) -> Plain {
        let axes = self.axes.iter().map(|&axis| (Plain::Int(axis.into()), Plain::None));
        let kind = self.dynamic.map(|dynamic| ("type", mode_type(dynamic)));
        let method = self.method.as_deref().map(|method| ("method", method.into()));
        let named = [kind, method].into_iter().flatten().map(|(name, value)| (Plain::str(name), value));
        Plain::Dict(axes.chain(named).collect())
    }
}

impl Attributes {
    /// All fields of a `QuantizerAttributeConfig`, in its order.
    pub fn dump(&self) -> Plain {
        Plain::dict([
            ("enable", self.enable.into()),
            ("num_bits", self.num_bits.into()),
            ("effective_bits", self.effective_bits.into()),
            ("axis", self.axis.map(i64::from).into()),
            ("fake_quant", self.fake_quant.into()),
            ("unsigned", self.unsigned.into()),
            ("narrow_range", self.narrow_range.into()),
            ("learn_amax", false.into()),
            ("type", mode_type(self.dynamic)),
            ("block_sizes", self.block_sizes.as_ref().map_or(Plain::None, BlockSizes::dump)),
            ("bias", self.bias.as_ref().map_or(Plain::None, Bias::dump)),
            ("trt_high_precision_dtype", "Float".into()),
            ("calibrator", self.calibrator.as_str().into()),
            ("rotate", self.rotate.into()),
            ("pass_through_bwd", self.pass_through_bwd.into()),
            ("backend", Plain::None),
            ("backend_extra_args", Plain::None),
            ("use_constant_amax", self.use_constant_amax.into()),
            ("constant_amax", self.constant_amax.into()),
        ])
    }

    /// The largest value of the format in blocks.
    fn max_bound(&self) -> f64 {
        match self.num_bits {
            NumBits::Float(2, 1) => 6.0,
            NumBits::Float(..) => 448.0,
            NumBits::Int(bits) => f64::from((1_u32 << bits.saturating_sub(1).min(30)) - 1),
        }
    }
}

impl Entry {
    /// All fields of a `QuantizerCfgEntry`, in its order.
    pub fn dump(&self) -> Plain {
        let cfg = match self.cfg.as_slice() {
            [] => Plain::None,
            [one] => one.dump(),
            all => Plain::List(all.iter().map(Attributes::dump).collect()),
        };
        Plain::dict([
            ("quantizer_name", self.quantizer_name.as_str().into()),
            ("parent_class", self.parent_class.as_deref().into()),
            ("cfg", cfg),
            ("enable", self.enable.into()),
        ])
    }
}

impl QuantConfig {
    /// The config of the mode `quantize`.
    pub fn dump(&self) -> Plain {
        Plain::dict([
            ("quant_cfg", Plain::List(self.entries.iter().map(Entry::dump).collect())),
            ("algorithm", self.stated_algorithm.clone()),
            ("effective_bits", self.effective_bits.into()),
        ])
    }
}

/// What `modelopt_state` of a Megatron checkpoint holds after `config` was applied by ModelOpt `version` (e.g. `0.47.0`).
pub fn modelopt_state(config: &QuantConfig, version: &str) -> Plain {
    let quantize = ("quantize".to_owned(), config.dump());
    let modes = [quantize].into_iter().chain(config.algorithm.iter().map(super::Algorithm::mode));
    let mode = |(name, config): (String, Plain)| {
        Plain::Tuple(vec![Plain::Str(name), Plain::dict([("config", config), ("metadata", Plain::Dict(vec![]))])])
    };
    Plain::dict([("modelopt_state_dict", Plain::List(modes.map(mode).collect())), ("modelopt_version", version.into())])
}

impl QuantizerState<'_> {
    /// The dict. ModelOpt takes the order of its keys from a set, so that any order is as good.
    pub fn dump(&self) -> Plain {
        let attributes = self.attributes;
        let blocks = attributes.block_sizes.as_ref();
        let calibrated = self.buffers.iter().any(|buffer| buffer.name == "_amax");
        // A weight in static blocks is seen as rows of one block each once it has an amax, one in squares as four axes.
        let blocked =
            blocks.filter(|blocks| calibrated && blocks.dynamic != Some(true)).map(|blocks| blocks.axes.len());
        let axis = match blocked {
            Some(1) => Plain::Tuple(vec![Plain::Int(0)]),
            Some(_) => Plain::Tuple(vec![Plain::Int(0), Plain::Int(2)]),
            None => attributes.axis.map(i64::from).into(),
        };
        let dtype = |name: &str| Plain::Dtype(name.to_owned());
        let buffers = self.buffers.iter().map(|buffer| {
            let shape = Plain::Size(buffer.shape.clone());
            (buffer.name.as_str(), Plain::dict([("shape", shape), ("dtype", dtype(&buffer.dtype))]))
        });
        let mut state = vec![
            ("_disabled", (!attributes.enable).into()),
            ("_num_bits", attributes.num_bits.into()),
            ("_effective_bits", attributes.effective_bits.into()),
            ("_axis", axis),
            ("_fake_quant", attributes.fake_quant.into()),
            ("_unsigned", attributes.unsigned.into()),
            ("_narrow_range", attributes.narrow_range.into()),
            ("_learn_amax", false.into()),
            ("_dynamic", attributes.dynamic.into()),
            ("_block_sizes", blocks.map_or(Plain::None, BlockSizes::dump)),
            ("_bias", attributes.bias.as_ref().map_or(Plain::None, Bias::dump)),
            ("_trt_high_precision_dtype", "Float".into()),
            ("_rotate", attributes.rotate.into()),
            ("_pass_through_bwd", attributes.pass_through_bwd.into()),
            ("backend", Plain::None),
            ("backend_extra_args", Plain::Dict(vec![])),
            ("_use_constant_amax", attributes.use_constant_amax.into()),
            ("_constant_amax", attributes.constant_amax.into()),
            ("_if_quant", true.into()),
            ("_if_calib", false.into()),
            ("_enable_pre_quant_scale", true.into()),
            ("_dequantize", false.into()),
            ("_input_dtype", self.input_dtype.map_or(Plain::None, dtype)),
        ];
        if blocked == Some(1) {
            let rows = i64::try_from(self.rows).unwrap_or(i64::MAX);
            state.push(("_amax_shape_for_export", Plain::Tuple(vec![Plain::Int(rows), Plain::Int(-1)])));
            state.push(("_is_static_block_scale_quantizer", true.into()));
            if attributes.num_bits == NumBits::Float(2, 1) {
                state.push(("_is_nvfp4_static_quantizer", true.into()));
            }
            state.push(("_quant_max_bound", attributes.max_bound().into()));
        }
        let tensors = Plain::dict([("params", Plain::Dict(vec![])), ("buffers", Plain::dict(buffers))]);
        state.push(("_pytorch_state_metadata", tensors));
        Plain::dict(state)
    }
}
