//! Writing pickles, protocol 2, with the opcodes that every restricted unpickler of torch accepts.

use std::collections::HashMap;

/// A value that [`dump`] can write.
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
    /// A class or another object with a name: its module and its name there, `torch` and `bfloat16`.
    Global(String, String),
    /// An `argparse.Namespace` with these attributes, in this order.
    Namespace(Vec<(String, Plain)>),
    /// `torch.Size`, in elements.
    Size(Vec<u64>),
}

/// The pickle of `value`.
pub fn dump(value: &Plain) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.plain(value);
    writer.finish()
}

/// Emits the opcodes of one pickle. The caller is responsible for their order.
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    /// What was memoized, by an opcode and its argument, so that a string is never taken for a global.
    memo: HashMap<Vec<u8>, u32>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty pickle of protocol 2.
    pub fn new() -> Self {
        Self { out: vec![0x80, 2], memo: HashMap::new() }
    }

    /// Ends the pickle with the value on the stack.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    /// Opcodes without an argument.
    pub fn raw(&mut self, opcodes: &[u8]) {
        self.out.extend_from_slice(opcodes);
    }

    /// `MARK`: begins a tuple, items or entries.
    pub fn mark(&mut self) {
        self.out.push(b'(');
    }

    /// `TUPLE` of everything since the mark.
    pub fn tuple(&mut self) {
        self.out.push(b't');
    }

    /// `NONE`
    pub fn none(&mut self) {
        self.out.push(b'N');
    }

    /// `NEWTRUE`, `NEWFALSE`
    pub fn bool(&mut self, value: bool) {
        self.out.push(if value { 0x88 } else { 0x89 });
    }

    /// The shortest integer opcode.
    pub fn int(&mut self, value: i64) {
        if let Ok(v) = u64::try_from(value) {
            self.uint(v);
        } else if let Ok(v) = i32::try_from(value) {
            self.out.push(b'J');
            self.raw(&v.to_le_bytes());
        } else {
            self.long(value.into());
        }
    }

    /// The shortest integer opcode.
    pub fn uint(&mut self, value: u64) {
        if let Ok(v) = u8::try_from(value) {
            self.raw(&[b'K', v]);
        } else if let Ok(v) = u16::try_from(value) {
            self.out.push(b'M');
            self.raw(&v.to_le_bytes());
        } else if let Ok(v) = i32::try_from(value) {
            self.out.push(b'J');
            self.raw(&v.to_le_bytes());
        } else {
            self.long(value.into());
        }
    }

    /// `LONG1` with the fewest bytes that keep the sign.
    fn long(&mut self, value: i128) {
        let bytes = value.to_le_bytes();
        let fits = |n: &usize| matches!(value >> (8 * n - 1), 0 | -1);
        let len = (1..=16).find(fits).unwrap_or(16);
        self.raw(&[0x8a, len as u8]);
        self.raw(&bytes[..len]);
    }

    /// `BINFLOAT`
    pub fn float(&mut self, value: f64) {
        self.out.push(b'G');
        self.raw(&value.to_be_bytes());
    }

    /// `BINUNICODE`. Strings of 4 GiB and more do not occur here; one would be cut at a character.
    pub fn str(&mut self, value: &str) {
        let mut end = value.len().min(u32::MAX as usize);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        self.out.push(b'X');
        self.raw(&(end as u32).to_le_bytes());
        self.raw(&value.as_bytes()[..end]);
    }

    /// A string that occurs again: in full and memoized the first time, a reference later.
    pub fn shared_str(&mut self, value: &str) {
        self.shared(format!("X{value}").as_bytes(), |w| w.str(value));
    }

    /// `GLOBAL`, memoized. Neither part may contain a line break.
    pub fn global(&mut self, module: &str, name: &str) {
        let line = format!("c{module}\n{name}\n");
        self.shared(line.as_bytes(), |w| w.raw(line.as_bytes()));
    }

    /// Emits what is memoized under `key`, or makes and memoizes it. Keys that begin with `X` or `c` are taken.
    pub fn shared(&mut self, key: &[u8], make: impl FnOnce(&mut Self)) {
        if let Some(&index) = self.memo.get(key) {
            self.memo_op(b'h', b'j', index);
            return;
        }
        make(self);
        let index = self.memo.len() as u32;
        self.memo.insert(key.to_vec(), index);
        self.memo_op(b'q', b'r', index);
    }

    fn memo_op(&mut self, short: u8, long: u8, index: u32) {
        if let Ok(index) = u8::try_from(index) {
            self.raw(&[short, index]);
        } else {
            self.out.push(long);
            self.raw(&index.to_le_bytes());
        }
    }

    /// An instance without state: `GLOBAL`, `EMPTY_TUPLE`, `NEWOBJ`.
    pub fn new_object(&mut self, module: &str, name: &str) {
        self.global(module, name);
        self.raw(b")\x81");
    }

    fn plain(&mut self, value: &Plain) {
        match value {
            Plain::None => self.none(),
            Plain::Bool(v) => self.bool(*v),
            Plain::Int(v) => self.int(*v),
            Plain::Float(v) => self.float(*v),
            Plain::Str(v) => self.str(v),
            Plain::List(items) => {
                self.raw(b"](");
                for item in items {
                    self.plain(item);
                }
                self.raw(b"e");
            }
            Plain::Tuple(items) => {
                self.mark();
                for item in items {
                    self.plain(item);
                }
                self.tuple();
            }
            Plain::Dict(entries) => {
                self.raw(b"}(");
                for (key, value) in entries {
                    self.plain(key);
                    self.plain(value);
                }
                self.raw(b"u");
            }
            Plain::Global(module, name) => self.global(module, name),
            Plain::Namespace(attributes) => {
                self.new_object("argparse", "Namespace");
                self.raw(b"}(");
                for (name, value) in attributes {
                    self.str(name);
                    self.plain(value);
                }
                self.raw(b"ub");
            }
            Plain::Size(sizes) => {
                self.global("torch", "Size");
                self.mark();
                for &n in sizes {
                    self.uint(n);
                }
                self.tuple();
                // `TUPLE1`, `REDUCE`: the tuple is the only argument.
                self.raw(b"\x85R");
            }
        }
    }
}
