//! Python pickles as inert data. Nothing in a pickle is ever executed: a call, an instance or a reference to a class
//! becomes a [`View`] that says what Python would have called and with what.
//!
//! A parsed [`Pickle`] is an arena of small nodes, so its size is linear in the input, shared objects stay shared and
//! cyclic ones do no harm as long as the reader bounds its own depth. Reference: `CPython`'s `Lib/pickletools.py` (3.14).

mod parse;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use view::{Entries, Items, TEXT_DEPTH, TEXT_LEN, View};
pub use write::{Plain, Writer, dump};

use crate::error::ParseError;

/// Index of a node in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NodeId(u32);

/// A range of one of the arena's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

/// A growing sequence of node ids: a chain of segments, [`NO_SEGMENT`] where empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    last: u32,
    /// Ids in all segments.
    len: u32,
}

/// The end of a [`Run`].
const NO_SEGMENT: u32 = u32::MAX;

impl Run {
    const EMPTY: Self = Self { first: NO_SEGMENT, last: NO_SEGMENT, len: 0 };
}

/// A part of a [`Run`]: a range of [`Pickle::pool`] and the next part.
#[derive(Clone, Copy, Debug)]
struct Segment {
    span: Span,
    next: u32,
}

/// A value. 16 bytes, because the metadata of a large checkpoint has tens of millions of them.
#[derive(Clone, Copy, Debug)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Little-endian two's complement, in [`Pickle::bytes`].
    BigInt(Span),
    Float(f64),
    /// In [`Pickle::text`].
    Str(Span),
    /// In [`Pickle::bytes`]; also strings that are not UTF-8.
    Bytes(Span),
    Tuple(Span),
    List(Run),
    /// Keys and values in turn.
    Dict(Run),
    Set(Run),
    /// Two strings: module and name.
    Global(NodeId, NodeId),
    /// Index into [`Pickle::objects`].
    Object(u32),
    /// A persistent id, which only the reader of the file can interpret.
    Persistent(NodeId),
}

/// A [`NodeId`] or nothing, in the space of one.
#[derive(Clone, Copy, Debug)]
struct Link(u32);

impl Link {
    const NONE: Self = Self(u32::MAX);

    fn to(id: NodeId) -> Self {
        Self(id.0)
    }

    fn get(self) -> Option<NodeId> {
        (self.0 != u32::MAX).then_some(NodeId(self.0))
    }
}

/// What Python would make by calling something.
#[derive(Clone, Copy, Debug)]
struct Object {
    callable: NodeId,
    args: NodeId,
    /// The argument of `BUILD`.
    state: Link,
    /// A list or set node: what `APPEND` and `ADDITEMS` added.
    items: Link,
    /// A dict node: what `SETITEM` set.
    entries: Link,
}

/// A parsed pickle.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    /// Children of tuples and runs.
    pool: Vec<NodeId>,
    segments: Vec<Segment>,
    objects: Vec<Object>,
    text: String,
    bytes: Vec<u8>,
    root: NodeId,
}

impl Pickle {
    /// Parses a whole pickle of any protocol up to 5. Bytes after the final `STOP` are an error, as are opcodes that
    /// need a registry or buffers from outside (`EXT*`, `NEXT_BUFFER`, `READONLY_BUFFER`).
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        parse::parse(bytes)
    }

    /// The value that unpickling would return.
    pub fn root(&self) -> View<'_> {
        View::new(self, self.root)
    }

    /// The same pickle with the only item of the list at its root as the new root; `None` if the root is anything else.
    pub fn into_single_item(mut self) -> Option<Self> {
        let mut items = self.root().items()?;
        let only = items.next().filter(|_| items.next().is_none())?.id();
        self.root = only;
        Some(self)
    }

    fn text(&self, span: Span) -> &str {
        &self.text[span.start as usize..][..span.len as usize]
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..][..span.len as usize]
    }
}
