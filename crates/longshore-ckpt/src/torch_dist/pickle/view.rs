//! Looking at the values of a pickle.

use super::{Link, NO_SEGMENT, Node, NodeId, Object, Pickle, Run, Span};
use std::fmt::Write;

/// Levels that [`View::to_text`] shows.
pub const TEXT_DEPTH: usize = 16;
/// Bytes after which [`View::to_text`] stops, give or take a string.
pub const TEXT_LEN: usize = 256 << 10;
/// Characters of a string that [`View::to_text`] shows.
const TEXT_STR: usize = 512;

/// A value of a [`Pickle`]. Values may contain themselves: whoever walks down must bound the depth.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pickle: &'a Pickle,
    id: NodeId,
}

impl<'a> View<'a> {
    pub(super) fn new(pickle: &'a Pickle, id: NodeId) -> Self {
        Self { pickle, id }
    }

    pub(super) fn id(self) -> NodeId {
        self.id
    }

    fn node(self) -> Node {
        self.pickle.nodes[self.id.0 as usize]
    }

    fn at(self, id: NodeId) -> Self {
        Self { pickle: self.pickle, id }
    }

    fn object(self) -> Option<Object> {
        if let Node::Object(index) = self.node() { Some(self.pickle.objects[index as usize]) } else { None }
    }

    /// Whether two views show the same object, Python's `is`.
    pub fn same(self, other: View<'_>) -> bool {
        std::ptr::eq(self.pickle, other.pickle) && self.id == other.id
    }

    /// The type in words, for messages: `a string`.
    pub fn kind(self) -> &'static str {
        match self.node() {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::BigInt(_) => "an integer",
            Node::Float(_) => "a float",
            Node::Str(_) => "a string",
            Node::Bytes(_) => "a byte string",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dict",
            Node::Set(_) => "a set",
            Node::Global(..) => "a global",
            Node::Object(_) => "an object",
            Node::Persistent(_) => "a persistent id",
        }
    }

    /// Whether this is Python's `None`.
    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// A `bool`.
    pub fn as_bool(self) -> Option<bool> {
        if let Node::Bool(v) = self.node() { Some(v) } else { None }
    }

    fn as_i128(self) -> Option<i128> {
        match self.node() {
            Node::Int(v) => Some(v.into()),
            Node::BigInt(span) => {
                let bytes = self.pickle.bytes(span);
                let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
                let mut wide = [fill; 16];
                wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
                Some(i128::from_le_bytes(wide))
            }
            _ => None,
        }
    }

    /// An `int` (no `bool`) that fits.
    pub fn as_i64(self) -> Option<i64> {
        i64::try_from(self.as_i128()?).ok()
    }

    /// An `int` (no `bool`) that fits.
    pub fn as_u64(self) -> Option<u64> {
        u64::try_from(self.as_i128()?).ok()
    }

    /// A `float`; an `int` is none.
    pub fn as_f64(self) -> Option<f64> {
        if let Node::Float(v) = self.node() { Some(v) } else { None }
    }

    /// A `str`. Those with lone surrogates are not UTF-8 and count as [`View::as_bytes`].
    pub fn as_str(self) -> Option<&'a str> {
        if let Node::Str(span) = self.node() { Some(self.pickle.text(span)) } else { None }
    }

    /// A `bytes` or `bytearray`, or a `str` that is not UTF-8.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        if let Node::Bytes(span) = self.node() { Some(self.pickle.bytes(span)) } else { None }
    }

    /// The items of a list, tuple or set, or of an object that was appended to.
    pub fn items(self) -> Option<Items<'a>> {
        match self.node() {
            Node::List(run) | Node::Set(run) => Some(Items::of_run(self.pickle, run)),
            Node::Tuple(span) => Some(Items { pickle: self.pickle, span, next: NO_SEGMENT, left: span.len as usize }),
            Node::Object(index) => self.at(self.pickle.objects[index as usize].items.get()?).items(),
            _ => None,
        }
    }

    /// The entries of a dict, or of an object with items set (`collections.OrderedDict`), in the order of the pickle.
    /// Keys may repeat; Python keeps the last.
    pub fn entries(self) -> Option<Entries<'a>> {
        match self.node() {
            Node::Dict(run) => Some(Entries(Items::of_run(self.pickle, run))),
            Node::Object(index) => self.at(self.pickle.objects[index as usize].entries.get()?).entries(),
            _ => None,
        }
    }

    /// The value of a string key of [`View::entries`]. Takes time linear in their number.
    pub fn get(self, key: &str) -> Option<View<'a>> {
        self.entries()?.filter(|(k, _)| k.as_str() == Some(key)).last().map(|(_, v)| v)
    }

    fn global(self) -> Option<(&'a str, &'a str)> {
        let Node::Global(module, name) = self.node() else { return None };
        Some((self.at(module).as_str()?, self.at(name).as_str()?))
    }

    /// Module and name of a global, or of what an object is an instance (or the result) of.
    pub fn class_parts(self) -> Option<(&'a str, &'a str)> {
        let Some(object) = self.object() else { return self.global() };
        let callable = self.at(object.callable).global()?;
        // Protocols 0 and 1 go through these for ordinary instances; the class is their first argument.
        if matches!(callable, ("copyreg" | "copy_reg", "_reconstructor" | "__newobj__" | "__newobj_ex__")) {
            return self.at(object.args).items()?.next()?.global();
        }
        Some(callable)
    }

    /// `module.name` of a global, or of what an object is an instance (or the result) of.
    pub fn class(self) -> Option<String> {
        self.class_parts().map(|(module, name)| format!("{module}.{name}"))
    }

    /// The argument tuple of an object. For `NEWOBJ_EX` it is a pair: the positional and the keyword arguments.
    pub fn args(self) -> Option<View<'a>> {
        Some(self.at(self.object()?.args))
    }

    /// What an object's `__setstate__` would get.
    pub fn state(self) -> Option<View<'a>> {
        Some(self.at(self.object()?.state.get()?))
    }

    /// The dicts of an object's state: one, or (with slots) a pair of a dict or `None` and a dict.
    fn state_dicts(self) -> impl Iterator<Item = Entries<'a>> {
        let state = self.state();
        let pair = state.filter(|s| matches!(s.node(), Node::Tuple(Span { len: 2, .. })));
        let parts = pair.and_then(View::items).into_iter().flatten();
        state.into_iter().chain(parts).filter_map(View::entries)
    }

    /// An attribute of an object whose state is a dict, or a pair of a dict (or `None`) and a dict of slots. Takes time
    /// linear in their number.
    pub fn attr(self, name: &str) -> Option<View<'a>> {
        self.state_dicts().flatten().filter(|(k, _)| k.as_str() == Some(name)).last().map(|(_, v)| v)
    }

    /// How many attributes an object has.
    pub fn attr_count(self) -> usize {
        self.state_dicts().map(|dict| dict.len()).sum()
    }

    /// All attributes of an object, see [`View::attr`]; empty for anything else.
    pub fn attributes(self) -> Vec<(&'a str, View<'a>)> {
        self.state_dicts().flatten().filter_map(|(k, v)| Some((k.as_str()?, v))).collect()
    }

    /// What a persistent id names.
    pub fn persistent(self) -> Option<View<'a>> {
        if let Node::Persistent(id) = self.node() { Some(self.at(id)) } else { None }
    }

    /// The value in Python's notation, for people: cut off with `…` below [`TEXT_DEPTH`] levels and after about
    /// [`TEXT_LEN`] bytes.
    pub fn to_text(self) -> String {
        let mut out = String::new();
        self.write_text(&mut out, 0);
        out
    }

    fn write_text(self, out: &mut String, depth: usize) {
        if depth > TEXT_DEPTH || out.len() > TEXT_LEN {
            out.push('…');
            return;
        }
        match self.node() {
            Node::None => out.push_str("None"),
            Node::Bool(v) => out.push_str(if v { "True" } else { "False" }),
            Node::Int(v) => append(out, format_args!("{v}")),
            Node::BigInt(span) => match self.as_i128() {
                Some(v) => append(out, format_args!("{v}")),
                None => append(out, format_args!("<integer of {} bytes>", span.len)),
            },
            Node::Float(v) => append(out, format_args!("{v:?}")),
            Node::Str(span) => {
                let text = self.pickle.text(span);
                let end = text.char_indices().nth(TEXT_STR).map_or(text.len(), |(i, _)| i);
                let more = if end < text.len() { "…" } else { "" };
                append(out, format_args!("{:?}{more}", &text[..end]));
            }
            Node::Bytes(span) => append(out, format_args!("<{} bytes>", span.len)),
            Node::Global(..) => append(out, format_args!("<{}>", self.class().unwrap_or_default())),
            Node::Persistent(id) => {
                out.push_str("persistent ");
                self.at(id).write_text(out, depth + 1);
            }
            Node::Object(index) => self.write_object(self.pickle.objects[index as usize], out, depth),
            Node::Dict(_) => self.write_entries(out, depth),
            Node::Tuple(Span { len: 1, .. }) => self.write_items(["(", ",)"], out, depth),
            Node::Tuple(_) => self.write_items(["(", ")"], out, depth),
            Node::List(_) => self.write_items(["[", "]"], out, depth),
            Node::Set(_) => self.write_items(["set(", ")"], out, depth),
        }
    }

    fn write_object(self, object: Object, out: &mut String, depth: usize) {
        match self.class() {
            Some(class) => out.push_str(&class),
            None => self.at(object.callable).write_text(out, depth + 1),
        }
        self.at(object.args).write_text(out, depth + 1);
        for part in [object.state, object.items, object.entries].into_iter().filter_map(Link::get) {
            out.push(' ');
            self.at(part).write_text(out, depth + 1);
        }
    }

    fn write_items(self, [open, close]: [&str; 2], out: &mut String, depth: usize) {
        out.push_str(open);
        for (i, item) in self.items().into_iter().flatten().enumerate() {
            out.push_str(if i == 0 { "" } else { ", " });
            item.write_text(out, depth + 1);
            if out.len() > TEXT_LEN {
                break;
            }
        }
        out.push_str(close);
    }

    fn write_entries(self, out: &mut String, depth: usize) {
        out.push('{');
        for (i, (key, value)) in self.entries().into_iter().flatten().enumerate() {
            out.push_str(if i == 0 { "" } else { ", " });
            key.write_text(out, depth + 1);
            out.push_str(": ");
            value.write_text(out, depth + 1);
            if out.len() > TEXT_LEN {
                break;
            }
        }
        out.push('}');
    }
}

fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// See [`View::items`].
#[derive(Clone)]
pub struct Items<'a> {
    pickle: &'a Pickle,
    /// What is left of the current segment.
    span: Span,
    next: u32,
    left: usize,
}

impl<'a> Items<'a> {
    fn of_run(pickle: &'a Pickle, run: Run) -> Self {
        Self { pickle, span: Span { start: 0, len: 0 }, next: run.first, left: run.len as usize }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = View<'a>;

    fn next(&mut self) -> Option<View<'a>> {
        while self.span.len == 0 {
            let segment = self.pickle.segments.get(self.next as usize)?;
            (self.span, self.next) = (segment.span, segment.next);
        }
        let id = self.pickle.pool[self.span.start as usize];
        self.span = Span { start: self.span.start + 1, len: self.span.len - 1 };
        self.left -= 1;
        Some(View { pickle: self.pickle, id })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Items<'_> {}

/// See [`View::entries`].
#[derive(Clone)]
pub struct Entries<'a>(Items<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = (View<'a>, View<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().zip(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.left / 2, Some(self.0.left / 2))
    }
}

impl ExactSizeIterator for Entries<'_> {}
