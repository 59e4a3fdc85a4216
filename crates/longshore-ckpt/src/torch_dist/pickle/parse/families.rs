//! The opcodes that make numbers, strings and objects.

use super::{FALSE, Machine, Result, TRUE};
use crate::torch_dist::pickle::{Link, Node, NodeId, Object};

impl Machine<'_> {
    pub(super) fn number(&mut self, op: u8) -> Result<()> {
        match op {
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push_int(value.into())
            }
            b'K' => {
                let value = self.array::<1>()?[0];
                self.push_int(value.into())
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push_int(value.into())
            }
            0x8a | 0x8b => {
                let len = self.length(op)?;
                let bytes = self.take(len)?;
                self.push_long(bytes)
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(value))
            }
            b'F' => match self.text_line()?.trim().parse() {
                Ok(value) => self.push(Node::Float(value)),
                Err(_) => self.fail("a float is no number"),
            },
            _ => self.text_int(op),
        }
    }

    fn text_int(&mut self, op: u8) -> Result<()> {
        let line = self.text_line()?.trim();
        match (op, line) {
            (b'I', "00") => self.stack.push(FALSE),
            (b'I', "01") => self.stack.push(TRUE),
            _ => match line.strip_suffix('L').unwrap_or(line).parse::<i128>() {
                Ok(value) => match i64::try_from(value) {
                    Ok(value) => self.push_int(value)?,
                    Err(_) => self.push_long(&value.to_le_bytes())?,
                },
                Err(_) => return self.fail("an integer is no number of at most 128 bits"),
            },
        }
        Ok(())
    }

    pub(super) fn string(&mut self, op: u8) -> Result<()> {
        match op {
            b'S' => {
                let line = self.line()?.trim_ascii();
                let Some(text) = unescape_string(line) else { return self.fail("a string is not quoted correctly") };
                self.push_text(&text)
            }
            b'V' => {
                let line = self.line()?;
                let Some(text) = unescape_unicode(line) else { return self.fail("a string has a wrong escape") };
                self.push_text(text.as_bytes())
            }
            _ => {
                let len = self.length(op)?;
                let bytes = self.take(len)?;
                self.push_text(bytes)
            }
        }
    }

    fn push_object(&mut self, callable: NodeId, args: NodeId) -> Result<()> {
        let index = self.index(self.pickle.objects.len())?;
        self.pickle.objects.push(Object { callable, args, state: Link::NONE, items: Link::NONE, entries: Link::NONE });
        self.push(Node::Object(index))
    }

    fn global(&mut self, module: NodeId, name: NodeId) -> Result<NodeId> {
        let key = (module.0, name.0);
        if let Some(&id) = self.globals.get(&key) {
            return Ok(id);
        }
        let id = self.add(Node::Global(module, name))?;
        self.globals.insert(key, id);
        Ok(id)
    }

    /// The global named by two lines of text.
    fn global_lines(&mut self) -> Result<NodeId> {
        let (module, name) = (self.text_line()?, self.text_line()?);
        let (module, name) = (self.intern(module)?, self.intern(name)?);
        self.global(module, name)
    }

    pub(super) fn object(&mut self, op: u8) -> Result<()> {
        match op {
            b'c' => {
                let id = self.global_lines()?;
                self.stack.push(id);
            }
            0x93 => {
                let [module, name] = self.pop_array()?;
                if self.text(module).is_none() || self.text(name).is_none() {
                    return self.fail("the name of a global is no string");
                }
                let id = self.global(module, name)?;
                self.stack.push(id);
            }
            b'R' | 0x81 => {
                let [callable, args] = self.pop_array()?;
                self.call(callable, args)?;
            }
            0x92 => {
                let [class, args, named] = self.pop_array()?;
                self.push_tuple(&[args, named])?;
                let both = self.pop()?;
                self.call(class, both)?;
            }
            b'i' | b'o' => {
                let lines = if op == b'i' { Some(self.global_lines()?) } else { None };
                let items = self.pop_mark()?;
                let (class, args) = match (lines, items.split_first()) {
                    (Some(class), _) => (class, &items[..]),
                    (None, Some((&class, args))) => (class, args),
                    (None, None) => return self.fail("the class of an object is missing"),
                };
                self.push_tuple(args)?;
                let args = self.pop()?;
                self.call(class, args)?;
            }
            b'b' => self.build()?,
            b'P' => {
                let line = self.line()?;
                self.push_text(line)?;
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            _ => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
        }
        Ok(())
    }

    fn call(&mut self, callable: NodeId, args: NodeId) -> Result<()> {
        match self.pickle.nodes[args.0 as usize] {
            Node::Tuple(_) => self.push_object(callable, args),
            _ => self.fail("the arguments of a call are no tuple"),
        }
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let top = self.top()?;
        let Node::Object(index) = self.pickle.nodes[top.0 as usize] else {
            return self.fail("state is given to a value that is no object");
        };
        let slot = &mut self.pickle.objects[index as usize].state;
        if slot.get().is_some() {
            return self.fail("state is given to an object twice");
        }
        *slot = Link::to(state);
        Ok(())
    }
}

/// The bytes of a Python 2 string literal.
fn unescape_string(line: &[u8]) -> Option<Vec<u8>> {
    let (first, last) = (line.first()?, line.last()?);
    if line.len() < 2 || first != last || !matches!(first, b'\'' | b'"') {
        return None;
    }
    let mut out = Vec::with_capacity(line.len());
    let mut rest = &line[1..line.len() - 1];
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&kind, after) = rest.split_first()?;
        rest = after;
        match kind {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'v' => out.push(11),
            b'f' => out.push(12),
            b'\\' | b'\'' | b'"' => out.push(kind),
            b'x' => {
                out.push(hex(rest.get(..2)?)? as u8);
                rest = &rest[2..];
            }
            b'0'..=b'7' => {
                let more = rest.iter().take(2).take_while(|b| matches!(b, b'0'..=b'7')).count();
                let digits = rest[..more].iter().fold(u32::from(kind - b'0'), |n, d| n * 8 + u32::from(d - b'0'));
                out.push(digits as u8);
                rest = &rest[more..];
            }
            _ => out.extend([b'\\', kind]),
        }
    }
    Some(out)
}

/// Python's codec `raw-unicode-escape`: Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
fn unescape_unicode(line: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        let digits = match (byte, line.get(at + 1)) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            // No escape, and what follows begins none either: `\\u0041` is seven characters.
            (b'\\', Some(&next)) => {
                out.extend(['\\', char::from(next)]);
                at += 2;
                continue;
            }
            _ => {
                out.push(char::from(byte));
                at += 1;
                continue;
            }
        };
        out.push(char::from_u32(hex(line.get(at + 2..at + 2 + digits)?)?)?);
        at += 2 + digits;
    }
    Some(out)
}

fn hex(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(text, 16).ok()
}
