//! The dialect of zip that `torch.save` writes: stored records only, zip64 where needed, the end record at the very end.
//!
//! An archive is read through a random-access function, a few small reads for any size, and everything that two places
//! in it say is compared. Reference: PKWARE APPNOTE 6.3.10; torch 2.11 `caffe2/serialize/inline_container.cc`.

use crate::error::{Error, ParseError};
use std::collections::HashSet;
use std::io;
use std::path::Path;

/// Why an item could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes break a rule of the format; the offset is from the item's start.
    #[error(transparent)]
    Malformed(#[from] ParseError),
    /// Legal, but nothing this program handles.
    #[error("{0} is not supported")]
    Unsupported(String),
}

impl LocateError {
    /// Places the error in the file whose byte `base` is the item's first.
    pub fn in_file(self, path: &Path, base: u64) -> Error {
        match self {
            Self::Io(source) => Error::Io { op: "reading", path: path.to_owned(), source },
            Self::Malformed(error) => error.in_file(path, base),
            Self::Unsupported(what) => Error::Unsupported { path: path.to_owned(), what },
        }
    }
}

/// Reads exactly the buffer's length from an offset in the item.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

type Result<T> = std::result::Result<T, LocateError>;

/// A central directory beyond this is not that of an item: one record needs about 60 bytes, and items have few.
const MAX_DIRECTORY: u64 = 1 << 20;
/// Most records of an archive.
const MAX_RECORDS: u64 = 4096;
/// The part of an item's start and of its end that is read at once; enough for all but the payload in what torch writes.
const WINDOW: u64 = 4096;

pub(super) const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;

const LOCAL_LEN: u64 = 30;
const END_LEN: u64 = 22;
const END64_LEN: u64 = 56;
const LOCATOR64_LEN: u64 = 20;

/// General purpose flag: CRC and sizes follow the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// General purpose flag: names are UTF-8.
const FLAG_UTF8: u16 = 1 << 11;
/// Bits 1 and 2 only grade compression.
const FLAGS_KNOWN: u16 = FLAG_DESCRIPTOR | FLAG_UTF8 | 0b110;

/// A record of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Full name, `archive/data/0`.
    pub name: String,
    /// CRC-32 of the data as the directory says; torch writes 0 where it was told not to compute it.
    pub crc32: u32,
    /// Length of the data in bytes.
    pub size: u64,
    /// First byte of the data, from the item's start.
    pub data_offset: u64,
    header_offset: u64,
    flags: u16,
}

/// An opened archive.
pub struct Archive<'a, 'b> {
    source: Source<'a, 'b>,
    /// The records by their place.
    pub records: Vec<Record>,
}

impl<'a, 'b> Archive<'a, 'b> {
    /// Reads and checks the directory and every record's header of the archive that is `len` bytes long.
    pub fn open(len: u64, read: &'a mut ReadAt<'b>) -> Result<Self> {
        let mut source = Source::new(len, read);
        let (mut records, directory) = directory(&mut source)?;
        records.sort_by_key(|r| r.header_offset);
        for i in 0..records.len() {
            let limit = records.get(i + 1).map_or(directory, |next| next.header_offset);
            check_local(&mut source, &mut records[i], limit)?;
        }
        Ok(Self { source, records })
    }

    /// The record `name` inside the archive's folder, whatever that is called.
    pub fn find(&self, name: &str) -> Option<&Record> {
        let folder = self.records.first()?.name.split('/').next()?;
        self.records.iter().find(|r| r.name.strip_prefix(folder).and_then(|n| n.strip_prefix('/')) == Some(name))
    }

    /// The data of a record of at most `limit` bytes.
    pub fn read(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(record) = self.find(name) else { return Ok(None) };
        let (at, size) = (record.data_offset, record.size);
        if size > limit {
            return fail(at, format!("expected at most {limit} bytes in `{name}`, found {size}"));
        }
        self.source.get(at, size).map(Some)
    }

    /// Bytes of the item, which must lie inside it.
    pub(super) fn bytes(&mut self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.source.get(offset, len)
    }
}

fn fail<T>(offset: u64, what: impl Into<String>) -> Result<T> {
    Err(LocateError::Malformed(ParseError::new(offset, what)))
}

/// An item with its two ends cached.
struct Source<'a, 'b> {
    len: u64,
    read: &'a mut ReadAt<'b>,
    head: Option<Vec<u8>>,
    tail: Option<Vec<u8>>,
}

impl<'a, 'b> Source<'a, 'b> {
    fn new(len: u64, read: &'a mut ReadAt<'b>) -> Self {
        Self { len, read, head: None, tail: None }
    }

    fn get(&mut self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let Some(end) = offset.checked_add(len).filter(|&end| end <= self.len) else {
            return fail(offset, "the archive ends early");
        };
        let window = WINDOW.min(self.len);
        let (cache, start) = if end > self.len - window && offset >= self.len - window {
            (&mut self.tail, self.len - window)
        } else if end <= window {
            (&mut self.head, 0)
        } else {
            let mut bytes = vec![0; len as usize];
            (self.read)(offset, &mut bytes)?;
            return Ok(bytes);
        };
        let bytes = if let Some(bytes) = cache {
            bytes
        } else {
            let mut bytes = vec![0; window as usize];
            (self.read)(start, &mut bytes)?;
            cache.insert(bytes)
        };
        Ok(bytes[(offset - start) as usize..][..len as usize].to_vec())
    }
}

/// Little-endian fields of a structure that begins at byte `offset` of the item.
struct Fields<'a> {
    bytes: &'a [u8],
    offset: u64,
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], offset: u64) -> Self {
        Self { bytes, offset, at: 0 }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some(bytes) = self.bytes.get(self.at..).and_then(|b| b.get(..len)) else {
            return fail(self.offset + self.at as u64, "a zip structure ends early");
        };
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn signature(&mut self, expected: u32, what: &str) -> Result<()> {
        if self.u32()? == expected { Ok(()) } else { fail(self.offset, format!("expected {what}")) }
    }
}

/// Where the central directory lies, from the end record: offset, length, records, and where what follows begins.
fn end_record(source: &mut Source<'_, '_>) -> Result<(u64, u64, u64, u64)> {
    let Some(at) = source.len.checked_sub(END_LEN) else { return fail(0, "the item is shorter than an empty archive") };
    let bytes = source.get(at, END_LEN)?;
    let mut f = Fields::new(&bytes, at);
    f.signature(END, "the archive's end record at the end of the item")?;
    let disks = (f.u16()?, f.u16()?);
    let counts = (f.u16()?, f.u16()?);
    let (size, offset, comment) = (f.u32()?, f.u32()?, f.u16()?);
    if disks != (0, 0) || counts.0 != counts.1 || comment != 0 {
        return fail(at, "an end record with a comment or of a part of an archive");
    }
    let saturated = counts.0 == u16::MAX || size == u32::MAX || offset == u32::MAX;
    let locator = at.checked_sub(LOCATOR64_LEN).map(|at| source.get(at, LOCATOR64_LEN)).transpose()?;
    let Some(locator) = locator.filter(|b| b.starts_with(&LOCATOR64.to_le_bytes())) else {
        return if saturated {
            fail(at, "the zip64 end record is missing")
        } else {
            Ok((offset.into(), size.into(), counts.0.into(), at))
        };
    };
    let (offset64, size64, count64, at64) = end_record64(source, &locator, at - LOCATOR64_LEN)?;
    let agrees = |small: u32, max: u32, big: u64| small == max || u64::from(small) == big;
    if !agrees(offset, u32::MAX, offset64)
        || !agrees(size, u32::MAX, size64)
        || !agrees(counts.0.into(), u16::MAX.into(), count64)
    {
        return fail(at64, "the two end records differ");
    }
    Ok((offset64, size64, count64, at64))
}

fn end_record64(source: &mut Source<'_, '_>, locator: &[u8], locator_at: u64) -> Result<(u64, u64, u64, u64)> {
    let mut f = Fields::new(locator, locator_at);
    f.signature(LOCATOR64, "the locator of the zip64 end record")?;
    let (disk, at, disks) = (f.u32()?, f.u64()?, f.u32()?);
    // miniz says one disk, others none.
    if disk != 0 || disks > 1 || at.checked_add(END64_LEN) != Some(locator_at) {
        return fail(locator_at, "the locator does not point at the zip64 end record before it");
    }
    let bytes = source.get(at, END64_LEN)?;
    let mut f = Fields::new(&bytes, at);
    f.signature(END64, "the zip64 end record")?;
    let (size_of_record, _versions, disk, start) = (f.u64()?, f.u32()?, f.u32()?, f.u32()?);
    let (here, total, size, offset) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
    if size_of_record != END64_LEN - 12 || disk != 0 || start != 0 || here != total {
        return fail(at, "a zip64 end record of a part of an archive, or of another version");
    }
    Ok((offset, size, total, at))
}

/// The records of the central directory, data offsets still unknown, and where the directory begins.
fn directory(source: &mut Source<'_, '_>) -> Result<(Vec<Record>, u64)> {
    let (offset, size, count, end) = end_record(source)?;
    if offset.checked_add(size) != Some(end) {
        return fail(end, format!("expected the end of the directory of {size} bytes at {offset} here"));
    }
    if size > MAX_DIRECTORY || count > MAX_RECORDS {
        return fail(offset, format!("a directory of {count} records in {size} bytes is too large for an item"));
    }
    let bytes = source.get(offset, size)?;
    let mut f = Fields::new(&bytes, offset);
    let mut records = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let record = central(&mut f)?;
        if !names.insert(record.name.clone()) {
            return fail(record.header_offset, format!("two records are called `{}`", record.name));
        }
        records.push(record);
    }
    if f.at != bytes.len() {
        return fail(offset + f.at as u64, format!("bytes follow the {count} records of the directory"));
    }
    Ok((records, offset))
}

fn central(f: &mut Fields<'_>) -> Result<Record> {
    let at = f.offset + f.at as u64;
    if f.u32()? != CENTRAL {
        return fail(at, "expected a record of the directory");
    }
    let _versions = f.u32()?;
    let (flags, method, _time) = (f.u16()?, f.u16()?, f.u32()?);
    let crc32 = f.u32()?;
    let (packed, size) = (f.u32()?, f.u32()?);
    let (name_len, extra_len, comment_len) = (f.u16()?, f.u16()?, f.u16()?);
    let disk = f.u16()?;
    let _attributes = (f.u16()?, f.u32()?);
    let header = f.u32()?;
    let name = f.take(name_len.into())?;
    let extra = f.take(extra_len.into())?;
    f.take(comment_len.into())?;
    let Ok(name) = std::str::from_utf8(name) else { return fail(at, "a record's name is not UTF-8") };
    check_kind(at, name, method, flags)?;
    if disk != 0 {
        return fail(at, format!("`{name}` lies on another disk"));
    }
    let mut wide = Zip64::find(extra, at)?;
    let size = wide.or(size)?;
    let packed = wide.or(packed)?;
    let header_offset = wide.or(header)?;
    if size != packed {
        return fail(at, format!("`{name}` is stored, but its two sizes are {size} and {packed}"));
    }
    Ok(Record { name: name.to_owned(), crc32, size, data_offset: 0, header_offset, flags })
}

fn check_kind(at: u64, name: &str, method: u16, flags: u16) -> Result<()> {
    if method != 0 {
        return fail(at, format!("`{name}` is compressed with method {method}, expected stored"));
    }
    if flags & !FLAGS_KNOWN != 0 {
        return fail(at, format!("`{name}` is encrypted or otherwise special (flags {flags:#06x})"));
    }
    Ok(())
}

/// The zip64 extra field: one 64-bit value for each classic field that is saturated, in their order.
struct Zip64<'a>(Fields<'a>);

impl<'a> Zip64<'a> {
    fn find(extra: &'a [u8], at: u64) -> Result<Self> {
        let mut f = Fields::new(extra, at);
        // Fewer than four bytes at the end are padding.
        while f.at + 4 <= extra.len() {
            let (id, len) = (f.u16()?, f.u16()?);
            let body = f.take(len.into())?;
            if id == 1 {
                return Ok(Self(Fields::new(body, at)));
            }
        }
        Ok(Self(Fields::new(&[], at)))
    }

    fn or(&mut self, classic: u32) -> Result<u64> {
        if classic == u32::MAX { self.0.u64() } else { Ok(classic.into()) }
    }
}

/// Compares a record's local header with the directory and finds its data, which must end before `limit`.
fn check_local(source: &mut Source<'_, '_>, record: &mut Record, limit: u64) -> Result<()> {
    let at = record.header_offset;
    if at.checked_add(LOCAL_LEN).is_none_or(|end| end > limit) {
        return fail(at, format!("the header of `{}` overlaps what follows", record.name));
    }
    let bytes = source.get(at, LOCAL_LEN)?;
    let mut f = Fields::new(&bytes, at);
    f.signature(LOCAL, "the header of a record")?;
    let _version = f.u16()?;
    let (flags, method, _time) = (f.u16()?, f.u16()?, f.u32()?);
    let (crc32, packed, size) = (f.u32()?, f.u32()?, f.u32()?);
    let (name_len, extra_len) = (f.u16()?, f.u16()?);
    check_kind(at, &record.name, method, flags)?;
    let variable = u64::from(name_len) + u64::from(extra_len);
    let data = at + LOCAL_LEN + variable;
    if data.checked_add(record.size).is_none_or(|end| end > limit) {
        return fail(at, format!("the {} bytes of `{}` overlap what follows", record.size, record.name));
    }
    if source.get(at + LOCAL_LEN, name_len.into())? != record.name.as_bytes() {
        return fail(at, format!("the header of `{}` has another name", record.name));
    }
    let (mut size64, mut packed64) = (u64::from(size), u64::from(packed));
    if size == u32::MAX || packed == u32::MAX {
        let extra = source.get(at + LOCAL_LEN + u64::from(name_len), extra_len.into())?;
        let mut wide = Zip64::find(&extra, at)?;
        size64 = wide.or(size)?;
        packed64 = wide.or(packed)?;
    }
    // With a data descriptor the header may leave these to it.
    let later = flags & FLAG_DESCRIPTOR != 0;
    let same = |value: u64, expected: u64| value == expected || (later && value == 0);
    if (flags ^ record.flags) & FLAG_DESCRIPTOR != 0
        || !same(size64, record.size)
        || !same(packed64, record.size)
        || !same(crc32.into(), record.crc32.into())
    {
        return fail(at, format!("the header of `{}` differs from the directory", record.name));
    }
    record.data_offset = data;
    Ok(())
}

/// Whether CRC and sizes of a record are known when its header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sums {
    /// They are in the header.
    Known(u32),
    /// They follow the data; the directory gets the CRC.
    Later,
}

/// A record that is being written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    name: String,
    size: u64,
    header_offset: u64,
    sums: Sums,
}

impl Entry {
    pub(super) fn new(name: &str, size: u64, header_offset: u64, sums: Sums) -> Self {
        Self { name: name.to_owned(), size, header_offset, sums }
    }

    fn is_large(&self) -> bool {
        self.size >= u32::MAX.into()
    }

    fn flags(&self) -> u16 {
        if self.sums == Sums::Later { FLAG_UTF8 | FLAG_DESCRIPTOR } else { FLAG_UTF8 }
    }

    /// Version 4.5 for zip64, else 2.0.
    fn version(&self) -> u16 {
        if self.is_large() || self.header_offset >= u32::MAX.into() { 45 } else { 20 }
    }

    /// Appends the local header. With `align` the data begins at a multiple of it, made so by an extra field `FB` of `Z`
    /// as torch does.
    pub(super) fn local(&self, out: &mut Vec<u8>, align: Option<u64>) {
        let (crc32, size) = match self.sums {
            Sums::Known(crc32) => (crc32, self.size),
            Sums::Later => (0, 0),
        };
        let mut extra = Vec::new();
        if self.is_large() {
            put(&mut extra, &[&[1, 0, 16, 0], &size.to_le_bytes(), &size.to_le_bytes()]);
        }
        if let Some(align) = align {
            let unpadded = self.header_offset + LOCAL_LEN + self.name.len() as u64 + extra.len() as u64 + 4;
            let pad = unpadded.next_multiple_of(align) - unpadded;
            put(&mut extra, &[b"FB", &(pad as u16).to_le_bytes(), &vec![b'Z'; pad as usize]]);
        }
        let size = if self.is_large() { u32::MAX } else { size as u32 }.to_le_bytes();
        put(out, &[&LOCAL.to_le_bytes(), &self.version().to_le_bytes(), &self.flags().to_le_bytes()]);
        // Method, time, date: stored, none.
        put(out, &[&[0; 6], &crc32.to_le_bytes(), &size, &size]);
        put(out, &[&(self.name.len() as u16).to_le_bytes(), &(extra.len() as u16).to_le_bytes()]);
        put(out, &[self.name.as_bytes(), &extra]);
    }

    /// Appends the data descriptor that follows the data.
    pub(super) fn descriptor(&self, out: &mut Vec<u8>, crc32: u32) {
        put(out, &[&DESCRIPTOR.to_le_bytes(), &crc32.to_le_bytes()]);
        for _ in 0..2 {
            if self.is_large() {
                put(out, &[&self.size.to_le_bytes()]);
            } else {
                put(out, &[&(self.size as u32).to_le_bytes()]);
            }
        }
    }

    /// Appends the record of the directory; `crc32` counts where the header did not have it.
    fn central(&self, out: &mut Vec<u8>, crc32: u32) {
        let crc32 = if let Sums::Known(known) = self.sums { known } else { crc32 };
        let mut extra = Vec::new();
        if self.is_large() {
            put(&mut extra, &[&self.size.to_le_bytes(), &self.size.to_le_bytes()]);
        }
        let far = self.header_offset >= u32::MAX.into();
        if far {
            put(&mut extra, &[&self.header_offset.to_le_bytes()]);
        }
        if !extra.is_empty() {
            let len = extra.len() as u16;
            extra.splice(..0, [[1, 0], len.to_le_bytes()].concat());
        }
        let size = if self.is_large() { u32::MAX } else { self.size as u32 }.to_le_bytes();
        let offset = if far { u32::MAX } else { self.header_offset as u32 };
        let version = self.version().to_le_bytes();
        put(out, &[&CENTRAL.to_le_bytes(), &version, &version, &self.flags().to_le_bytes()]);
        put(out, &[&[0; 6], &crc32.to_le_bytes(), &size, &size]);
        put(out, &[&(self.name.len() as u16).to_le_bytes(), &(extra.len() as u16).to_le_bytes()]);
        // Comment, disk and attributes: none.
        put(out, &[&[0; 10], &offset.to_le_bytes(), self.name.as_bytes(), &extra]);
    }
}

/// Appends directory and end records to an archive of which `start + out.len()` bytes are written. `crc32` is that of
/// the records whose header left it out.
pub(super) fn finish(out: &mut Vec<u8>, start: u64, entries: &[Entry], crc32: u32) {
    let offset = start + out.len() as u64;
    let from = out.len();
    for entry in entries {
        entry.central(out, crc32);
    }
    let size = (out.len() - from) as u64;
    let count = entries.len() as u64;
    if offset >= u32::MAX.into() {
        // Version made by and needed: 4.5; both disks: 0.
        put(out, &[&END64.to_le_bytes(), &(END64_LEN - 12).to_le_bytes(), &[45, 0, 45, 0], &[0; 8]]);
        put(out, &[&count.to_le_bytes(), &count.to_le_bytes(), &size.to_le_bytes(), &offset.to_le_bytes()]);
        put(out, &[&LOCATOR64.to_le_bytes(), &[0; 4], &(offset + size).to_le_bytes(), &[1, 0, 0, 0]]);
    }
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    put(out, &[&END.to_le_bytes(), &[0; 4], &(count as u16).to_le_bytes(), &(count as u16).to_le_bytes()]);
    put(out, &[&(size as u32).to_le_bytes(), &offset.to_le_bytes(), &[0; 2]]);
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}
