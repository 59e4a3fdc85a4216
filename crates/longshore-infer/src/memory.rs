//! What fits: which weights stay in memory and what is left for activations, decided before anything is read.

use crate::error::{Error, Result};

/// Sizes of a model, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Packed matrices of each layer.
    pub layers: Vec<u64>,
    /// Packed output layer.
    pub head: u64,
    /// A sequence's state in each layer: what is fixed, and what every token adds.
    pub states: Vec<(u64, u64)>,
    /// What a token takes while the widest layer computes.
    pub working: u64,
    /// A token's row of the residual stream, as it is stored between layers.
    pub row: u64,
    /// A token's logits.
    pub logits: u64,
}

/// What is going to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Sequences that have a state at a time: in every layer where they decode, else in the layer that computes.
    pub states: u64,
    /// Tokens in all these states together, new ones included.
    pub state_tokens: u64,
    /// Tokens of all prompts at a time.
    pub prompt_tokens: u64,
    /// Tokens that a layer works on at a time.
    pub batch_tokens: u64,
    /// Positions whose logits are in memory at a time.
    pub logits: u64,
    /// Whether the sequences go on after their prompts, so that states stay and layers are needed again and again.
    pub decode: bool,
}

/// What stays in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Layers from the first on.
    pub layers: usize,
    /// Whether the output layer stays.
    pub head: bool,
    /// Whether a streamed layer is read while the one before computes.
    pub prefetch: bool,
    /// Bytes for the residual stream between streamed layers.
    pub activations: u64,
    /// Bytes that are left.
    pub spare: u64,
}

/// Divides `budget` (`None`: no limit). Errors: not even one layer at a time fits.
pub fn plan(sizes: &Sizes, demand: &Demand, budget: Option<u64>) -> Result<Plan> {
    let batch = demand.batch_tokens.min(demand.prompt_tokens.max(demand.states));
    let each = sizes.states.iter().map(|(fixed, per_token)| fixed * demand.states + per_token * demand.state_tokens);
    let states: u64 = if demand.decode { each.sum() } else { each.max().unwrap_or(0) };
    let fixed = states + sizes.working * batch + sizes.logits * demand.logits;
    let all: u64 = sizes.layers.iter().sum::<u64>() + sizes.head;
    let Some(budget) = budget else {
        return Ok(Plan {
            layers: sizes.layers.len(),
            head: true,
            prefetch: false,
            activations: u64::MAX,
            spare: u64::MAX,
        });
    };
    if demand.decode && fixed + all <= budget {
        let spare = budget - fixed - all;
        return Ok(Plan { layers: sizes.layers.len(), head: true, prefetch: false, activations: 0, spare });
    }
    let largest = sizes.layers.iter().copied().max().unwrap_or(0).max(sizes.head);
    let short = |what: &str, needed: u64| Error::Memory { what: what.to_owned(), needed, budget };
    if fixed > budget {
        return Err(short("the state of the prompts and their activations", fixed));
    }
    let Some(mut left) = budget.checked_sub(fixed + largest) else {
        return Err(short("one layer beside the state of the prompts", fixed + largest));
    };
    let prefetch = left >= largest;
    if prefetch {
        left -= largest;
    }
    let activations = (sizes.row * demand.prompt_tokens).min(left);
    left -= activations;
    let mut plan = Plan { layers: 0, head: false, prefetch, activations, spare: 0 };
    if demand.decode {
        // The output layer is needed as often as any other.
        if sizes.head <= left {
            plan.head = true;
            left -= sizes.head;
        }
        for size in &sizes.layers {
            let Some(rest) = left.checked_sub(*size) else { break };
            left = rest;
            plan.layers += 1;
        }
    }
    plan.spare = left;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        Sizes { layers: vec![100, 300, 100], head: 50, states: vec![(10, 1); 3], working: 2, row: 4, logits: 1 }
    }

    fn demand(decode: bool) -> Demand {
        Demand { states: 2, state_tokens: 20, prompt_tokens: 20, batch_tokens: 8, logits: 4, decode }
    }

    #[test]
    fn what_fits_stays() {
        // States 3 * 20 * 2, working 2 * 8, logits 4.
        let fixed = 120 + 16 + 4;
        let all = Plan { layers: 3, head: true, prefetch: false, activations: 0, spare: 0 };
        assert_eq!(plan(&sizes(), &demand(true), Some(fixed + 550)).unwrap(), all);
        let some = Plan { layers: 0, head: false, prefetch: false, activations: 80, spare: 1 };
        assert_eq!(
            plan(&sizes(), &demand(true), Some(fixed + 549)).unwrap(),
            Plan { layers: 1, head: true, spare: 19, ..some.clone() }
        );
        assert_eq!(plan(&sizes(), &demand(true), Some(fixed + 300 + 81)).unwrap(), some);
        let ahead = plan(&sizes(), &demand(true), Some(fixed + 600)).unwrap_or_else(|e| panic!("{e}"));
        assert!(ahead.layers == 3, "it fits whole: {ahead:?}");
    }

    #[test]
    fn a_sweep_keeps_one_layers_states_and_no_weights() {
        let fixed = 40 + 16 + 4;
        let got = plan(&sizes(), &demand(false), Some(fixed + 600)).unwrap();
        assert_eq!(got, Plan { layers: 0, head: false, prefetch: true, activations: 0, spare: 0 });
        let got = plan(&sizes(), &demand(false), Some(fixed + 10_000)).unwrap();
        assert_eq!(got, Plan { layers: 0, head: false, prefetch: true, activations: 80, spare: 10_000 - 600 - 80 });
    }

    #[test]
    fn too_little_is_an_error_with_the_numbers() {
        let error = plan(&sizes(), &demand(true), Some(139)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the state of the prompts and their activations needs 140 bytes of memory, 139 bytes are allowed"
        );
        assert!(plan(&sizes(), &demand(true), Some(439)).is_err());
        assert!(plan(&sizes(), &demand(true), Some(440)).is_ok());
    }
}
