//! Gathering: the bytes of a box of an output tensor, collected from the source files in bounded memory.

use crate::cast;
use crate::quantized::packed::Packed;
use crate::resolve::{Part, Recipe, SourceTensor};
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Dtype, Rect};
use std::ops::Range;

/// Bytes gathered, checksummed and written at a time: large enough for the disk, small enough for the cache.
pub(crate) const BAND: usize = 4 << 20;
/// Pieces whose gap in the source is at most this are fetched with one read: a read costs about as much as copying it.
const MAX_GAP: u64 = 32 << 10;
/// A piece of at least this many bytes is read straight into place.
const DIRECT: u64 = 64 << 10;

/// A run of elements that is contiguous in the output box and in its source.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    /// Byte in the output buffer.
    at: u64,
    /// Elements.
    len: u64,
    from: From<'a>,
}

/// Where a run of elements comes from.
#[derive(Clone, Copy, Debug)]
enum From<'a> {
    Zeros,
    /// File, byte offset and dtype.
    File(u32, u64, Dtype),
    /// A packed tensor, and the first element.
    Packed(&'a Packed, u64),
}

impl From<'_> {
    /// Pieces are read in the order of files; the others come first.
    fn position(&self) -> Option<(u32, u64)> {
        if let Self::File(file, offset, _) = *self { Some((file, offset)) } else { None }
    }
}

/// Walks a recipe; remembers the part and the chunk it was in, which is where the next run begins as a rule.
struct Walk<'a> {
    recipe: &'a Recipe,
    part: usize,
    chunk: usize,
}

impl<'a> Walk<'a> {
    /// The run of elements of the output tensor that begins at `global`: its length, and where it comes from.
    fn run(&mut self, global: u64) -> (u64, From<'a>) {
        let (part, index, run) = self.part_of(global);
        let Some((source, region)) = &part.source else { return (run, From::Zeros) };
        let (source_global, source_run) = region.at(index);
        if let Some(packed) = &source.packed {
            return (run.min(source_run), From::Packed(packed, source_global));
        }
        let (chunk, local, chunk_run) = self.chunk_of(source, source_global);
        let offset = source.chunks[chunk].1.offset + local * source.dtype.size();
        (run.min(source_run).min(chunk_run), From::File(source.chunks[chunk].1.file, offset, source.dtype))
    }

    fn part_of(&mut self, global: u64) -> (&'a Part, u64, u64) {
        let parts = &self.recipe.parts;
        let begins_before = parts.partition_point(|p| p.target.at(0).0 <= global);
        // Parts of one run each are found by the search; interleaved ones begin anywhere before.
        for i in std::iter::once(self.part).chain((0..begins_before).rev()) {
            if let Some((index, run)) = parts.get(i).and_then(|p| p.target.find(global)) {
                self.part = i;
                return (&parts[i], index, run);
            }
        }
        unreachable!("the parts of `{}` tile it: checked when it was resolved", self.recipe.name)
    }

    fn chunk_of(&mut self, source: &SourceTensor, global: u64) -> (usize, u64, u64) {
        let first = |rect: &Rect| rect.run_at(&source.shape, 0).0;
        let find = |i: usize| source.chunks.get(i).and_then(|(rect, _)| rect.find(&source.shape, global));
        if let Some((local, run)) = find(self.chunk) {
            return (self.chunk, local, run);
        }
        let begins_before = source.chunks.partition_point(|(rect, _)| first(rect) <= global);
        for i in (0..begins_before).rev() {
            if let Some((local, run)) = find(i) {
                self.chunk = i;
                return (i, local, run);
            }
        }
        unreachable!("the chunks of `{}` tile it: checked when it was resolved", source.name)
    }
}

/// Rows of a packed weight that follow each other in a box of whole rows of a recipe: the weight and the first row of it.
pub(crate) type PackedRows<'a> = (&'a Packed, Range<u64>);

/// The packed rows that a box of whole rows is made of, in order; `None` where some of it is not packed, or not by rows.
pub(crate) fn packed_rows<'a>(recipe: &'a Recipe, rect: &Rect) -> Option<Vec<PackedRows<'a>>> {
    let mut walk = Walk { recipe, part: 0, chunk: 0 };
    let mut found: Vec<PackedRows<'a>> = Vec::new();
    let mut done = 0;
    while done < rect.len() {
        let (global, rect_run) = rect.run_at(&recipe.shape, done);
        let (run, From::Packed(packed, first)) = walk.run(global) else { return None };
        let (len, cols) = (run.min(rect_run), packed.cols());
        if !first.is_multiple_of(cols) || !len.is_multiple_of(cols) {
            return None;
        }
        let rows = first / cols..(first + len) / cols;
        match found.last_mut() {
            Some((last, before)) if std::ptr::eq(*last, packed) && before.end == rows.start => before.end = rows.end,
            _ => found.push((packed, rows)),
        }
        done += len;
    }
    Some(found)
}

/// Fills buffers with elements of one box of a recipe, front to back.
pub struct Gather<'a> {
    walk: Walk<'a>,
    rect: &'a Rect,
    dtype: Dtype,
    /// Elements already given.
    next: u64,
    pieces: Vec<Piece<'a>>,
    scratch: Vec<u8>,
}

impl<'a> Gather<'a> {
    /// Begins at the first element of `rect`, a box of the recipe's tensor.
    pub fn new(recipe: &'a Recipe, rect: &'a Rect) -> Self {
        Self::casting(recipe, rect, recipe.dtype)
    }

    /// As [`Gather::new`], with another element type than the recipe's.
    pub fn casting(recipe: &'a Recipe, rect: &'a Rect, dtype: Dtype) -> Self {
        Self { walk: Walk { recipe, part: 0, chunk: 0 }, rect, dtype, next: 0, pieces: Vec::new(), scratch: Vec::new() }
    }

    /// Fills `out` (whole elements) with the next elements. Errors: reading fails, or a cast
    /// overflows, which is told as `Ok(Some(count))` of finite values that became infinite.
    pub fn fill(&mut self, files: &[ReadFile], out: &mut [u8]) -> longshore_ckpt::Result<u64> {
        let dtype = self.dtype;
        let width = dtype.size();
        let wanted = out.len() as u64 / width;
        self.pieces.clear();
        let mut done = 0;
        while done < wanted {
            let (global, rect_run) = self.rect.run_at(&self.walk.recipe.shape, self.next + done);
            let (run, from) = self.walk.run(global);
            let len = run.min(rect_run).min(wanted - done);
            self.push(Piece { at: done * width, len, from });
            done += len;
        }
        self.next += wanted;
        self.read(files, dtype, out)
    }

    /// Adds a piece, joined to the last one where it continues it on both sides.
    fn push(&mut self, piece: Piece<'a>) {
        if let (Some(last), From::File(file, offset, dtype)) = (self.pieces.last_mut(), piece.from)
            && let From::File(last_file, last_offset, last_dtype) = last.from
            && (last_file, last_dtype) == (file, dtype)
            && last_offset + last.len * dtype.size() == offset
        {
            last.len += piece.len;
        } else {
            self.pieces.push(piece);
        }
    }

    fn read(&mut self, files: &[ReadFile], dtype: Dtype, out: &mut [u8]) -> longshore_ckpt::Result<u64> {
        let mut overflows = 0;
        let limit = out.len() as u64;
        self.pieces.sort_by_key(|p| p.from.position());
        let mut rest = self.pieces.as_slice();
        while let Some(&first) = rest.first() {
            let at = first.at as usize;
            let target = &mut out[at..at + (first.len * dtype.size()) as usize];
            let (file, start, source) = match first.from {
                From::File(file, start, source) => (file, start, source),
                From::Zeros => {
                    target.fill(0);
                    rest = &rest[1..];
                    continue;
                }
                From::Packed(packed, element) => {
                    let values = packed.read(files, element, first.len)?;
                    overflows += cast::narrow(&values, dtype, target);
                    rest = &rest[1..];
                    continue;
                }
            };
            let bytes = first.len * source.size();
            if source == dtype && bytes >= DIRECT {
                files[file as usize].read_exact_at(start, &mut out[at..at + bytes as usize])?;
                rest = &rest[1..];
                continue;
            }
            // As many of the following pieces as lie close behind, in one read.
            let mut end = start + bytes;
            let mut count = 1;
            for piece in &rest[1..] {
                let From::File(next_file, offset, next) = piece.from else { break };
                let next_end = offset + piece.len * next.size();
                let near = next_file == file && offset <= end + MAX_GAP;
                if !near || next_end.max(end) - start > limit.max(bytes) {
                    break;
                }
                end = end.max(next_end);
                count += 1;
            }
            self.scratch.resize((end - start) as usize, 0);
            files[file as usize].read_exact_at(start, &mut self.scratch)?;
            for piece in &rest[..count] {
                let From::File(_, offset, source) = piece.from else { continue };
                let from = (offset - start) as usize;
                let source_bytes = &self.scratch[from..from + (piece.len * source.size()) as usize];
                let target = &mut out[piece.at as usize..(piece.at + piece.len * dtype.size()) as usize];
                overflows += cast::cast(source, source_bytes, dtype, target);
            }
            rest = &rest[count..];
        }
        Ok(overflows)
    }
}

/// Runs `f` over the bytes of a recipe, a band at a time, until it says false.
pub(crate) fn bands(
    recipe: &Recipe,
    files: &[ReadFile],
    mut f: impl FnMut(&[u8]) -> bool,
) -> longshore_ckpt::Result<()> {
    let rect = Rect::whole(&recipe.shape);
    let mut gather = Gather::new(recipe, &rect);
    let mut left = recipe.size();
    let mut band = vec![0; left.min(BAND as u64) as usize];
    while left > 0 {
        let part = &mut band[..left.min(BAND as u64) as usize];
        gather.fill(files, part)?;
        left -= part.len() as u64;
        if !f(part) {
            break;
        }
    }
    Ok(())
}
