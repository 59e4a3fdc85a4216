//! What a config makes of a model.

use super::linear::{Linear, Naming, Role, linears};
use super::{KvQuantizers, QuantLinear, Quantization};
use crate::config::LayerSpec;
use crate::error::Problem;
use crate::model::Model;
use longshore_quant::config::{Method, QuantConfig, QuantizerSite};
use longshore_quant::{Attributes, Scheme, pack};
use std::collections::BTreeMap;

impl Quantization {
    /// Applies a config to the quantizers of a model, under one side's names. Refused are, all together, quantizers that
    /// nothing computes or stores and weights that do not divide into blocks.
    pub fn decide(model: &Model, naming: Naming, config: &QuantConfig) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let all = linears(model.architecture, &model.config);
        let mut sites = Sites::default();
        for linear in &all {
            let class = class_of(naming, linear);
            for role in Role::ALL {
                for name in linear.quantizers(naming, role) {
                    sites.add(name, class);
                }
            }
        }
        let attention = attention_layers(model);
        for layer in &attention {
            for name in kv_sites(naming, layer) {
                sites.add(name, if naming == Naming::HuggingFace { "" } else { "te_DotProductAttention" });
            }
        }
        for name in never_quantized(naming, model) {
            sites.add(name.0, name.1);
        }
        let resolution = match config.resolve(&sites.list) {
            Ok(resolution) => resolution,
            Err(error) => {
                return Err(vec![Problem::Option { option: "--quant-cfg".into(), what: error.to_string() }]);
            }
        };
        let stages = |name: &str| sites.of.get(name).map(|&i| &resolution.stages[i]);
        let scales = config.algorithm.iter().any(|a| scales_inputs(&a.method));
        let mut decided = Vec::with_capacity(all.len());
        for linear in all {
            match decide_linear(linear, naming, &stages, scales) {
                Ok(q) => decided.push(q),
                Err(mut found) => problems.append(&mut found),
            }
        }
        let mut kv = Vec::new();
        for layer in attention {
            match decide_kv(&layer, naming, &stages) {
                Ok(found) => kv.extend(found),
                Err(problem) => problems.push(problem),
            }
        }
        for (name, _) in never_quantized(naming, model) {
            if stages(&name).is_some_and(|stages| stages.iter().any(|a| a.enable)) {
                let what = "the config quantizes it, which nothing here computes (--exclude it)".into();
                problems.push(Problem::Quantize { tensor: name, what });
            }
        }
        let mut warnings: Vec<String> = resolution
            .unexpected
            .iter()
            .map(|&i| format!("`{}` matches no quantizer of this model", config.entries[i].quantizer_name))
            .collect();
        if !decided.iter().any(QuantLinear::is_quantized) && kv.is_empty() {
            warnings.push("nothing is quantized".into());
        }
        if problems.is_empty() { Ok(Self { naming, linears: decided, kv, warnings }) } else { Err(problems) }
    }
}

/// The names of all quantizers, each once.
#[derive(Default)]
struct Sites {
    list: Vec<QuantizerSite>,
    of: BTreeMap<String, usize>,
}

impl Sites {
    fn add(&mut self, name: String, parent_class: &'static str) {
        let next = self.list.len();
        if *self.of.entry(name.clone()).or_insert(next) == next {
            self.list.push(QuantizerSite { name, parent_class });
        }
    }
}

/// Whether a method multiplies inputs by a scale per column.
fn scales_inputs(method: &Method) -> bool {
    matches!(
        method,
        Method::SmoothQuant { .. } | Method::AwqLite { .. } | Method::AwqFull { .. } | Method::SvdQuant { .. }
    )
}

/// The class that ModelOpt registers a linear's module under.
pub(super) fn class_of(naming: Naming, linear: &Linear) -> &'static str {
    match (naming, linear.expert, linear.tp_axis) {
        (Naming::HuggingFace, None, _) => "nn.Linear",
        (Naming::HuggingFace, Some(_), _) => "",
        (Naming::MegatronLocal, _, Some(1)) => "megatron_RowParallelLinear",
        (Naming::MegatronLocal, ..) => "megatron_ColumnParallelLinear",
        (Naming::MegatronTe, Some(_), _) => "te_mcore_GroupedLinear",
        (Naming::MegatronTe, None, _) => "te_mcore_Linear",
    }
}

/// What has quantizers besides linears, none of which this program computes.
fn never_quantized(naming: Naming, model: &Model) -> Vec<(String, &'static str)> {
    let mut names = Vec::new();
    if naming == Naming::HuggingFace {
        names.extend(Role::ALL.map(|role| (format!("model.embeddings.{}", role.quantizer()), "nn.Embedding")));
    }
    for (i, spec) in model.config.layers.iter().enumerate() {
        let layers = if naming == Naming::HuggingFace { "model" } else { "decoder" };
        // Newer releases keep the convolution as a bare parameter on the Megatron side.
        if matches!(spec, LayerSpec::Mamba(_)) {
            let name = |role: Role| format!("{layers}.layers.{i}.mixer.conv1d.{}", role.quantizer());
            names.extend(Role::ALL.map(|role| (name(role), "nn.Conv1d")));
        }
    }
    names
}

struct AttentionLayer {
    index: usize,
}

fn attention_layers(model: &Model) -> Vec<AttentionLayer> {
    let layers = model.config.layers.iter().enumerate();
    layers.filter(|(_, s)| matches!(s, LayerSpec::Attention(_))).map(|(index, _)| AttentionLayer { index }).collect()
}

/// Queries, keys, values; and the probabilities, which only transformers' attention has.
fn kv_sites(naming: Naming, layer: &AttentionLayer) -> Vec<String> {
    let i = layer.index;
    match naming {
        Naming::MegatronLocal | Naming::MegatronTe => {
            let name = |letter| format!("decoder.layers.{i}.self_attention.core_attention.{letter}_bmm_quantizer");
            ["q", "k", "v"].map(name).to_vec()
        }
        Naming::HuggingFace => {
            ["q", "k", "v", "p"].map(|letter| format!("model.layers.{i}.mixer.{letter}_bmm_quantizer")).to_vec()
        }
    }
}

/// The attributes of a linear's quantizers. Where transformers has several linears for it, they must agree: servers fuse
/// them.
fn decide_linear<'a>(
    linear: Linear,
    naming: Naming,
    stages: &dyn Fn(&str) -> Option<&'a Vec<Attributes>>,
    scales: bool,
) -> Result<QuantLinear, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut problem = |what: String| problems.push(Problem::Quantize { tensor: linear.module.clone(), what });
    let mut of_role = |role: Role| {
        let names = linear.quantizers(naming, role);
        let found: Vec<&Vec<Attributes>> = names.iter().filter_map(|name| stages(name)).collect();
        if found.windows(2).any(|pair| pair[0] != pair[1]) {
            problem(format!("{} are one linear and must be quantized alike", names.join(", ")));
        }
        found.first().map(|a| (*a).clone()).unwrap_or_default()
    };
    let [input, weight, output] = Role::ALL.map(&mut of_role);
    let mut schemes = |role: Role, attributes: &[Attributes]| -> Vec<Scheme> {
        let mut schemes = Vec::new();
        for a in attributes {
            match a.scheme() {
                Ok(scheme) => schemes.extend(scheme),
                Err(error) => problem(format!("{}: {error}", role.quantizer())),
            }
        }
        schemes
    };
    let input_schemes = schemes(Role::Input, &input);
    let weight_schemes = schemes(Role::Weight, &weight);
    if output.iter().any(|a| a.enable) {
        problem("quantized outputs are not implemented".into());
    }
    if input_schemes.len() > 1 {
        problem("an input that is quantized twice is not implemented".into());
    }
    for scheme in &weight_schemes {
        if let Err(error) = longshore_quant::amax::count(*scheme, linear.rows as usize, linear.cols as usize) {
            problem(error.to_string());
        }
    }
    if !weight_schemes.is_empty()
        && let Err(error) = pack::layout(&weight_schemes, linear.rows, linear.cols)
        && matches!(error, longshore_quant::Error::Indivisible { .. })
    {
        problem(error.to_string());
    }
    if !problems.is_empty() {
        problems.dedup();
        return Err(problems);
    }
    // Experts that are one module are not searched.
    let alone = linear.expert.is_none() || naming == Naming::MegatronLocal;
    let has_pre_quant_scale = scales && alone && !weight_schemes.is_empty();
    let input_scheme = input_schemes.first().copied();
    Ok(QuantLinear { linear, input, weight, output, input_scheme, weight_schemes, has_pre_quant_scale })
}

fn decide_kv<'a>(
    layer: &AttentionLayer,
    naming: Naming,
    stages: &dyn Fn(&str) -> Option<&'a Vec<Attributes>>,
) -> Result<Option<KvQuantizers>, Problem> {
    let module = format!("decoder.layers.{}.self_attention.core_attention", layer.index);
    let names = kv_sites(naming, layer);
    let attributes = [0, 1, 2].map(|i| names.get(i).and_then(|name| stages(name)).cloned().unwrap_or_default());
    let problem = |what: String| Problem::Quantize { tensor: module.clone(), what };
    let mut schemes = [None; 3];
    for (scheme, attributes) in schemes.iter_mut().zip(&attributes) {
        for a in attributes {
            if a.rotate && a.enable {
                return Err(problem("rotated keys are not implemented".into()));
            }
            *scheme = a.scheme().map_err(|e| problem(e.to_string()))?;
        }
    }
    if names.get(3).and_then(|name| stages(name)).is_some_and(|p| p.iter().any(|a| a.enable)) {
        return Err(problem("quantized attention probabilities are not implemented".into()));
    }
    // Megatron's attention core has a state even where nothing of it is quantized.
    if schemes.iter().all(Option::is_none) && naming == Naming::HuggingFace {
        return Ok(None);
    }
    Ok(Some(KvQuantizers::new(layer.index, attributes, schemes)))
}
