//! Pseudo-random bytes, the same on every machine (`SplitMix64`).

use crate::hf_folder::Tensor;

/// A stream of bytes.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Finite numbers of the tensor's dtype: without the highest bit of the exponent none is infinite or NaN.
    pub(crate) fn finite(&mut self, tensor: &Tensor, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
        let width = tensor.dtype.size() as usize;
        for high in bytes.iter_mut().skip(width - 1).step_by(width) {
            *high &= !0x40;
        }
    }
}
