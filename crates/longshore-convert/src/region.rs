//! Regions: boxes of a tensor, seen through any row-major factoring of its shape.
//!
//! `linear_qkv.weight` has shape `[G*(R+2)*D, H]`, but "the queries" only become a box once the rows are read as
//! `[G, R+2, D*H]`. A [`Region`] is exactly that: a factored shape and one range per axis. Every rearrangement of weights
//! between the two sides is an equality of two regions, so nothing else is needed. See `docs/mapping.md`.

use longshore_ckpt::Rect;
use std::ops::Range;

/// A box of a tensor. The box is never empty and lies inside `dims`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Row-major factoring of the tensor's shape; the product is the tensor's element count.
    dims: Vec<u64>,
    rect: Rect,
}

impl Region {
    fn new(dims: Vec<u64>, ranges: &[Range<u64>]) -> Self {
        let rect = Rect {
            offsets: ranges.iter().map(|r| r.start).collect(),
            sizes: ranges.iter().map(|r| r.end - r.start).collect(),
        };
        debug_assert!(rect.fits(&dims) && !rect.is_empty());
        Self { dims, rect }
    }

    /// The whole of a tensor of `len` elements.
    pub fn all(len: u64) -> Self {
        Self { dims: vec![len], rect: Rect { offsets: vec![0], sizes: vec![len] } }
    }

    /// Rows `range` of a tensor read as `[rows, row_len]`.
    pub fn rows(rows: u64, range: Range<u64>, row_len: u64) -> Self {
        Self::new(vec![rows, row_len], &[range, 0..row_len])
    }

    /// In each of `groups`, sub-rows `range` of `per_group`: a tensor read as `[groups, per_group, row_len]`.
    pub fn grouped(groups: u64, per_group: u64, range: Range<u64>, row_len: u64) -> Self {
        Self::new(vec![groups, per_group, row_len], &[0..groups, range, 0..row_len])
    }

    /// This region inside slot `index` of a new leading axis of `slots` (experts, stacked layers).
    #[must_use]
    pub fn in_slot(mut self, index: u64, slots: u64) -> Self {
        self.dims.insert(0, slots);
        self.rect.offsets.insert(0, index);
        self.rect.sizes.insert(0, 1);
        self
    }

    /// The same rows of a tensor of rows of `to` elements in place of `from`: where a weight's rows lie, their scales lie
    /// too. `None` where the region cuts rows.
    pub fn with_row_len(&self, from: u64, to: u64) -> Option<Self> {
        let last = self.dims.len() - 1;
        let rescale = |n: u64| n.is_multiple_of(from).then(|| n / from * to);
        let mut region = self.clone();
        region.dims[last] = rescale(self.dims[last])?;
        region.rect.offsets[last] = rescale(self.rect.offsets[last])?;
        region.rect.sizes[last] = rescale(self.rect.sizes[last])?;
        Some(region)
    }

    /// Elements of the whole tensor.
    pub fn tensor_len(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Elements of the region.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> u64 {
        self.rect.len()
    }

    /// The region's `index`-th element, in row-major order of the region: its index in the tensor, and how many elements
    /// from there on are contiguous in both.
    pub fn at(&self, index: u64) -> (u64, u64) {
        self.rect.run_at(&self.dims, index)
    }

    /// The inverse of [`Region::at`]; `None` if the tensor's element `index` lies outside.
    pub fn find(&self, index: u64) -> Option<(u64, u64)> {
        self.rect.find(&self.dims, index)
    }

    /// The maximal contiguous runs of elements, in row-major order of the region.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            (next < self.len()).then(|| {
                let (start, run) = self.at(next);
                next += run;
                start..start + run
            })
        })
    }
}

/// Whether the regions tile a tensor of `len` elements exactly once; otherwise the first element that breaks it.
pub fn check_tiling<'a>(len: u64, regions: impl IntoIterator<Item = &'a Region>) -> Result<(), String> {
    let mut runs = Vec::new();
    for region in regions {
        if region.tensor_len() != len {
            return Err(format!("a rule reads it as {} elements, it has {len}", region.tensor_len()));
        }
        runs.extend(region.runs());
    }
    runs.sort_by_key(|r| r.start);
    let mut end = 0;
    for run in runs {
        match run.start.cmp(&end) {
            std::cmp::Ordering::Less => return Err(format!("two rules name element {}", run.start)),
            std::cmp::Ordering::Greater => return Err(format!("no rule names elements {end} to {}", run.start)),
            std::cmp::Ordering::Equal => end = run.end,
        }
    }
    if end == len { Ok(()) } else { Err(format!("no rule names elements {end} to {len}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn region()(dims in prop::collection::vec(1u64..5, 1..4))
            (ranges in dims.iter().map(|&d| (0..d).prop_flat_map(move |a| (Just(a), a + 1..=d))).collect::<Vec<_>>(), dims in Just(dims))
            -> Region {
            Region::new(dims, &ranges.iter().map(|&(a, b)| a..b).collect::<Vec<_>>())
        }
    }

    /// Element by element, from the definition.
    fn naive(r: &Region) -> Vec<u64> {
        let inside = |mut g: u64| {
            (0..r.dims.len()).rev().all(|i| {
                let at = g % r.dims[i];
                g /= r.dims[i];
                at >= r.rect.offsets[i] && at < r.rect.offsets[i] + r.rect.sizes[i]
            })
        };
        (0..r.tensor_len()).filter(|&g| inside(g)).collect()
    }

    proptest! {
        #[test]
        fn runs_are_the_maximal_runs_of_the_definition(r in region()) {
            let runs: Vec<_> = r.runs().collect();
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), naive(&r));
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start || r.dims.len() > 1));
        }

        #[test]
        fn find_inverts_at(r in region()) {
            for k in 0..r.len() {
                let (index, run) = r.at(k);
                let (back, find_run) = r.find(index).unwrap();
                prop_assert_eq!(back, k);
                prop_assert!(find_run >= 1 && find_run <= run);
            }
            prop_assert_eq!((0..r.tensor_len()).filter(|&g| r.find(g).is_some()).count() as u64, r.len());
        }
    }

    #[test]
    fn tiling_names_the_first_hole_or_overlap() {
        let q = Region::grouped(2, 4, 0..2, 3);
        let k = Region::grouped(2, 4, 2..3, 3);
        let v = Region::grouped(2, 4, 3..4, 3);
        assert_eq!(check_tiling(24, [&q, &k, &v]), Ok(()));
        assert_eq!(check_tiling(24, [&q, &v]).unwrap_err(), "no rule names elements 6 to 9");
        assert_eq!(check_tiling(24, [&q, &k, &v, &k]).unwrap_err(), "two rules name element 6");
        assert_eq!(check_tiling(24, [&q, &k]).unwrap_err(), "no rule names elements 9 to 12");
        assert!(check_tiling(25, [&q]).unwrap_err().contains("has 25"));
    }

    #[test]
    fn rows_of_another_length_lie_in_the_same_places() {
        let keys = Region::grouped(2, 4, 2..3, 3 * 5);
        assert_eq!(keys.with_row_len(5, 2), Some(Region::grouped(2, 4, 2..3, 3 * 2)));
        assert_eq!(Region::all(15).with_row_len(5, 1), Some(Region::all(3)));
        assert_eq!(Region::rows(3, 0..1, 5).with_row_len(2, 1), None, "rows of 5 are no rows of 2");
    }

    #[test]
    fn regions_compose() {
        // Interleaved gate/up rows of expert e in stacked layer l: one region, whatever the nesting.
        let r = Region::grouped(2, 2, 1..2, 1).in_slot(1, 2).in_slot(0, 3);
        assert_eq!(r.runs().flatten().collect::<Vec<_>>(), [5, 7]);
        assert_eq!(r.tensor_len(), 24);
    }
}
