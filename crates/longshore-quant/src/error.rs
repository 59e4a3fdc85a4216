//! What can be wrong with a tensor that is to be quantized.

/// An error of this crate. It does not know the tensor's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A dimension that blocks do not divide.
    #[error("[{rows}, {cols}] does not divide into {what}")]
    Indivisible {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// E.g. `blocks of 16 columns`.
        what: String,
    },
    /// A value that has no amax.
    #[error("{value} at row {row}, column {col}")]
    NotFinite {
        /// `NaN` or `inf`.
        value: &'static str,
        /// Row, counted from the first of the given ones.
        row: usize,
        /// Column.
        col: usize,
    },
    /// A combination of attributes that this crate does not compute.
    #[error("unsupported quantizer: {0}")]
    Unsupported(String),
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
