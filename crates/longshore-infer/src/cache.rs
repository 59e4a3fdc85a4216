//! What a model remembers of a sequence: key/value caches, convolution tails and state-space states, layer by layer.

use crate::backend::Backend;

/// What one layer remembers of one sequence.
pub enum LayerState<B: Backend> {
    /// Convolution tail and scan state of a Mamba layer, and copies of it after earlier rows of the last step.
    Mamba {
        /// After the last token.
        state: B::MambaState,
        /// After every token of the last step but its last, where that was asked for.
        trail: Vec<B::MambaState>,
    },
    /// Keys and values of an attention layer.
    Kv(B::KvState),
    /// MLP and MoE layers remember nothing.
    None,
}

impl<B: Backend> LayerState<B> {
    /// A copy for a sequence that goes on with about `tokens` more.
    pub(crate) fn fork(&self, backend: &B, tokens: usize) -> Self {
        match self {
            Self::Mamba { state, .. } => Self::Mamba { state: state.clone(), trail: Vec::new() },
            Self::Kv(state) => Self::Kv(backend.fork_kv(state, tokens)),
            Self::None => Self::None,
        }
    }

    /// Takes back all but the first `kept` tokens of the last step of `step` tokens; `tokens` is the sequence's new length.
    pub(crate) fn rewind(&mut self, backend: &B, tokens: usize, step: usize, kept: usize) {
        match self {
            Self::Mamba { state, trail } => {
                if kept < step {
                    *state = trail.swap_remove(kept - 1);
                }
                trail.clear();
            }
            Self::Kv(state) => backend.truncate_kv(state, tokens),
            Self::None => {}
        }
    }
}

/// A sequence that a model has read so far.
pub struct Sequence<B: Backend> {
    /// Tokens read.
    pub(crate) tokens: usize,
    /// One for each layer that has read something.
    pub(crate) layers: Vec<LayerState<B>>,
}

impl<B: Backend> Sequence<B> {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self { tokens: 0, layers: Vec::new() }
    }

    /// Tokens read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl<B: Backend> Default for Sequence<B> {
    fn default() -> Self {
        Self::new()
    }
}
