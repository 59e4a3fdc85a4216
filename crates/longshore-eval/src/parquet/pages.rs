//! What the pages of a column claim, before the decoder believes it: it allocates what a page header says, which may be
//! 2 GiB of bytes, or a dictionary of 2^31 values. Reads Thrift's compact protocol as far as a `PageHeader`
//! (parquet-format, `parquet.thrift`) has it.

/// The claims of a column chunk's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// The values of all pages, dictionaries included.
    pub(super) values: u64,
    /// The uncompressed bytes of all pages.
    pub(super) size: u64,
}

/// Walks over the pages of a column chunk. `None` if these are not pages, or claim what is negative.
pub(super) fn claims(chunk: &[u8]) -> Option<Claims> {
    let mut claims = Claims::default();
    let mut at = 0;
    while at < chunk.len() {
        let mut header = Header { bytes: chunk, at, size: None, compressed: None, values: 0 };
        header.fields(0, 0)?;
        claims.size = claims.size.checked_add(u64::try_from(header.size?).ok()?)?;
        claims.values = claims.values.checked_add(u64::try_from(header.values).ok()?)?;
        at = header.at.checked_add(usize::try_from(header.compressed?).ok()?)?;
    }
    (at == chunk.len()).then_some(claims)
}

struct Header<'a> {
    bytes: &'a [u8],
    at: usize,
    size: Option<i64>,
    compressed: Option<i64>,
    values: i64,
}

impl Header<'_> {
    /// Reads a struct, which is field `parent` of its own.
    fn fields(&mut self, parent: i64, depth: u8) -> Option<()> {
        /// A statistic within a page header of a page header.
        const DEEPEST: u8 = 4;
        let mut id = 0i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            id = if head >> 4 == 0 { self.zigzag()? } else { id.checked_add(i64::from(head >> 4))? };
            match head & 15 {
                // A boolean is its type.
                1 | 2 => {}
                3 => drop(self.byte()?),
                4..=6 => {
                    let value = self.zigzag()?;
                    match (depth, parent, id) {
                        (0, _, 2) => self.size = Some(value),
                        (0, _, 3) => self.compressed = Some(value),
                        // The headers of data pages, version 1 and 2, and of dictionaries begin with the number of values.
                        (1, 5 | 7 | 8, 1) => self.values = value,
                        _ => {}
                    }
                }
                7 => self.skip(8)?,
                8 => {
                    let len = self.varint()?;
                    self.skip(len)?;
                }
                12 if depth < DEEPEST => self.fields(id, depth + 1)?,
                // Page headers have neither lists nor maps.
                _ => return None,
            }
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, len: u64) -> Option<()> {
        self.at = self.at.checked_add(usize::try_from(len).ok()?)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dictionary page of 3 bytes that claims 300 bytes uncompressed and `values` values.
    fn page(values: &[u8]) -> Vec<u8> {
        [&[0x15, 4, 0x15, 0xd8, 0x04, 0x15, 6, 0x4c, 0x15][..], values, &[0x15, 0, 0x11, 0, 0], b"abc"].concat()
    }

    #[test]
    fn claims_are_those_of_the_headers() {
        let two = [page(&[20]), page(&[0xfe, 0xff, 0xff, 0xff, 0x0f])].concat();
        assert_eq!(claims(&two), Some(Claims { values: 0x7fff_ffff + 10, size: 600 }));
        assert_eq!(claims(&[]), Some(Claims::default()));
    }

    #[test]
    fn what_is_no_page_is_none() {
        let good = page(&[20]);
        assert!((1..good.len()).all(|len| claims(&good[..len]).is_none()));
        assert_eq!(claims(&page(&[1])), None, "minus one values");
        assert_eq!(claims(&[0x1c; 64]), None, "structs without end");
        assert_eq!(claims(&[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), None);
    }
}
