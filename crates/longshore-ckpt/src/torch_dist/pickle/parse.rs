//! The machine that runs a pickle's opcodes on inert nodes.
//!
//! Every opcode adds at most a constant to the arena beyond the bytes it brings, and nothing recurses, so time and memory
//! are linear in the input. Indices fit `u32` because the input does.

mod families;

use super::{Link, NO_SEGMENT, Node, NodeId, Pickle, Run, Segment, Span};
use crate::error::ParseError;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Strings up to this length are stored once, in bytes. Longer ones hardly repeat without a memo.
const INTERN_LIMIT: usize = 256;
/// Slots of the cache of integers; sizes of tensors repeat much, offsets hardly.
const INT_SLOTS: usize = 256;

const NONE: NodeId = NodeId(0);
const FALSE: NodeId = NodeId(1);
const TRUE: NodeId = NodeId(2);
const EMPTY_TUPLE: NodeId = NodeId(3);

type Result<T> = std::result::Result<T, ParseError>;

pub(super) fn parse(bytes: &[u8]) -> Result<Pickle> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(ParseError::new(0u64, "pickles of 4 GiB and more are not supported"));
    }
    let mut machine = Machine::new(bytes);
    while machine.result.is_none() {
        machine.step()?;
    }
    if machine.at < bytes.len() {
        return Err(ParseError::new(machine.at as u64, "bytes follow the end of the pickle"));
    }
    let Machine { mut pickle, result, .. } = machine;
    pickle.root = result.unwrap_or(NONE);
    pickle.nodes.shrink_to_fit();
    pickle.pool.shrink_to_fit();
    pickle.segments.shrink_to_fit();
    pickle.objects.shrink_to_fit();
    Ok(pickle)
}

struct Machine<'a> {
    input: &'a [u8],
    /// The next byte.
    at: usize,
    /// The opcode at work, for errors.
    op_at: usize,
    pickle: Pickle,
    stack: Vec<NodeId>,
    /// Heights of the stack at the open marks.
    marks: Vec<u32>,
    memo: Memo,
    hasher: RandomState,
    /// The last string with a hash.
    strings: HashMap<u64, NodeId>,
    globals: HashMap<(u32, u32), NodeId>,
    ints: Vec<(i64, NodeId)>,
    result: Option<NodeId>,
}

/// Picklers number memo entries from 0 up, so nearly all live in the vector.
#[derive(Default)]
struct Memo {
    dense: Vec<NodeId>,
    /// Entries with an index beyond the vector's end.
    sparse: HashMap<u64, NodeId>,
}

impl Memo {
    fn put(&mut self, index: u64, id: NodeId) {
        let len = self.dense.len() as u64;
        match index.cmp(&len) {
            Ordering::Less => self.dense[index as usize] = id,
            Ordering::Equal => {
                self.dense.push(id);
                self.sparse.remove(&index);
            }
            Ordering::Greater => {
                self.sparse.insert(index, id);
            }
        }
    }

    fn get(&self, index: u64) -> Option<NodeId> {
        let dense = usize::try_from(index).ok().and_then(|i| self.dense.get(i));
        dense.or_else(|| self.sparse.get(&index)).copied()
    }

    fn len(&self) -> u64 {
        (self.dense.len() + self.sparse.len()) as u64
    }
}

/// What [`Machine::extend`] adds to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    List,
    Set,
    Dict,
}

impl<'a> Machine<'a> {
    fn new(input: &'a [u8]) -> Self {
        let empty = Node::Tuple(Span { start: 0, len: 0 });
        let pickle = Pickle {
            nodes: vec![Node::None, Node::Bool(false), Node::Bool(true), empty],
            pool: Vec::new(),
            segments: Vec::new(),
            objects: Vec::new(),
            text: String::new(),
            bytes: Vec::new(),
            root: NONE,
        };
        Self {
            input,
            at: 0,
            op_at: 0,
            pickle,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Memo::default(),
            hasher: RandomState::new(),
            strings: HashMap::new(),
            globals: HashMap::new(),
            ints: vec![(0, NONE); INT_SLOTS],
            result: None,
        }
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.op_at as u64, what))
    }

    fn step(&mut self) -> Result<()> {
        self.op_at = self.at;
        let op = self.array::<1>()?[0];
        match op {
            b'(' => self.marks.push(self.index(self.stack.len())?),
            b'.' => self.result = Some(self.pop()?),
            b'0' => self.pop_any()?,
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            0x80 => self.proto()?,
            // Frames only help a reader to buffer.
            0x95 => {
                self.array::<8>()?;
            }
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => self.number(op)?,
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d => self.string(op)?,
            b'B' | b'C' | 0x8e | 0x96 => {
                let len = self.length(op)?;
                let bytes = self.take(len)?;
                self.push_bytes(bytes)?;
            }
            b')' => self.stack.push(EMPTY_TUPLE),
            b't' => {
                let from = self.pop_mark()?;
                self.push_tuple(&from)?;
            }
            0x85 => {
                let items = self.pop_array::<1>()?;
                self.push_tuple(&items)?;
            }
            0x86 => {
                let items = self.pop_array::<2>()?;
                self.push_tuple(&items)?;
            }
            0x87 => {
                let items = self.pop_array::<3>()?;
                self.push_tuple(&items)?;
            }
            b']' => self.push(Node::List(Run::EMPTY))?,
            b'}' => self.push(Node::Dict(Run::EMPTY))?,
            0x8f => self.push(Node::Set(Run::EMPTY))?,
            b'l' => self.collect(Kind::List)?,
            b'd' => self.collect(Kind::Dict)?,
            // A frozenset differs from a set only in what Python lets one do with it.
            0x91 => self.collect(Kind::Set)?,
            b'a' => {
                let items = self.pop_array::<1>()?;
                self.extend(Kind::List, &items)?;
            }
            b's' => {
                let items = self.pop_array::<2>()?;
                self.extend(Kind::Dict, &items)?;
            }
            b'e' | b'u' | 0x90 => {
                let items = self.pop_mark()?;
                let kind = match op {
                    b'e' => Kind::List,
                    b'u' => Kind::Dict,
                    _ => Kind::Set,
                };
                self.extend(kind, &items)?;
            }
            b'g' | b'h' | b'j' => {
                let index = self.memo_index(op)?;
                match self.memo.get(index) {
                    Some(id) => self.stack.push(id),
                    None => return self.fail(format!("memo entry {index} does not exist")),
                }
            }
            b'p' | b'q' | b'r' => {
                let index = self.memo_index(op)?;
                let top = self.top()?;
                self.memo.put(index, top);
            }
            0x94 => {
                let top = self.top()?;
                self.memo.put(self.memo.len(), top);
            }
            b'c' | 0x93 | b'R' | b'b' | b'i' | b'o' | 0x81 | 0x92 | b'P' | b'Q' => self.object(op)?,
            0x82..=0x84 => return self.fail("extension codes (EXT1, EXT2, EXT4) are not supported"),
            0x97 | 0x98 => return self.fail("out-of-band buffers are not supported"),
            _ => return self.fail(format!("0x{op:02x} is no opcode")),
        }
        Ok(())
    }

    // The input.

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let bytes = self.at.checked_add(len).and_then(|end| self.input.get(self.at..end));
        let Some(bytes) = bytes else { return self.fail("the pickle ends early") };
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Up to the line break, which is skipped.
    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.input[self.at..];
        let Some(len) = rest.iter().position(|&b| b == b'\n') else { return self.fail("a line does not end") };
        self.at += len + 1;
        Ok(&rest[..len])
    }

    fn text_line(&mut self) -> Result<&'a str> {
        let line = self.line()?;
        std::str::from_utf8(line).or_else(|_| self.fail("a line is not UTF-8"))
    }

    /// The length prefix of a string, byte string or long of opcode `op`.
    fn length(&mut self, op: u8) -> Result<usize> {
        let len = match op {
            b'U' | b'C' | 0x8c | 0x8a => u64::from(self.array::<1>()?[0]),
            // These two are signed.
            b'T' | 0x8b => match u64::try_from(i32::from_le_bytes(self.array()?)) {
                Ok(len) => len,
                Err(_) => return self.fail("a length is negative"),
            },
            b'X' | b'B' => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        };
        usize::try_from(len).or_else(|_| self.fail("the pickle ends early"))
    }

    fn memo_index(&mut self, op: u8) -> Result<u64> {
        Ok(match op {
            b'h' | b'q' => u64::from(self.array::<1>()?[0]),
            b'j' | b'r' => u64::from(u32::from_le_bytes(self.array()?)),
            _ => match self.text_line()?.parse() {
                Ok(index) => index,
                Err(_) => return self.fail("a memo index is no number"),
            },
        })
    }

    fn proto(&mut self) -> Result<()> {
        match self.array::<1>()?[0] {
            0..=5 => Ok(()),
            other => self.fail(format!("pickle protocol {other} is not supported")),
        }
    }

    // The stack. Nothing below the last mark can be reached.

    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&m| m as usize)
    }

    fn top(&self) -> Result<NodeId> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => self.fail("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Result<NodeId> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// `POP` takes a mark where one is on top.
    fn pop_any(&mut self) -> Result<()> {
        if self.stack.len() == self.floor() && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop().map(|_| ())
    }

    fn pop_array<const N: usize>(&mut self) -> Result<[NodeId; N]> {
        let from = self.stack.len().checked_sub(N).filter(|&from| from >= self.floor());
        let Some(from) = from else { return self.fail("the stack is empty") };
        let mut out = [NONE; N];
        out.copy_from_slice(&self.stack[from..]);
        self.stack.truncate(from);
        Ok(out)
    }

    fn pop_mark(&mut self) -> Result<Vec<NodeId>> {
        let Some(mark) = self.marks.pop() else { return self.fail("there is no mark") };
        let out = self.stack[mark as usize..].to_vec();
        self.stack.truncate(mark as usize);
        Ok(out)
    }

    // The arena.

    fn index(&self, len: usize) -> Result<u32> {
        // One below the maximum, which means "none" in a run.
        u32::try_from(len).ok().filter(|&i| i < NO_SEGMENT).map_or_else(|| self.fail("too many values"), Ok)
    }

    fn add(&mut self, node: Node) -> Result<NodeId> {
        let id = NodeId(self.index(self.pickle.nodes.len())?);
        self.pickle.nodes.push(node);
        Ok(id)
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_int(&mut self, value: i64) -> Result<()> {
        let slot = (value ^ (value >> 8) ^ (value >> 16)).cast_unsigned() as usize % INT_SLOTS;
        let (cached, id) = self.ints[slot];
        if cached == value && id != NONE {
            self.stack.push(id);
            return Ok(());
        }
        let id = self.add(Node::Int(value))?;
        self.ints[slot] = (value, id);
        self.stack.push(id);
        Ok(())
    }

    /// An integer in little-endian two's complement.
    fn push_long(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > 8 {
            let span = self.append_bytes(bytes)?;
            return self.push(Node::BigInt(span));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push_int(i64::from_le_bytes(wide))
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> Result<Span> {
        let span = Span { start: self.index(self.pickle.bytes.len())?, len: self.index(bytes.len())? };
        self.pickle.bytes.extend_from_slice(bytes);
        Ok(span)
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let span = self.append_bytes(bytes)?;
        self.push(Node::Bytes(span))
    }

    /// A string; one that is not UTF-8 (Python can pickle lone surrogates) is kept as bytes.
    fn push_text(&mut self, bytes: &[u8]) -> Result<()> {
        let Ok(text) = std::str::from_utf8(bytes) else { return self.push_bytes(bytes) };
        let id = self.intern(text)?;
        self.stack.push(id);
        Ok(())
    }

    fn intern(&mut self, text: &str) -> Result<NodeId> {
        let hash = self.hasher.hash_one(text);
        let short = text.len() <= INTERN_LIMIT;
        if short
            && let Some(&id) = self.strings.get(&hash)
            && self.text(id) == Some(text)
        {
            return Ok(id);
        }
        let span = Span { start: self.index(self.pickle.text.len())?, len: self.index(text.len())? };
        self.pickle.text.push_str(text);
        let id = self.add(Node::Str(span))?;
        if short {
            self.strings.insert(hash, id);
        }
        Ok(id)
    }

    fn text(&self, id: NodeId) -> Option<&str> {
        if let Node::Str(span) = self.pickle.nodes[id.0 as usize] { Some(self.pickle.text(span)) } else { None }
    }

    fn append_pool(&mut self, items: &[NodeId]) -> Result<Span> {
        let span = Span { start: self.index(self.pickle.pool.len())?, len: self.index(items.len())? };
        self.pickle.pool.extend_from_slice(items);
        Ok(span)
    }

    fn push_tuple(&mut self, items: &[NodeId]) -> Result<()> {
        if items.is_empty() {
            self.stack.push(EMPTY_TUPLE);
            return Ok(());
        }
        let span = self.append_pool(items)?;
        self.push(Node::Tuple(span))
    }

    /// `LIST`, `DICT`, `FROZENSET`: of everything since the mark.
    fn collect(&mut self, kind: Kind) -> Result<()> {
        let items = self.pop_mark()?;
        self.push(Self::empty(kind))?;
        self.extend(kind, &items)
    }

    fn empty(kind: Kind) -> Node {
        match kind {
            Kind::List => Node::List(Run::EMPTY),
            Kind::Set => Node::Set(Run::EMPTY),
            Kind::Dict => Node::Dict(Run::EMPTY),
        }
    }

    /// Adds to the collection on top of the stack, or to the object there, which gets a collection for it.
    fn extend(&mut self, kind: Kind, items: &[NodeId]) -> Result<()> {
        if kind == Kind::Dict && !items.len().is_multiple_of(2) {
            return self.fail("a dict's key has no value");
        }
        let top = self.top()?;
        let target = match (self.pickle.nodes[top.0 as usize], kind) {
            (Node::List(_), Kind::List) | (Node::Set(_), Kind::Set) | (Node::Dict(_), Kind::Dict) => top,
            (Node::Object(index), _) => self.collection_of(index as usize, kind)?,
            _ => return self.fail("items are added to a value that takes none"),
        };
        if items.is_empty() {
            return Ok(());
        }
        let span = self.append_pool(items)?;
        let (Node::List(run) | Node::Set(run) | Node::Dict(run)) = self.pickle.nodes[target.0 as usize] else {
            return self.fail("items of two kinds are added to one object");
        };
        let run = self.lengthen(run, span)?;
        self.pickle.nodes[target.0 as usize] = match kind {
            Kind::List => Node::List(run),
            Kind::Set => Node::Set(run),
            Kind::Dict => Node::Dict(run),
        };
        Ok(())
    }

    fn collection_of(&mut self, object: usize, kind: Kind) -> Result<NodeId> {
        let known = self.pickle.objects[object];
        let slot = if kind == Kind::Dict { known.entries } else { known.items };
        if let Some(id) = slot.get() {
            let matches = match self.pickle.nodes[id.0 as usize] {
                Node::List(_) => kind == Kind::List,
                Node::Set(_) => kind == Kind::Set,
                _ => kind == Kind::Dict,
            };
            return if matches { Ok(id) } else { self.fail("items of two kinds are added to one object") };
        }
        let id = self.add(Self::empty(kind))?;
        let object = &mut self.pickle.objects[object];
        *(if kind == Kind::Dict { &mut object.entries } else { &mut object.items }) = Link::to(id);
        Ok(id)
    }

    /// `run` with the newest part `span` of the pool added.
    fn lengthen(&mut self, run: Run, span: Span) -> Result<Run> {
        let len = self.index(run.len as usize + span.len as usize)?;
        if let Some(last) = self.pickle.segments.get_mut(run.last as usize)
            && last.span.start + last.span.len == span.start
        {
            last.span.len += span.len;
            return Ok(Run { len, ..run });
        }
        let index = self.index(self.pickle.segments.len())?;
        self.pickle.segments.push(Segment { span, next: NO_SEGMENT });
        match self.pickle.segments.get_mut(run.last as usize) {
            Some(last) => last.next = index,
            None => return Ok(Run { first: index, last: index, len }),
        }
        Ok(Run { first: run.first, last: index, len })
    }
}
