//! `Gather` against its definition, element by element.

use crate::random::Random;
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Dtype, Extent, Rect};
use longshore_convert::cast::cast;
use longshore_convert::gather::Gather;
use longshore_convert::mapping::{Declared, Place, Precision};
use longshore_convert::region::Region;
use longshore_convert::resolve::{Part, Recipe, SourceTensor};
use proptest::prelude::*;
use std::panic::Location;
use std::sync::Arc;

const FLOATS: [Dtype; 4] = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32, Dtype::Float64];

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Cuts `0..n` into consecutive ranges, as `(start, len)`; every other time there is one.
    fn cuts(&mut self, n: u64) -> Vec<(u64, u64)> {
        if self.below(2) == 0 {
            return vec![(0, n)];
        }
        let (mut start, mut out) = (0, Vec::new());
        while start < n {
            let len = 1 + self.below(n - start);
            out.push((start, len));
            start += len;
        }
        out
    }
}

/// Two files under construction, and the length of what was last stored.
struct Files {
    bytes: [Vec<u8>; 2],
    last: u64,
}

impl Files {
    /// Stores a tensor in chunks of a random grid, in random order, with random gaps; its data is returned whole.
    fn store(&mut self, rng: &mut Random, name: &str, dtype: Dtype, shape: [u64; 2]) -> (SourceTensor, Vec<u8>) {
        let width = dtype.size() as usize;
        let mut data = vec![0; (shape[0] * shape[1]) as usize * width];
        data.fill_with(|| rng.next() as u8 & 0x3f);
        let (rows, columns) = (rng.cuts(shape[0]), rng.cuts(shape[1]));
        let mut grid: Vec<_> = rows.iter().flat_map(|row| columns.iter().map(move |column| (*row, *column))).collect();
        grid.sort_by_cached_key(|_| rng.next());
        let mut chunks = Vec::new();
        for ((row, rows), (column, columns)) in grid {
            let file = rng.below(2) as usize;
            let len = rows * columns * dtype.size();
            // As long as the piece before: where that one would end if its dtype were twice as wide.
            let gap = rng.pick(&[0, 0, 0, self.last, len, 10, 40_000]) as usize;
            self.last = len;
            let offset = self.bytes[file].len() + gap;
            self.bytes[file].resize(offset, 0xff);
            for r in row..row + rows {
                let at = (r * shape[1] + column) as usize * width;
                self.bytes[file].extend_from_slice(&data[at..at + columns as usize * width]);
            }
            let rect = Rect { offsets: vec![row, column], sizes: vec![rows, columns] };
            chunks.push((rect, Extent { file: file as u32, offset: offset as u64, len }));
        }
        chunks.sort_by(|a, b| a.0.offsets.cmp(&b.0.offsets));
        (SourceTensor { name: name.into(), dtype, shape: shape.to_vec(), chunks, packed: None }, data)
    }
}

/// A tensor whose rows, per group, come from several tensors (as q, k and v or gate and up do), inside a slot of an outer
/// axis; with zeros, other dtypes, and sources that are themselves a part of something larger.
fn recipe(rng: &mut Random, files: &mut Files) -> (Recipe, Vec<u8>) {
    let (slots, groups, per_group) = (1 + rng.below(3), rng.pick(&[1, 1, 2, 3, 4]), 1 + rng.below(5));
    let row_len = rng.pick(&[1, 2, 3, 64, 2000, 20_000]);
    let shape = vec![slots * groups * per_group, row_len];
    let dtype = rng.pick(&FLOATS);
    let width = dtype.size() as usize;
    let mut parts = Vec::new();
    let mut want = vec![0u8; (shape[0] * row_len) as usize * width];
    for slot in 0..slots {
        for (start, rows) in rng.cuts(per_group) {
            let target = Region::grouped(groups, per_group, start..start + rows, row_len).in_slot(slot, slots);
            if rng.below(6) == 0 {
                parts.push(Part { target, source: None });
                continue;
            }
            // The source may hold rows before and after, in every group.
            let (before, after) = (rng.below(2), rng.below(2));
            let source_rows = before + rows + after;
            let source_dtype = if rng.below(3) == 0 { rng.pick(&FLOATS) } else { dtype };
            let name = format!("{slot} {start}");
            let (tensor, data) = files.store(rng, &name, source_dtype, [groups * source_rows, row_len]);
            let region = Region::grouped(groups, source_rows, before..before + rows, row_len);
            let source_width = source_dtype.size() as usize;
            for (to, from) in target.runs().flatten().zip(region.runs().flatten()) {
                let (to, from) = (to as usize * width, from as usize * source_width);
                cast(source_dtype, &data[from..from + source_width], dtype, &mut want[to..to + width]);
            }
            parts.push(Part { target, source: Some((Arc::new(tensor), region)) });
        }
    }
    parts.sort_by_key(|part| part.target.at(0).0);
    let declared = Declared {
        shape: shape.clone(),
        precision: Precision::Params,
        tp_axis: None,
        experts: false,
        place: Place::First,
        rule: Location::caller(),
    };
    (Recipe { name: "out".into(), dtype, shape, parts, declared, computed: None }, want)
}

/// The elements of a box, one by one.
fn of_box(want: &[u8], shape: &[u64], rect: &Rect, width: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rect.offsets[0]..rect.offsets[0] + rect.sizes[0] {
        for column in rect.offsets[1]..rect.offsets[1] + rect.sizes[1] {
            let at = (row * shape[1] + column) as usize * width;
            out.extend_from_slice(&want[at..at + width]);
        }
    }
    out
}

fn range(rng: &mut Random, n: u64) -> (u64, u64) {
    let start = rng.below(n);
    (start, 1 + rng.below(n - start))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_box_in_pieces_of_any_size_is_what_the_definition_says(seed in any::<u64>()) {
        let rng = &mut Random(seed);
        let mut stored = Files { bytes: [vec![], vec![]], last: 0 };
        let (recipe, want) = recipe(rng, &mut stored);
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (i, bytes) in stored.bytes.iter().enumerate() {
            let path = folder.path().join(i.to_string());
            std::fs::write(&path, bytes).unwrap();
            files.push(ReadFile::open(&path).unwrap());
        }
        for _ in 0..3 {
            let ((row, rows), (column, columns)) = (range(rng, recipe.shape[0]), range(rng, recipe.shape[1]));
            let rect = Rect { offsets: vec![row, column], sizes: vec![rows, columns] };
            let width = recipe.dtype.size();
            let mut gather = Gather::new(&recipe, &rect);
            let mut got = Vec::new();
            while (got.len() as u64) < rect.len() * width {
                let left = rect.len() - got.len() as u64 / width;
                let mut piece = vec![0xaa; (range(rng, left).1 * width) as usize];
                gather.fill(&files, &mut piece).unwrap();
                got.extend(piece);
            }
            prop_assert!(got == of_box(&want, &recipe.shape, &rect, width as usize), "{rect:?} of {recipe:?}");
        }
    }
}
