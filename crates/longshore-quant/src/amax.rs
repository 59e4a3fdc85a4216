//! The largest magnitudes that scales are made of.


/// Calibrated magnitudes of a tensor, or of a band of its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amax {
    /// One per tensor, row, square or block, row-major.
    pub values: Vec<f32>,
    /// The amax of the whole tensor beside those of its blocks ([`Scheme::Nvfp4Static`]).
    pub global: Option<f32>,
}
