//! Weights from a checkpoint to a backend, a layer at a time.
//!
//! Everything is read through [`Source`], by the names of the Megatron side, so one path serves both formats and every
//! architecture with these kinds of layer.

use crate::backend::{Backend, WeightFormat};
use crate::error::Result;
use crate::layers::{
    AttentionWeights, ExpertLinears, Layer, Linear, MambaWeights, Mixer, MlpWeights, MoeWeights, Norm,
};
use crate::quantized::{InputQuantizer, LinearQuant, QuantState, RoutedFc2, WeightBands, WeightStage};
use crate::rotary;
use crate::site::{Site, linears};
use longshore_ckpt::{Dtype, Rect};
use longshore_convert::config::{Attention, LayerSpec, Mamba, Mlp, Moe, Mtp};
use longshore_convert::source::Source;
use longshore_quant::{Element, Scheme};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Reads weights of `source` for `backend`.
pub(crate) struct Loader<'a, B> {
    pub(crate) source: &'a Source,
    pub(crate) backend: &'a B,
    pub(crate) threads: usize,
    pub(crate) quant: Option<&'a QuantState>,
    /// Whether weights stay quantized where the backend has matrices of them.
    pub(crate) packed: bool,
}

/// The name of the embedding.
pub(crate) const EMBEDDING: &str = "embedding.word_embeddings.weight";
/// The name of the output layer, where it is not the embedding.
const OUTPUT_LAYER: &str = "output_layer.weight";

/// The output layer's tensor: its own, or the embedding.
pub(crate) fn head_name(source: &Source) -> &'static str {
    if source.has(OUTPUT_LAYER) { OUTPUT_LAYER } else { EMBEDDING }
}

/// Part of a matrix: a tensor, or one expert of it, and the first row it becomes.
struct Piece {
    name: String,
    slot: Option<u64>,
    first_row: u64,
}

impl<B: Backend> Loader<'_, B> {
    /// The layer whose tensors begin with `prefix`, e.g. `decoder.layers.3.`.
    pub(crate) fn layer(&self, prefix: &str, spec: &LayerSpec) -> Result<Layer<B>> {
        let name = |rest: &str| format!("{prefix}{rest}");
        let (norm, mixer) = match *spec {
            LayerSpec::Mamba(spec) => ("norm", Mixer::Mamba(self.mamba(prefix, spec)?)),
            LayerSpec::Attention(spec) => {
                let operand = |site: Site| match self.quant {
                    Some(quant) => quant.operand(&name(site.module()), spec.head_dim as usize),
                    None => Ok(None),
                };
                let weights = AttentionWeights {
                    spec,
                    qkv: self.linear(prefix, Site::Qkv)?,
                    proj: self.linear(prefix, Site::Proj)?,
                    rotary: spec.rotary.map(|r| self.backend.vector(rotary::frequencies(&r, spec.head_dim))),
                    operands: [operand(Site::Query)?, operand(Site::Key)?, operand(Site::Value)?],
                };
                ("input_layernorm", Mixer::Attention(weights))
            }
            LayerSpec::Mlp(spec) => {
                let (fc1, fc2) = (self.linear(prefix, Site::Fc1)?, self.linear(prefix, Site::Fc2)?);
                ("pre_mlp_layernorm", Mixer::Mlp(MlpWeights { spec, fc1, fc2 }))
            }
            LayerSpec::Moe(spec) => ("pre_mlp_layernorm", Mixer::Moe(self.moe(prefix, spec)?)),
        };
        Ok(Layer { norm: self.norm(&name(norm))?, mixer })
    }

    /// The norm of this module path.
    pub(crate) fn norm(&self, module: &str) -> Result<Norm<B>> {
        let model = &self.source.model;
        Ok(Norm {
            weight: self.vector(&format!("{module}.weight"))?,
            eps: model.config.norm_eps as f32,
            rounds_first: model.architecture.norms_round_first,
        })
    }

    /// Bytes of the packed matrices of a layer.
    pub(crate) fn layer_size(&self, prefix: &str, spec: &LayerSpec) -> u64 {
        let router = match spec {
            LayerSpec::Moe(_) => {
                let name = format!("{prefix}mlp.router.weight");
                let (shape, _) = self.source.tensor(&name);
                self.backend.matrix_size(shape[0], shape[1], WeightFormat::Float(self.exact_element(&name)))
            }
            _ => 0,
        };
        // The width of the residual stream does not matter here.
        let sites = linears(spec, 0).into_iter();
        sites.map(|(site, _)| self.linear_size(prefix, site)).sum::<u64>() + router
    }

    /// Bytes of the packed matrices of a linear, or of that linear of all experts.
    pub(crate) fn linear_size(&self, prefix: &str, site: Site) -> u64 {
        let quant = self.quant_of(prefix, site);
        let names = self.tensors(prefix, site);
        let (rows, cols) = self.shape(&names);
        let stack = self.source.tensor(&names[0]).0;
        let experts = stack[..stack.len() - 2].iter().product::<u64>();
        let size = |e| self.backend.matrix_size(rows, cols, self.format(&names, e as usize, quant));
        (0..experts).map(size).sum()
    }

    /// Whether a linear's weight (of experts, the first one's) is kept in codes.
    pub(crate) fn is_packed(&self, prefix: &str, site: Site) -> bool {
        let format = self.format(&self.tensors(prefix, site), 0, self.quant_of(prefix, site));
        matches!(format, WeightFormat::Quantized(_))
    }

    /// Rows and columns of a matrix of these tensors, or of one expert.
    fn shape(&self, names: &[String]) -> (u64, u64) {
        names.iter().fold((0, 0), |(rows, _), name| match *self.source.tensor(name).0 {
            [.., more, cols] => (rows + more, cols),
            _ => (rows, 0),
        })
    }

    fn quant_of(&self, prefix: &str, site: Site) -> Option<&LinearQuant> {
        self.quant?.linears.get(&format!("{prefix}{}", site.module()))
    }

    /// The tensors of a linear's weight, in the order of its rows.
    pub(crate) fn tensors(&self, prefix: &str, site: Site) -> Vec<String> {
        match site {
            Site::MambaIn => {
                ["z", "x", "B", "C", "dt"].iter().map(|p| format!("{prefix}mixer.in_proj.weight.{p}")).collect()
            }
            Site::ExpertFc1 => vec![format!("{prefix}mlp.experts.experts.linear_fc1.weight")],
            Site::ExpertFc2 => vec![format!("{prefix}mlp.experts.experts.linear_fc2.weight")],
            Site::Output => {
                vec![head_name(self.source).to_owned()]
            }
            site => vec![format!("{prefix}{}.weight", site.module())],
        }
    }

    /// A linear of a layer, or with an empty prefix the output layer.
    pub(crate) fn linear(&self, prefix: &str, site: Site) -> Result<Linear<B>> {
        let quant = self.quant_of(prefix, site);
        let matrix = self.matrix_of(prefix, site, None, quant)?;
        Ok(Linear { matrix, input: self.input_of(prefix, site)? })
    }

    fn input_of(&self, prefix: &str, site: Site) -> Result<Option<Box<InputQuantizer>>> {
        let Some(quant) = self.quant else { return Ok(None) };
        quant.input(&format!("{prefix}{}", site.module()), self.columns(prefix, site))
    }

    /// Input features of a linear.
    fn columns(&self, prefix: &str, site: Site) -> usize {
        let cols = self.tensors(prefix, site).first().and_then(|n| self.source.tensor(n).0.last().copied());
        cols.unwrap_or_default() as usize
    }

    /// A whole tensor `[out, in]` as a matrix, whatever is quantized.
    pub(crate) fn matrix(&self, name: &str) -> Result<B::Matrix> {
        let pieces = [Piece { name: name.to_owned(), slot: None, first_row: 0 }];
        self.pack(&pieces, self.element(&[name.to_owned()], false))
    }

    /// A tensor as float32 values.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>> {
        let (shape, _) = self.source.tensor(name);
        self.values_of(name, &Rect::whole(shape))
    }

    /// A box of a tensor as float32 values.
    pub(crate) fn values_of(&self, name: &str, rect: &Rect) -> Result<Vec<f32>> {
        let mut bytes = vec![0; rect.len() as usize * 4];
        self.source.read(name, rect, Dtype::Float32, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    fn vector(&self, name: &str) -> Result<B::Vector> {
        Ok(self.backend.vector(self.values(name)?))
    }

    fn mamba(&self, prefix: &str, spec: Mamba) -> Result<MambaWeights<B>> {
        let name = |rest: &str| format!("{prefix}mixer.{rest}");
        let mut conv = Vec::new();
        let mut conv_bias = Vec::new();
        for part in ["x", "B", "C"] {
            conv.push(self.values(&name(&format!("conv1d.weight.{part}")))?);
            conv_bias.push(self.values(&name(&format!("conv1d.bias.{part}")))?);
        }
        let groups = spec.groups as usize;
        let a = self.values(&name("A_log"))?.iter().map(|x| -x.exp()).collect();
        Ok(MambaWeights {
            spec,
            in_proj: self.linear(prefix, Site::MambaIn)?,
            out_proj: self.linear(prefix, Site::MambaOut)?,
            conv: self.backend.vector(by_group(&conv, groups, spec.conv_kernel as usize)),
            conv_bias: self.backend.vector(by_group(&conv_bias, groups, 1)),
            a: self.backend.vector(a),
            d: self.vector(&name("D"))?,
            dt_bias: self.vector(&name("dt_bias"))?,
            norm: self.vector(&name("norm.weight"))?,
        })
    }

    fn moe(&self, prefix: &str, spec: Moe) -> Result<MoeWeights<B>> {
        let name = |rest: &str| format!("{prefix}mlp.{rest}");
        let latent = if spec.latent.is_some() {
            Some((self.linear(prefix, Site::LatentDown)?, self.linear(prefix, Site::LatentUp)?))
        } else {
            None
        };
        Ok(MoeWeights {
            spec,
            router: self.exact_matrix(&name("router.weight"))?,
            expert_bias: self.vector(&name("router.expert_bias"))?,
            latent,
            fc1: self.experts(prefix, Site::ExpertFc1, spec.experts)?,
            fc2: self.experts(prefix, Site::ExpertFc2, spec.experts)?,
            weight_before_fc2: self.quant.is_some_and(|q| q.routed_fc2 == RoutedFc2::WeightBefore),
            shared_fc1: self.linear(prefix, Site::SharedFc1)?,
            shared_fc2: self.linear(prefix, Site::SharedFc2)?,
        })
    }

    /// The matrices of a tensor `[experts, out, in]`, several at a time.
    fn experts(&self, prefix: &str, site: Site, experts: u64) -> Result<ExpertLinears<B>> {
        let quant = self.quant_of(prefix, site);
        let results: Mutex<Vec<(u64, Result<B::Matrix>)>> = Mutex::new(Vec::new());
        let next = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, experts.max(1) as usize) {
                scope.spawn(|| {
                    loop {
                        let e = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if e >= experts {
                            break;
                        }
                        let matrix = self.matrix_of(prefix, site, Some(e), quant);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((e, matrix));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|r| r.0);
        let matrices = results.into_iter().map(|r| r.1).collect::<Result<_>>()?;
        let cols = self.columns(prefix, site);
        let module = format!("{prefix}{}", site.module());
        let inputs = self.quant.map_or_else(|| Ok(Vec::new()), |quant| quant.expert_inputs(&module, cols))?;
        Ok(ExpertLinears { matrices, inputs })
    }

    /// The router's matrix, which is used in float32 in every precision.
    fn exact_matrix(&self, name: &str) -> Result<B::Matrix> {
        self.pack(&[Piece { name: name.to_owned(), slot: None, first_row: 0 }], self.exact_element(name))
    }

    fn exact_element(&self, name: &str) -> Dtype {
        let dtype = self.source.tensor(name).1;
        if dtype == Dtype::Bfloat16 { dtype } else { Dtype::Float32 }
    }

    /// The weight of a linear, quantized if `quant` says so.
    fn matrix_of(
        &self,
        prefix: &str,
        site: Site,
        expert: Option<u64>,
        quant: Option<&LinearQuant>,
    ) -> Result<B::Matrix> {
        let names = self.tensors(prefix, site);
        let of = expert.unwrap_or(0) as usize;
        let format = self.format(&names, of, quant);
        let (rows, cols) = self.shape(&names);
        let mut pieces = Vec::with_capacity(names.len());
        let mut first_row = 0;
        for name in names {
            let shape = self.source.tensor(&name).0;
            let rows = shape[shape.len() - 2];
            pieces.push(Piece { name, slot: expert, first_row });
            first_row += rows;
        }
        match (quant, self.quant, format) {
            (Some(linear), Some(state), format) if linear.changes_weight() => {
                let module = format!("{prefix}{}", site.module());
                let bands = WeightBands {
                    module: &module,
                    element: state.element,
                    stages: linear.weight.stages(of),
                    scale: linear.weight_scale.as_deref(),
                    rows: rows as usize,
                    cols: cols as usize,
                };
                self.pack_bands(&bands, &pieces, format)
            }
            (_, _, WeightFormat::Float(element)) => self.pack(&pieces, element),
            (_, _, WeightFormat::Quantized(_)) => self.pack_codes(&pieces, (rows as usize, cols as usize), format),
        }
    }

    /// How the matrix of these tensors (of stacked ones, of this expert) is kept.
    fn format(&self, names: &[String], expert: usize, quant: Option<&LinearQuant>) -> WeightFormat {
        let stages = quant.map_or(&[][..], |quant| quant.weight.stages(expert));
        if let (true, &[WeightStage { scheme, .. }]) = (self.packed, stages) {
            let (rows, cols) = self.shape(names);
            // Of shapes that exporters refuse, the quantization is simulated.
            if self.backend.has_quantized(scheme) && longshore_quant::pack::layout(&[scheme], rows, cols).is_ok() {
                return WeightFormat::Quantized(scheme);
            }
        }
        if let (true, Some(scheme)) = (self.packed && stages.is_empty(), self.stored_scheme(names, expert)) {
            return WeightFormat::Quantized(scheme);
        }
        WeightFormat::Float(self.element(names, quant.is_some_and(LinearQuant::changes_weight)))
    }

    /// The scheme of a weight that the checkpoint stores in codes, all of it in the same and in such pieces that it can stay
    /// as it is.
    fn stored_scheme(&self, names: &[String], expert: usize) -> Option<Scheme> {
        let (mut first_row, mut scheme) = (0, None);
        for name in names {
            for rows in self.source.coded(name, &self.part(name, Some(expert as u64)))? {
                let of_rows = rows.scheme();
                let unit = longshore_quant::pack::band_rows(&[of_rows]) as u64;
                if *scheme.get_or_insert(of_rows) != of_rows || !rows.stands_alone() || first_row % unit != 0 {
                    return None;
                }
                first_row += rows.count();
            }
        }
        scheme.filter(|&scheme| self.backend.has_quantized(scheme))
    }

    /// A tensor, or one expert of a stacked one.
    fn part(&self, name: &str, slot: Option<u64>) -> Rect {
        let mut rect = Rect::whole(self.source.tensor(name).0);
        if let (Some(slot), true) = (slot, rect.sizes.len() > 2) {
            (rect.offsets[0], rect.sizes[0]) = (slot, 1);
        }
        rect
    }

    /// A weight that is stored in codes, as it is.
    fn pack_codes(&self, pieces: &[Piece], (rows, cols): (usize, usize), format: WeightFormat) -> Result<B::Matrix> {
        let mut matrix = self.backend.matrix(rows, cols, format);
        for piece in pieces {
            let mut first = piece.first_row;
            let coded = self.source.coded(&piece.name, &self.part(&piece.name, piece.slot));
            for rows in coded.unwrap_or_else(|| unreachable!("`stored_scheme` has seen them")) {
                rows.read(|row, codes| self.backend.pack_quantized(&mut matrix, (first + row) as usize, codes))?;
                first += rows.count();
            }
        }
        Ok(matrix)
    }

    /// One type for all tensors of a matrix: the one that loses nothing. `simulated`: what simulation rounds to.
    fn element(&self, names: &[String], simulated: bool) -> Dtype {
        if simulated {
            let bfloat16 = self.quant.is_some_and(|q| q.element == Element::Bfloat16);
            return self.backend.matrix_type(if bfloat16 { Dtype::Bfloat16 } else { Dtype::Float32 });
        }
        let types: Vec<Dtype> = names.iter().map(|n| self.backend.matrix_type(self.source.tensor(n).1)).collect();
        if types.iter().all(|&t| t == types[0]) { types[0] } else { Dtype::Float32 }
    }

    /// A weight that is quantized while it is read: as its format says, codes or simulated values.
    fn pack_bands(&self, bands: &WeightBands<'_>, pieces: &[Piece], format: WeightFormat) -> Result<B::Matrix> {
        let mut matrix = self.backend.matrix(bands.rows, bands.cols, format);
        let read = |range: Range<usize>| {
            let mut values = Vec::with_capacity(range.len() * bands.cols);
            for piece in pieces {
                let mut rect = self.part(&piece.name, piece.slot);
                let axis = rect.sizes.len() - 2;
                let end = piece.first_row + rect.sizes[axis];
                let (from, to) = ((range.start as u64).max(piece.first_row), (range.end as u64).min(end));
                if from < to {
                    (rect.offsets[axis], rect.sizes[axis]) = (from - piece.first_row, to - from);
                    values.append(&mut self.values_of(&piece.name, &rect)?);
                }
            }
            // A model of this element type holds weights of it.
            for x in &mut values {
                *x = bands.element.round(*x);
            }
            Ok(values)
        };
        match format {
            WeightFormat::Quantized(_) => {
                bands.each_packed(read, |row, rows| self.backend.pack_quantized(&mut matrix, row, rows))?;
            }
            WeightFormat::Float(element) => bands.each_simulated(read, |row, values| {
                let bytes: Vec<u8> = if element == Dtype::Bfloat16 {
                    values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
                } else {
                    values.iter().flat_map(|x| x.to_le_bytes()).collect()
                };
                self.backend.pack(&mut matrix, row, &bytes);
            })?,
        }
        Ok(matrix)
    }

    fn pack(&self, pieces: &[Piece], element: Dtype) -> Result<B::Matrix> {
        let mut rows = 0;
        let mut cols = 0;
        for piece in pieces {
            let shape = self.source.tensor(&piece.name).0;
            rows += shape[shape.len() - 2];
            cols = shape[shape.len() - 1];
        }
        let mut matrix = self.backend.matrix(rows as usize, cols as usize, element);
        for piece in pieces {
            let rect = self.part(&piece.name, piece.slot);
            self.source.read_rows(&piece.name, &rect, element, cols, |row, bytes| {
                self.backend.pack(&mut matrix, piece.first_row as usize + row, bytes);
            })?;
        }
        Ok(matrix)
    }
}

/// `[groups, kernel, x | B | C of the group]` from the parts x, B and C, each `[channels, kernel]`.
fn by_group(parts: &[Vec<f32>], groups: usize, kernel: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for group in 0..groups {
        for j in 0..kernel {
            for part in parts {
                let len = part.len() / groups;
                out.extend(part[group * len..(group + 1) * len].iter().skip(j).step_by(kernel));
            }
        }
    }
    out
}

/// The layers of the prediction block `b` with the prefixes of their names.
pub(crate) fn block_layers(mtp: &Mtp, b: u64) -> impl Iterator<Item = (String, LayerSpec)> {
    let layers = mtp.layers.iter().enumerate();
    layers.map(move |(k, &spec)| (format!("mtp.layers.{b}.mtp_model_layer.layers.{k}."), spec))
}

/// Fields of a Megatron checkpoint that decide the function and that neither its arguments nor its tensors say.
pub(crate) fn not_stored(layers: &[LayerSpec]) -> Vec<&'static str> {
    let mut fields = Vec::new();
    for layer in layers {
        if let LayerSpec::Moe(moe) = layer {
            fields.extend((moe.top_k == 0).then_some("num_experts_per_tok"));
            fields.extend((moe.routed_scaling_factor == 0.0).then_some("routed_scaling_factor"));
        }
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}

/// Bytes that a sequence's state takes in a layer: what is fixed, and what every token adds.
pub(crate) fn state_size(spec: &LayerSpec, kv_element: u64) -> (u64, u64) {
    match *spec {
        LayerSpec::Mamba(Mamba { heads, head_dim, groups, state, conv_kernel }) => {
            let channels = heads * head_dim + 2 * groups * state;
            (4 * (heads * head_dim * state + (conv_kernel - 1) * channels), 0)
        }
        LayerSpec::Attention(Attention { kv_heads, head_dim, .. }) => (0, 2 * kv_heads * head_dim * kv_element),
        LayerSpec::Mlp(Mlp { .. }) | LayerSpec::Moe(_) => (0, 0),
    }
}
