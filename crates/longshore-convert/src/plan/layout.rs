//! Layout: how output tensors are cut into chunks and which chunk lies in which file.

use super::{Item, OutChunk, OutFile};
use crate::mapping::Place;
use crate::options::Layout;
use crate::resolve::{Computed, Recipe};
use longshore_ckpt::torch_dist::item::Frame;
use longshore_ckpt::{Rect, safetensors};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A loader reads every chunk it touches whole, so this bounds what it reads too much.
const MAX_CHUNK: u64 = 64 << 20;
/// Sizes between which a data file of torch_dist is chosen, so that about 16 files share the work.
const FILE_SIZES: (u64, u64) = (64 << 20, 4 << 30);
const FILES: u64 = 16;

/// The boxes that a Megatron tensor is stored in, each of at most `max_chunk` bytes where its rows allow.
pub(super) fn cut(recipe: &Recipe, tp: u64, max_chunk: u64) -> Vec<Rect> {
    let shape = &recipe.shape;
    let whole = Rect::whole(shape);
    let declared = &recipe.declared;
    if recipe.computed.is_some() {
        // Scales and the like: small, and produced front to back.
        return vec![whole];
    }
    if declared.experts {
        return slices(&whole, 0, shape[0]);
    }
    let ranks = match declared.tp_axis {
        Some(axis) if shape[axis].is_multiple_of(tp) => slices(&whole, axis, tp),
        _ => vec![whole],
    };
    let blocks = |rect: Rect| {
        let Some(&rows) = rect.sizes.first() else { return vec![rect] };
        let row_size = rect.len() / rows.max(1) * recipe.dtype.size();
        // As many whole rows as fit; the blocks are then made even.
        slices(&rect, 0, rows.div_ceil((max_chunk / row_size.max(1)).max(1)))
    };
    ranks.into_iter().flat_map(blocks).collect()
}

/// `parts` slices of a box along `axis`, as even as whole indices allow.
fn slices(rect: &Rect, axis: usize, parts: u64) -> Vec<Rect> {
    let Some(&n) = rect.sizes.get(axis) else { return vec![rect.clone()] };
    let parts = parts.clamp(1, n.max(1));
    let bound = |i: u64| n * i / parts;
    (0..parts)
        .map(|i| {
            let mut slice = rect.clone();
            slice.offsets[axis] += bound(i);
            slice.sizes[axis] = bound(i + 1) - bound(i);
            slice
        })
        .collect()
}

/// Files that share a pipeline stage and, for experts, an expert-parallel rank.
type Group = (u64, Option<u64>);

/// The data files of a torch_dist checkpoint.
pub(super) fn torch_dist_files(
    recipes: &[Recipe],
    objects: &BTreeMap<String, (Place, Arc<[u8]>)>,
    layout: Layout,
    layers: u64,
    max_file_size: Option<u64>,
) -> Vec<OutFile> {
    let stage = |place: Place| match place {
        Place::First => 0,
        Place::Layer(i) => i * layout.pp / layers.max(1),
        Place::Last => layout.pp - 1,
    };
    let mut groups: BTreeMap<Group, Vec<(u64, Item)>> = BTreeMap::new();
    let mut total = 0;
    for (index, recipe) in recipes.iter().enumerate() {
        let declared = &recipe.declared;
        for rect in cut(recipe, layout.tp, max_file_size.unwrap_or(MAX_CHUNK).clamp(1, MAX_CHUNK)) {
            let rank = declared.experts.then(|| rect.offsets[0] * layout.ep / recipe.shape[0]);
            let len = item_len(recipe, &rect);
            total += len;
            let position = source_position(recipe, &rect);
            let item = Item::Chunk { chunk: OutChunk { recipe: index, rect }, len };
            groups.entry((stage(declared.place), rank)).or_default().push((position, item));
        }
    }
    let mut states: BTreeMap<Group, Vec<Item>> = BTreeMap::new();
    for (name, (place, bytes)) in objects {
        let item = Item::Bytes { object: Some(name.clone()), bytes: Arc::clone(bytes) };
        states.entry((stage(*place), None)).or_default().push(item);
        groups.entry((stage(*place), None)).or_default();
    }
    let limit = max_file_size.unwrap_or((total / FILES).clamp(FILE_SIZES.0, FILE_SIZES.1));
    let mut files = Vec::new();
    for (number, (group, mut chunks)) in groups.into_iter().enumerate() {
        // In the order of the source, so that reading is sequential.
        chunks.sort_by_key(|(position, _)| *position);
        let items = states.remove(&group).unwrap_or_default().into_iter().chain(chunks.into_iter().map(|c| c.1));
        let mut size = 0;
        for (at, item) in items.enumerate() {
            let starts_file = at == 0 || (size + item.len() > limit && matches!(item, Item::Chunk { .. }));
            if starts_file {
                let n = files.iter().filter(|f: &&OutFile| f.name.starts_with(&format!("__{number}_"))).count();
                files.push(OutFile { name: format!("__{number}_{n}.distcp"), items: Vec::new() });
                size = 0;
            }
            size += item.len();
            if let Some(file) = files.last_mut() {
                file.items.push(item);
            }
        }
    }
    files
}

/// Length of the zip archive around a chunk.
fn item_len(recipe: &Recipe, rect: &Rect) -> u64 {
    Frame::tensor(recipe.dtype, &rect.sizes).item_len()
}

/// Where a box begins in the source, for sorting: file, then offset.
fn source_position(recipe: &Recipe, rect: &Rect) -> u64 {
    if let Some(Computed::Encoded(encoding, _)) = &recipe.computed {
        let weight = encoding.weight.recipes().next();
        return weight.map_or(0, |weight| source_position(weight, &Rect::whole(&weight.shape)));
    }
    let global = rect.run_at(&recipe.shape, 0).0;
    let part = recipe.parts.iter().find_map(|p| p.target.find(global).map(|(index, _)| (p, index)));
    let Some((Some((source, region)), index)) = part.map(|(p, index)| (p.source.as_ref(), index)) else { return 0 };
    let at = region.at(index).0;
    let chunk =
        source.chunks.iter().find_map(|(rect, extent)| rect.find(&source.shape, at).map(|(local, _)| (extent, local)));
    // 2^44 bytes a file keep files apart; beyond that only the order of reading suffers.
    chunk.map_or(0, |(extent, local)| (u64::from(extent.file) << 44) + extent.offset + local * source.dtype.size())
}

/// The data files of a Hugging Face folder in release layout, and the index where there are several. Packed weights stay
/// beside their scales (`in_order`), so that a weight is read once for both.
pub(super) fn safetensors_files(
    recipes: &[Recipe],
    max_file_size: u64,
    in_order: bool,
) -> (Vec<OutFile>, Option<Vec<u8>>) {
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let mut size = 0;
    for (index, recipe) in recipes.iter().enumerate() {
        if shards.is_empty() || (size + recipe.size() > max_file_size && size > 0) {
            shards.push(Vec::new());
            size = 0;
        }
        size += recipe.size();
        if let Some(shard) = shards.last_mut() {
            shard.push(index);
        }
    }
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut files = Vec::new();
    for (number, mut shard) in shards.into_iter().enumerate() {
        // Widest first, as the safetensors library writes them: then every tensor is aligned to its elements.
        if !in_order || !aligned(recipes, &shard) {
            shard.sort_by_key(|&i| std::cmp::Reverse(recipes[i].dtype.size()));
        }
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let entries: Vec<_> =
            shard.iter().map(|&i| (recipes[i].name.as_str(), recipes[i].dtype, recipes[i].shape.as_slice())).collect();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let mut items =
            vec![Item::Bytes { object: None, bytes: safetensors::header_bytes(&entries, &metadata).into() }];
        for index in shard {
            weight_map.insert(recipes[index].name.clone(), name.clone());
            let rect = Rect::whole(&recipes[index].shape);
            let len = recipes[index].size();
            items.push(Item::Chunk { chunk: OutChunk { recipe: index, rect }, len });
        }
        files.push(OutFile { name, items });
    }
    let total = recipes.iter().map(Recipe::size).sum();
    let index = (count > 1).then(|| safetensors::index_json(total, &weight_map));
    (files, index)
}

/// Whether every tensor begins at a multiple of its element's size, one after the other.
fn aligned(recipes: &[Recipe], shard: &[usize]) -> bool {
    let mut at = 0u64;
    shard.iter().all(|&i| {
        let begins = at;
        at += recipes[i].size();
        begins.is_multiple_of(recipes[i].dtype.size())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Declared, Precision};
    use longshore_ckpt::Dtype;
    use longshore_ckpt::tensor::check_tiling;
    use proptest::prelude::*;
    use std::panic::Location;

    fn recipe(shape: &[u64], tp_axis: Option<usize>, experts: bool) -> Recipe {
        let (shape, rule) = (shape.to_vec(), Location::caller());
        let precision = Precision::Params;
        let declared = Declared { shape: shape.clone(), precision, tp_axis, experts, place: Place::First, rule };
        Recipe { name: "w".into(), dtype: Dtype::Bfloat16, shape, parts: Vec::new(), declared, computed: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn cuts_tile_and_follow_the_ranks(
            shape in prop::collection::vec(prop_oneof![1u64..9, Just(4096), 10_000u64..70_000], 1..3),
            axis in prop::option::of(0usize..2),
            tp in 1u64..9,
            max_chunk in prop_oneof![Just(MAX_CHUNK), 100_000u64..1_000_000],
        ) {
            let axis = axis.filter(|&axis| axis < shape.len());
            let rects = cut(&recipe(&shape, axis, false), tp, max_chunk);
            prop_assert_eq!(check_tiling(&shape, &rects.iter().collect::<Vec<_>>()), Ok(()));
            for rect in &rects {
                prop_assert!(rect.len() * 2 <= max_chunk || rect.sizes[0] == 1, "{rect:?}");
                if let Some(axis) = axis.filter(|&axis| shape[axis].is_multiple_of(tp)) {
                    let rank = shape[axis] / tp;
                    let (first, last) = (rect.offsets[axis], rect.offsets[axis] + rect.sizes[axis] - 1);
                    prop_assert_eq!(first / rank, last / rank, "within one rank");
                }
            }
        }

        #[test]
        fn an_expert_is_one_chunk(experts in 1u64..20, rows in 1u64..9000, columns in 1u64..9000, tp in 1u64..9) {
            let shape = [experts, rows, columns];
            let rects = cut(&recipe(&shape, Some(1), true), tp, MAX_CHUNK);
            prop_assert_eq!(rects.len() as u64, experts);
            prop_assert_eq!(check_tiling(&shape, &rects.iter().collect::<Vec<_>>()), Ok(()));
            prop_assert!(rects.iter().all(|rect| rect.sizes == [1, rows, columns]));
        }
    }

    #[test]
    fn what_tensor_parallelism_does_not_divide_stays_whole() {
        assert_eq!(cut(&recipe(&[50, 4], Some(0), false), 4, MAX_CHUNK), [Rect::whole(&[50, 4])]);
    }
}
