//! Models that a script's first argument may name, to notice that it names another one than is read.

use longshore_convert::config::ModelConfig;

/// Part of the name, hidden size and number of layers of the published Nemotron-H models (their config.json, and the
/// configs of Megatron-LM's post-training scripts).
const MODELS: &[(&str, u64, usize)] = &[
    ("Nemotron-H-4B", 3072, 52),
    ("Nemotron-H-8B", 4096, 52),
    ("Nemotron-H-47B", 8192, 98),
    ("Nemotron-H-56B", 8192, 118),
    ("Nemotron-Nano-9B-v2", 4480, 56),
    ("Nemotron-Nano-12B-v2", 5120, 62),
    ("Nemotron-3-Nano-4B", 3136, 42),
    ("Nemotron-3-Nano-30B-A3B", 2688, 52),
    ("Nemotron-3-Super-120B-A12B", 4096, 88),
    ("Nemotron-3-Ultra-550B-A55B", 8192, 108),
];

/// What to say where `label` names a published model that is not `config`'s.
pub(super) fn contradiction(label: &str, config: &ModelConfig) -> Option<String> {
    let &(_, hidden, layers) = MODELS.iter().find(|model| label.contains(model.0))?;
    let found = (config.hidden_size, config.layers.len());
    (found != (hidden, layers)).then(|| {
        format!(
            "`{label}` names a model with {layers} layers of {hidden}, and this one has {} of {}; the checkpoint decides",
            found.1, found.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_convert::config::{Activation, LayerSpec, Mlp};

    #[test]
    fn only_a_known_name_of_another_model_is_a_contradiction() {
        let mlp = LayerSpec::Mlp(Mlp { ffn: 8, activation: Activation::ReluSquared });
        let config = ModelConfig { layers: vec![mlp; 52], ..ModelConfig::minimal("NemotronHForCausalLM", 3072, 16) };
        assert_eq!(contradiction("nvidia/Nemotron-H-4B-Instruct", &config), None);
        assert_eq!(contradiction("acme/own-model", &config), None);
        let text = contradiction("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", &config).expect("another model");
        assert!(text.contains("52 layers of 2688, and this one has 52 of 3072"), "{text}");
    }
}
