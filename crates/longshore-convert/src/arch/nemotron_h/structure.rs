//! The modules of a Nemotron-H model in Megatron. Names, classes and order are those of megatron-core 0.16.1, which
//! `interop/structure.py` compares; of MTP, which hybrid models have from 0.17 on, those of main of August 2026. From 0.18 on
//! `MambaModel` and `MambaStack` are called `HybridModel` and `HybridStack`.

use crate::config::{Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe, Mtp};
use crate::options::SpecName;
use crate::structure::{Module, Parameter, Spec};

/// The classes of one spec, and the width of the model.
struct Builder {
    spec: Spec,
    hidden: u64,
}

/// The whole model.
pub fn structure(config: &ModelConfig, spec: Spec) -> Module {
    let b = Builder { spec, hidden: config.hidden_size };
    let table = [spec.vocabulary, b.hidden];
    let embeddings = Module::new("VocabParallelEmbedding").parameter("weight", &table);
    let decoder = b.stack(&config.layers).module("final_norm", b.norm());
    // Exists where the embedding takes its place too, without a weight.
    let output = Module::new("ColumnParallelLinear");
    let output = if config.tie_word_embeddings { output } else { output.parameter("weight", &table) };
    let model = Module::new("MambaModel")
        .module("embedding", Module::new("LanguageModelEmbedding").module("word_embeddings", embeddings))
        .module("decoder", decoder);
    let model = match &config.mtp {
        Some(mtp) => model.module("mtp", b.mtp(mtp)),
        None => model,
    };
    model.module("output_layer", output)
}

impl Builder {
    fn is_te(&self) -> bool {
        self.spec.name == SpecName::Te
    }

    fn norm(&self) -> Module {
        Module::new("RMSNorm").parameter("weight", &[self.hidden])
    }

    /// The norm of its own that a layer has where no linear holds it.
    fn separate_norm(&self, layer: Module, name: &str) -> Module {
        if self.is_te() { layer } else { layer.module(name, self.norm()) }
    }

    fn column(&self, rows: u64, cols: u64) -> Module {
        let class = if self.is_te() { "TEColumnParallelLinear" } else { "ColumnParallelLinear" };
        Module::new(class).parameter("weight", &[rows, cols])
    }

    /// A linear behind a layer's norm.
    fn first_column(&self, rows: u64) -> Module {
        if !self.is_te() {
            return self.column(rows, self.hidden);
        }
        let fused = Module::new("TELayerNormColumnParallelLinear").parameter("layer_norm_weight", &[self.hidden]);
        fused.parameter("weight", &[rows, self.hidden])
    }

    fn row(&self, rows: u64, cols: u64) -> Module {
        let class = if self.is_te() { "TERowParallelLinear" } else { "RowParallelLinear" };
        Module::new(class).parameter("weight", &[rows, cols])
    }

    fn stack(&self, layers: &[LayerSpec]) -> Module {
        Module::new("MambaStack").module("layers", Module::list(layers.iter().map(|layer| self.layer(layer))))
    }

    fn layer(&self, layer: &LayerSpec) -> Module {
        match layer {
            LayerSpec::Mamba(mamba) => {
                let layer = Module::new("MambaLayer").module("mixer", self.mixer(mamba));
                self.separate_norm(layer, "norm")
            }
            LayerSpec::Attention(Attention { heads, kv_heads, head_dim, .. }) => {
                let attention = Module::new("SelfAttention")
                    .module("linear_proj", self.row(self.hidden, heads * head_dim))
                    .module("linear_qkv", self.first_column((heads + 2 * kv_heads) * head_dim));
                let layer = self.separate_norm(Module::new("TransformerLayer"), "input_layernorm");
                layer.module("self_attention", attention)
            }
            LayerSpec::Mlp(Mlp { ffn, .. }) => {
                let mlp = Module::new("MLP");
                let mlp = mlp.module("linear_fc1", self.first_column(*ffn));
                let mlp = mlp.module("linear_fc2", self.row(self.hidden, *ffn));
                let class = if self.is_te() { "MLPLayer" } else { "TransformerLayer" };
                self.separate_norm(Module::new(class), "pre_mlp_layernorm").module("mlp", mlp)
            }
            LayerSpec::Moe(moe) => {
                let class = if self.is_te() { "MoETransformerLayer" } else { "TransformerLayer" };
                Module::new(class).module("pre_mlp_layernorm", self.norm()).module("mlp", self.moe(moe))
            }
        }
    }

    fn mixer(&self, mamba: &Mamba) -> Module {
        let &Mamba { heads, head_dim, groups, state, conv_kernel } = mamba;
        let (inner, bc) = (heads * head_dim, groups * state);
        let conv = Module::new("Conv1d").parameter("weight", &[inner + 2 * bc, 1, conv_kernel]);
        Module::new("MambaMixer")
            .parameter("dt_bias", &[heads])
            .parameter("A_log", &[heads])
            .parameter("D", &[heads])
            .module("in_proj", self.first_column(2 * inner + 2 * bc + heads))
            .module("conv1d", conv.parameter("bias", &[inner + 2 * bc]))
            .module("norm", Module::new("ExtendedRMSNorm").parameter("weight", &[inner]))
            .module("out_proj", self.row(self.hidden, inner))
    }

    fn moe(&self, moe: &Moe) -> Module {
        let (h, experts) = (self.hidden, moe.experts);
        let width = moe.latent.unwrap_or(h);
        let router = Module::new("TopKRouter").parameter("weight", &[experts, h]).parameter("expert_bias", &[experts]);
        let mut layer = Module::new("MoELayer").module("router", router);
        if let Some(latent) = moe.latent {
            let linear = |rows, cols| Module::new("TELinear").parameter("weight", &[rows, cols]);
            layer = layer.module("fc1_latent_proj", linear(latent, h)).module("fc2_latent_proj", linear(h, latent));
        }
        let shared = Module::new("SharedExpertMLP")
            .module("linear_fc1", self.column(moe.shared_ffn, h))
            .module("linear_fc2", self.row(h, moe.shared_ffn));
        layer.module("experts", self.experts(moe, width)).module("shared_experts", shared)
    }

    fn experts(&self, moe: &Moe, width: u64) -> Module {
        let (count, ffn) = (moe.experts, moe.expert_ffn);
        if self.spec.sequential_experts {
            let expert = || {
                Module::new("MLP")
                    .module("linear_fc1", self.column(ffn, width))
                    .module("linear_fc2", self.row(width, ffn))
            };
            return Module::new("SequentialMLP").module("local_experts", Module::list((0..count).map(|_| expert())));
        }
        let grouped = |class, shape: [u64; 2]| {
            let weights = Parameter { name: "weight", shape: shape.to_vec(), count: Some(count) };
            Module { parameters: vec![weights], ..Module::new(class) }
        };
        Module::new("TEGroupedMLP")
            .module("linear_fc1", grouped("TEColumnParallelGroupedLinear", [ffn, width]))
            .module("linear_fc2", grouped("TERowParallelGroupedLinear", [width, ffn]))
    }

    fn mtp(&self, mtp: &Mtp) -> Module {
        let block = || {
            Module::new("MultiTokenPredictionLayer")
                .module("enorm", self.norm())
                .module("hnorm", self.norm())
                .module("eh_proj", self.column(self.hidden, 2 * self.hidden))
                .module("mtp_model_layer", self.stack(&mtp.layers))
                .module("final_layernorm", self.norm())
        };
        let layers = Module::list((0..mtp.blocks()).map(|_| block()));
        Module::new("MultiTokenPredictionBlock").module("layers", layers)
    }
}
