//! The values that a Python object of ModelOpt is made of, tuples told from lists.

/// A value as Python would print it. The crate of checkpoints has the same, to pickle it.
#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`
    Str(String),
    /// `list`
    List(Vec<Plain>),
    /// `tuple`
    Tuple(Vec<Plain>),
    /// `dict`, in this order
    Dict(Vec<(Plain, Plain)>),
    /// `torch.Size`
    Size(Vec<u64>),
    /// A member of `torch`: `bfloat16` is `torch.bfloat16`
    Dtype(String),
}

impl Plain {
    /// A `str`.
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// A `dict` with these keys, in this order.
    pub fn dict<K: Into<String>>(entries: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (Self::str(key), value)).collect())
    }

    /// The value of the key `name` of a `dict`.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Dict(entries) = self else { return None };
        entries.iter().find(|(key, _)| matches!(key, Self::Str(text) if text == name)).map(|(_, value)| value)
    }
}

impl From<bool> for Plain {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Plain {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Plain {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Plain {
    fn from(value: &str) -> Self {
        Self::str(value)
    }
}

impl<T: Into<Plain>> From<Option<T>> for Plain {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}
