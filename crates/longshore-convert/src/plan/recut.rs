//! torch_dist → torch_dist: the tensors of one layout of keys as those of another.

use crate::Result;
use crate::mapping::Mapping;
use crate::region::Region;
use crate::resolve::{Direction, DtypeRule, OpenFiles, Part, Recipe, Resolved, is_float, locate, resolve};
use longshore_ckpt::{Catalog, Dtype};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The tensors of `target` from a checkpoint that holds those of `stored`. The two mappings are of one config, so that
/// the Hugging Face side joins them: a tensor is itself, or made of whole Hugging Face tensors. With problems, the tensors
/// that have none.
pub(crate) fn recut(stored: &Mapping, target: &Mapping, catalog: &Catalog, dtype: DtypeRule<'_>) -> Result<Resolved> {
    let mut out = resolve(stored, catalog, Direction::Export, &|_, _, dtype| dtype)?;
    if let Err(bad) = target.check() {
        out.problems.extend(bad.into_iter().map(|(tensor, what)| crate::Problem::Cover { tensor, what }));
    }
    let hf: BTreeMap<String, Recipe> =
        std::mem::take(&mut out.recipes).into_iter().map(|r| (r.name.clone(), r)).collect();
    let is_clean = out.problems.is_empty();
    let mut parts: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for tie in &target.ties {
        let whole = tie.hf.1 == Region::all(tie.hf.1.tensor_len());
        let source = hf.get(&tie.hf.0).and_then(|r| match r.parts.as_slice() {
            [part] if part.target == Region::all(part.target.tensor_len()) => part.source.clone(),
            _ => None,
        });
        if let (true, Some(source)) = (whole, source) {
            let part = Part { target: tie.mc.1.clone(), source: Some(source) };
            parts.entry(&tie.mc.0).or_default().push(part);
        }
    }
    for fill in &target.fills {
        let part = Part { target: fill.mc.1.clone(), source: None };
        parts.entry(&fill.mc.0).or_default().push(part);
    }
    let mut files = OpenFiles::new(catalog);
    for (name, declared) in &target.mc {
        let len: u64 = declared.shape.iter().product();
        let mut made = parts.remove(name.as_str()).unwrap_or_default();
        if made.iter().map(|p| p.target.len()).sum::<u64>() != len {
            // Parts of a Hugging Face tensor have the same names in every layout of keys.
            match locate(catalog, &mut files, name)? {
                // What is wrong with the others is told already.
                Ok(tensor) if is_clean || (tensor.shape == declared.shape && is_float(tensor.dtype)) => {
                    made = vec![Part { target: Region::all(len), source: Some((Arc::new(tensor), Region::all(len))) }];
                }
                Err(problem) if is_clean => {
                    out.problems.push(problem);
                    continue;
                }
                _ => continue,
            }
        }
        made.sort_by_key(|p| p.target.at(0).0);
        let mut recipe = Recipe {
            name: name.clone(),
            dtype: Dtype::Uint8,
            shape: declared.shape.clone(),
            parts: made,
            declared: declared.clone(),
            computed: None,
        };
        recipe.dtype = dtype(name, declared, recipe.source_dtype());
        out.recipes.push(recipe);
    }
    Ok(out)
}
