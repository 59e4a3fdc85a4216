//! What tells two runs apart.

use serde::Serialize;

/// A 64-bit FNV-1a hash; enough to tell plans apart, not a proof against forgery.
#[derive(Clone, Debug)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// Adds bytes, and how many they are.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Adds a value in the form of its JSON.
    pub fn add_json(&mut self, value: &impl Serialize) {
        self.add(&serde_json::to_vec(value).unwrap_or_default());
    }

    /// Sixteen hexadecimal digits.
    pub fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}
