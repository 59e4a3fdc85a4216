//! Element types, shapes and rectangles of tensors. Shapes are in elements, row-major, outermost axis first.

use serde::{Deserialize, Serialize};

/// An element type, named as torch names it (`torch.bfloat16`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are the types they name")]
pub enum Dtype {
    Bool,
    Uint8,
    Int8,
    Uint16,
    Int16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float16,
    Bfloat16,
    Float32,
    Float64,
    #[serde(rename = "float8_e4m3fn")]
    Float8E4m3,
    #[serde(rename = "float8_e5m2")]
    Float8E5m2,
    #[serde(rename = "float8_e8m0fnu")]
    Float8E8m0,
}

/// One row per dtype: torch name, safetensors name, `torch.<T>Storage` class (none: written by `_rebuild_tensor_v3`), bytes.
const DTYPES: [(Dtype, &str, &str, Option<&str>, u64); 16] = [
    (Dtype::Bool, "bool", "BOOL", Some("BoolStorage"), 1),
    (Dtype::Uint8, "uint8", "U8", Some("ByteStorage"), 1),
    (Dtype::Int8, "int8", "I8", Some("CharStorage"), 1),
    (Dtype::Uint16, "uint16", "U16", None, 2),
    (Dtype::Int16, "int16", "I16", Some("ShortStorage"), 2),
    (Dtype::Uint32, "uint32", "U32", None, 4),
    (Dtype::Int32, "int32", "I32", Some("IntStorage"), 4),
    (Dtype::Uint64, "uint64", "U64", None, 8),
    (Dtype::Int64, "int64", "I64", Some("LongStorage"), 8),
    (Dtype::Float16, "float16", "F16", Some("HalfStorage"), 2),
    (Dtype::Bfloat16, "bfloat16", "BF16", Some("BFloat16Storage"), 2),
    (Dtype::Float32, "float32", "F32", Some("FloatStorage"), 4),
    (Dtype::Float64, "float64", "F64", Some("DoubleStorage"), 8),
    (Dtype::Float8E4m3, "float8_e4m3fn", "F8_E4M3", None, 1),
    (Dtype::Float8E5m2, "float8_e5m2", "F8_E5M2", None, 1),
    (Dtype::Float8E8m0, "float8_e8m0fnu", "F8_E8M0", None, 1),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, &'static str, Option<&'static str>, u64) {
        &DTYPES[self as usize]
    }

    /// Bytes per element.
    pub fn size(self) -> u64 {
        self.row().4
    }

    /// The attribute of the `torch` module, e.g. `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        self.row().1
    }

    /// The name in a safetensors header, e.g. `BF16`.
    pub fn safetensors_name(self) -> &'static str {
        self.row().2
    }

    /// The legacy storage class that `torch.save` names for this type, where there is one, e.g. `BFloat16Storage`.
    pub fn storage_class(self) -> Option<&'static str> {
        self.row().3
    }

    /// The inverse of [`Dtype::torch_name`].
    pub fn from_torch_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The inverse of [`Dtype::safetensors_name`].
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The inverse of [`Dtype::storage_class`].
    pub fn from_storage_class(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.3 == Some(name)).map(|row| row.0)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.torch_name())
    }
}

/// The number of elements of `shape`, or `None` where it overflows.
pub fn element_count(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))
}

/// A box inside a tensor: `offsets[i] .. offsets[i] + sizes[i]` on every axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rect {
    /// First index on every axis.
    pub offsets: Vec<u64>,
    /// Extent on every axis.
    pub sizes: Vec<u64>,
}

impl Rect {
    /// The whole of a tensor of `shape`.
    pub fn whole(shape: &[u64]) -> Self {
        Self { offsets: vec![0; shape.len()], sizes: shape.to_vec() }
    }

    /// Elements inside; 0 also where the product overflows, which no checked rectangle does.
    pub fn len(&self) -> u64 {
        element_count(&self.sizes).unwrap_or(0)
    }

    /// Whether no element lies inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the rectangle lies inside a tensor of `shape`.
    pub fn fits(&self, shape: &[u64]) -> bool {
        self.offsets.len() == shape.len()
            && self.sizes.len() == shape.len()
            && (0..shape.len()).all(|i| self.offsets[i].checked_add(self.sizes[i]).is_some_and(|end| end <= shape[i]))
    }

    /// Whether the two share an element. Both must have the same rank.
    pub fn intersects(&self, other: &Self) -> bool {
        (0..self.sizes.len()).all(|i| {
            self.offsets[i] < other.offsets[i] + other.sizes[i] && other.offsets[i] < self.offsets[i] + self.sizes[i]
        })
    }

    /// The contiguous run that starts at `local`, an index into this rectangle in its own row-major order: the index
    /// of the same element in the tensor of `shape`, and how many elements are contiguous in both from there.
    pub fn run_at(&self, shape: &[u64], local: u64) -> (u64, u64) {
        // Trailing axes taken whole fold into the run; so does the innermost axis that is not.
        let mut axis = shape.len();
        let mut inner = 1;
        while axis > 0 && self.sizes[axis - 1] == shape[axis - 1] {
            axis -= 1;
            inner *= shape[axis];
        }
        if axis == 0 {
            return (local, inner - local);
        }
        let run = inner * self.sizes[axis - 1];
        let (mut index, within) = (local / run, local % run);
        let mut stride = inner * shape[axis - 1];
        let mut global = self.offsets[axis - 1] * inner + within;
        for i in (0..axis - 1).rev() {
            global += (self.offsets[i] + index % self.sizes[i]) * stride;
            index /= self.sizes[i];
            stride *= shape[i];
        }
        (global, run - within)
    }

    /// Where the element with row-major index `global` of a tensor of `shape` lies inside this rectangle, and how many
    /// elements are contiguous in both from there; `None` if it lies outside.
    pub fn find(&self, shape: &[u64], global: u64) -> Option<(u64, u64)> {
        let mut rest = global;
        let (mut local, mut local_stride, mut run, mut whole) = (0, 1, 1, true);
        for i in (0..shape.len()).rev() {
            let at = rest % shape[i];
            rest /= shape[i];
            let inside = at.checked_sub(self.offsets[i]).filter(|&d| d < self.sizes[i])?;
            local += inside * local_stride;
            local_stride *= self.sizes[i];
            if whole {
                // Everything inside this axis is contiguous, so the run reaches to the end of the axis.
                run = local_stride - local;
                whole = self.sizes[i] == shape[i];
            }
        }
        Some((local, run))
    }
}

/// Whether the rectangles tile a tensor of `shape` exactly once; otherwise the rule that is broken.
pub fn check_tiling(shape: &[u64], rects: &[&Rect]) -> Result<(), String> {
    let total = element_count(shape).ok_or_else(|| format!("the shape {shape:?} overflows"))?;
    let mut sum = 0u64;
    for rect in rects {
        if !rect.fits(shape) {
            return Err(format!("the chunk at {:?} of {:?} lies outside {shape:?}", rect.offsets, rect.sizes));
        }
        sum = sum.saturating_add(rect.len());
    }
    let mut solid: Vec<&Rect> = rects.iter().copied().filter(|r| !r.is_empty()).collect();
    solid.sort_by(|a, b| a.offsets.cmp(&b.offsets));
    check_apart(&mut solid, 0, 0, 0)?;
    if sum != total {
        return Err(format!("the chunks hold {sum} of {total} elements"));
    }
    Ok(())
}

/// Levels of [`check_apart`]: every one halves a grid along an axis, or nearly all of it.
const MAX_CUTS: usize = 64;
/// Rectangles that are compared each with each.
const MAX_COMPARED: usize = 4096;

/// Whether no two of these rectangles, none of them empty, share an element.
///
/// Checkpoints cut tensors from edge to edge, so the rectangles are divided, along one axis after the other, where none
/// crosses, until one is left. Only what cannot be divided is compared each with each: for all of them that takes minutes
/// where 100,000 begin in row 0. `uncut` axes up to `axis` have divided nothing.
fn check_apart(rects: &mut [&Rect], axis: usize, uncut: usize, cuts: usize) -> Result<(), String> {
    let rank = rects.first().map_or(0, |r| r.sizes.len());
    if rects.len() <= 1 {
        return Ok(());
    }
    if uncut == rank || cuts == MAX_CUTS {
        if rects.len() > MAX_COMPARED {
            return Err(format!("{} chunks overlap, or are not cut along the axes", rects.len()));
        }
        for (i, a) in rects.iter().enumerate() {
            if let Some(b) = rects[i + 1..].iter().find(|b| a.intersects(b)) {
                return Err(format!("the chunks at {:?} and {:?} overlap", a.offsets, b.offsets));
            }
        }
        return Ok(());
    }
    rects.sort_by_key(|r| r.offsets[axis]);
    let (len, mut begin, mut end) = (rects.len(), 0, 0);
    for i in 0..=len {
        if i < len && (rects[i].offsets[axis] < end || i == 0) {
            end = end.max(rects[i].offsets[axis] + rects[i].sizes[axis]);
            continue;
        }
        let uncut = if i - begin == len { uncut + 1 } else { 0 };
        check_apart(&mut rects[begin..i], (axis + 1) % rank, uncut, cuts + 1)?;
        if i < len {
            (begin, end) = (i, rects[i].offsets[axis] + rects[i].sizes[axis]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(rect: &Rect, shape: &[u64]) -> Vec<u64> {
        (0..element_count(shape).unwrap())
            .filter(|&g| {
                let mut rest = g;
                (0..shape.len()).rev().all(|i| {
                    let at = rest % shape[i];
                    rest /= shape[i];
                    (rect.offsets[i]..rect.offsets[i] + rect.sizes[i]).contains(&at)
                })
            })
            .collect()
    }

    #[test]
    fn the_dtype_table_is_in_the_order_of_the_enum() {
        for row in &DTYPES {
            assert_eq!(row.0.row().0, row.0);
            assert_eq!(Dtype::from_torch_name(row.1), Some(row.0));
            assert_eq!(serde_json::to_string(&row.0).unwrap(), format!("\"{}\"", row.1));
        }
    }

    #[test]
    fn runs_and_find_agree_with_enumeration() {
        let shape = [3, 4, 5];
        for (o, s) in [([0, 0, 0], [3, 4, 5]), ([1, 0, 0], [2, 4, 5]), ([0, 1, 0], [3, 2, 5]), ([1, 1, 1], [2, 3, 3])] {
            let rect = Rect { offsets: o.to_vec(), sizes: s.to_vec() };
            let want = elements(&rect, &shape);
            for (local, &global) in want.iter().enumerate() {
                let (at, run) = rect.run_at(&shape, local as u64);
                assert_eq!(at, global);
                let contiguous = (0..60).take_while(|&k| want.get(local + k) == Some(&(global + k as u64))).count();
                assert_eq!(run, contiguous as u64, "maximal run at {local} of {rect:?}");
                let (back, find_run) = rect.find(&shape, global).unwrap();
                assert_eq!(back, local as u64);
                assert!(find_run >= 1 && find_run <= run);
            }
            for global in 0..60 {
                assert_eq!(rect.find(&shape, global).is_some(), want.contains(&global));
            }
        }
    }

    #[test]
    fn tiling_finds_holes_overlaps_and_overruns() {
        let r = |o: [u64; 2], s: [u64; 2]| Rect { offsets: o.to_vec(), sizes: s.to_vec() };
        let (left, right, low) = (r([0, 0], [4, 2]), r([0, 2], [4, 1]), r([2, 1], [2, 2]));
        assert_eq!(check_tiling(&[4, 3], &[&left, &right]), Ok(()));
        assert!(check_tiling(&[4, 3], &[&left]).unwrap_err().contains("hold 8 of 12"));
        assert!(check_tiling(&[4, 3], &[&left, &low]).unwrap_err().contains("overlap"));
        assert!(check_tiling(&[3, 3], &[&left]).unwrap_err().contains("outside"));
    }
}
