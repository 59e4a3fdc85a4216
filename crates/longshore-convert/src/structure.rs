//! The modules of a model as Megatron builds it: the tree that `print(model)` shows, without the modules that hold nothing.

use crate::config::ModelConfig;
use crate::model::{Model, Stored, spec, stored_vocab};
use crate::options::SpecName;
use crate::quantized::Quantization;
use crate::{Error, Result, source};
use longshore_ckpt::{Catalog, Format};
use longshore_quant::Scheme;

/// A module, or several that are alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Its names in the module above; several where modules that are alike are shown once. Empty for the model itself.
    pub names: Vec<String>,
    /// Megatron's class.
    pub class: &'static str,
    /// Its own parameters and saved buffers.
    pub parameters: Vec<Parameter>,
    /// What its quantizers do.
    pub quantizers: Vec<(String, Vec<Scheme>)>,
    /// The modules inside, in the order of their registration.
    pub modules: Vec<Module>,
}

/// A parameter, or a saved buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in the module. Of several, without their numbers: `weight` for `weight0`, `weight1`, ….
    pub name: &'static str,
    /// In elements.
    pub shape: Vec<u64>,
    /// How many there are, where they are numbered.
    pub count: Option<u64>,
}

/// What decides the classes of a model's modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The spec.
    pub name: SpecName,
    /// Whether every expert is a module of its own (`SequentialMLP`).
    pub sequential_experts: bool,
    /// Rows of the vocabulary.
    pub vocabulary: u64,
}

impl Spec {
    /// That of a model whose vocabulary is not padded.
    pub fn new(name: SpecName, config: &ModelConfig) -> Self {
        Self { name, sequential_experts: name == SpecName::Local, vocabulary: config.vocab_size }
    }
}

impl Module {
    /// A module of this class without anything in it.
    pub fn new(class: &'static str) -> Self {
        Self { class, ..Self::default() }
    }

    /// With one more parameter.
    #[must_use]
    pub fn parameter(mut self, name: &'static str, shape: &[u64]) -> Self {
        self.parameters.push(Parameter { name, shape: shape.to_vec(), count: None });
        self
    }

    /// With one more module.
    #[must_use]
    pub fn module(mut self, name: impl Into<String>, mut module: Self) -> Self {
        module.names = vec![name.into()];
        self.modules.push(module);
        self
    }

    /// A list of modules by their index.
    pub fn list(modules: impl IntoIterator<Item = Self>) -> Self {
        (0u64..).zip(modules).fold(Self::new("ModuleList"), |list, (i, module)| list.module(i.to_string(), module))
    }

    /// The same with modules of one list that are alike shown once.
    #[must_use]
    pub fn folded(mut self) -> Self {
        let modules: Vec<Self> = std::mem::take(&mut self.modules).into_iter().map(Self::folded).collect();
        if self.class != "ModuleList" {
            return Self { modules, ..self };
        }
        for mut module in modules {
            let names = std::mem::take(&mut module.names);
            let like = self.modules.iter_mut().find(|known| known.is_like(&module));
            match like {
                Some(known) => known.names.extend(names),
                None => self.modules.push(Self { names, ..module }),
            }
        }
        self
    }

    /// Whether the two differ in their names at most.
    fn is_like(&self, other: &Self) -> bool {
        self.class == other.class
            && self.parameters == other.parameters
            && self.quantizers == other.quantizers
            && self.modules == other.modules
    }

    /// Puts the quantizers of a model to their modules. `path` is what lies above this one.
    fn quantize(&mut self, path: &str, quantization: &Quantization) {
        // Experts in one module have one linear each in the checkpoint; the first stands for all.
        let stored = path.replace(".local_experts.", ".experts.");
        let first = path.replace(".mlp.experts.linear", ".mlp.experts.experts.0.linear");
        let linear = quantization.linears.iter().find(|q| q.linear.module == stored || q.linear.module == first);
        if let Some(quantized) = linear {
            self.quantizers.extend(quantized.input_scheme.map(|scheme| ("input_quantizer".into(), vec![scheme])));
            if !quantized.weight_schemes.is_empty() {
                self.quantizers.push(("weight_quantizer".into(), quantized.weight_schemes.clone()));
            }
        }
        if self.class == "SelfAttention" {
            let core = format!("{path}.core_attention");
            for kv in quantization.kv.iter().filter(|kv| kv.module == core) {
                let names = ["q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer"];
                let quantizers = names.into_iter().zip(kv.schemes);
                let quantizers = quantizers.filter_map(|(name, scheme)| Some((name.to_owned(), vec![scheme?])));
                let quantizers: Vec<_> = quantizers.collect();
                if !quantizers.is_empty() {
                    let core = Self { quantizers, ..Self::new("TEDotProductAttention") };
                    self.modules.insert(0, Self { names: vec!["core_attention".into()], ..core });
                }
            }
        }
        for module in &mut self.modules {
            let name = module.names.first().cloned().unwrap_or_default();
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            module.quantize(&path, quantization);
        }
    }
}

/// The modules of the model in a checkpoint: of torch_dist those that it was saved from, of a Hugging Face folder those that
/// load what `convert` makes of it.
pub fn structure(mut catalog: Catalog) -> Result<Module> {
    let (model, spec, quantization) = match catalog.format {
        Format::Safetensors => {
            let (model, packed) = source::hugging_face(&mut catalog, None)?;
            let spec = Spec::new(SpecName::Te, &model.config);
            (model, spec, packed.map(|packed| packed.quantization))
        }
        Format::TorchDist => {
            let name = spec(&catalog);
            let grouped = Stored::of(&catalog)?.args.flag("moe_grouped_gemm");
            let rows = stored_vocab(&catalog);
            let (model, _, stored) = source::torch_dist(&mut catalog, None)?;
            let spec = Spec {
                sequential_experts: grouped.map_or(name == SpecName::Local, |grouped| !grouped),
                vocabulary: rows.unwrap_or(model.config.vocab_size),
                ..Spec::new(name, &model.config)
            };
            (model, spec, stored.map(|stored| stored.quantization))
        }
    };
    model.check_converted(&catalog.folder)?;
    let Model { config, architecture, .. } = model;
    let what = || format!("the modules of `{}` are not known", architecture.hf_class);
    let build = architecture.structure.ok_or_else(|| Error::Model { path: catalog.folder.clone(), what: what() })?;
    let mut module = build(&config, spec);
    if let Some(quantization) = quantization {
        module.quantize("", &quantization);
    }
    Ok(module)
}
