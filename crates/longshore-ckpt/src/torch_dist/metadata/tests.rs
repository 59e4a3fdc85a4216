use super::*;

fn table() -> Metadata {
    let mut out = Metadata::default();
    let (a, b) = (out.add_path("__0_0.distcp"), out.add_path("__0_1.distcp"));
    assert_eq!(out.add_path("__0_0.distcp"), a);
    let rect = |offsets: [u64; 2], sizes: [u64; 2]| Rect { offsets: offsets.to_vec(), sizes: sizes.to_vec() };
    out.add_object("w._extra_state/shard_0_1", a, 0, 300);
    out.add_chunk("w", Dtype::Bfloat16, &[4, 3], rect([0, 0], [2, 3]), a, 300, 1000);
    out.add_chunk("w", Dtype::Bfloat16, &[4, 3], rect([2, 0], [2, 3]), b, 0, 1000);
    out.add_chunk("scalar", Dtype::Float32, &[], Rect::whole(&[]), b, 1000, 1 << 40);
    out.add_chunk("empty", Dtype::Float8E4m3, &[0, 7], Rect::whole(&[0, 7]), b, (1 << 40) + 1000, 9);
    out
}

#[test]
fn what_is_written_is_read() {
    let mut want = table();
    let bytes = write(&want);
    let mut found = parse(&bytes).unwrap();
    // The order of the paths is that of their first use.
    for table in [&mut want, &mut found] {
        let names = table.paths.clone();
        table.paths.sort();
        let index = |at: &mut StoredAt| {
            at.path = table.paths.iter().position(|p| *p == names[at.path as usize]).unwrap() as u32;
        };
        table.tensors.values_mut().flat_map(|t| &mut t.chunks).map(|c| &mut c.stored).for_each(index);
        table.objects.values_mut().for_each(index);
    }
    assert_eq!(found, want);
    assert_eq!(write(&table()), bytes);
}

#[test]
fn classes_sizes_and_paths_are_written_once() {
    let bytes = write(&table());
    let count = |text: &str| bytes.windows(text.len()).filter(|w| *w == text.as_bytes()).count();
    let texts = [
        "metadata\nMetadata\n",
        "MetadataIndex",
        "_StorageInfo",
        "ctorch\nSize",
        "__0_0.distcp",
        "relative_path",
        "bfloat16",
    ];
    assert_eq!(texts.map(count), [1; 7], "{texts:?}");
}

/// A table of one tensor written by hand; each part can be replaced.
struct Parts {
    key: &'static [u8],
    properties: &'static [u8],
    size: &'static [u8],
    chunks: &'static [u8],
    index: &'static [u8],
    info: &'static [u8],
    more: &'static [u8],
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            key: b"U\x01w",
            properties: b"cm\nP\n)\x81(ctorch\nfloat32\nNtb",
            size: b"ctorch\nSize\nK\x04\x85\x85R",
            chunks: b"](cm\nC\n)\x81}(U\x07offsetsK\x00\x85U\x05sizesK\x04\x85ube",
            index: b"U\x03fqnU\x01wU\x06offsetK\x00\x85",
            info: b"U\x0drelative_pathU\x01fU\x06offsetK\x00U\x06lengthK\x09",
            more: b"",
        }
    }
}

impl Parts {
    fn parse(&self) -> Result<Metadata, String> {
        let bytes = [
            b"cm\nM\n)\x81}(U\x13state_dict_metadata}(",
            self.key,
            b"cm\nT\n)\x81}(U\x0aproperties",
            self.properties,
            b"U\x04size",
            self.size,
            b"U\x06chunks",
            self.chunks,
            b"ub",
            self.more,
            b"uU\x0cstorage_data}(cm\nI\n)\x81}(",
            self.index,
            b"ubcm\nS\n)\x81}(",
            self.info,
            b"ubuU\x0amcore_datacunknown\nThing\n)\x81}bub.",
        ];
        parse(&bytes.concat()).map_err(|e| e.what)
    }
}

#[test]
fn unknown_classes_and_attributes_are_ignored() {
    let found = Parts::default().parse().unwrap();
    assert_eq!(found.tensors["w"].chunks[0].stored, StoredAt { path: 0, offset: 0, length: 9 });
    assert_eq!(found.tensors["w"].shape, [4]);
}

#[test]
fn what_is_needed_is_checked() {
    let d = Parts::default;
    let cases: [(Parts, &str); 15] = [
        (Parts { key: b"K\x01", ..d() }, "a key is an integer, expected a string"),
        (Parts { properties: b"N", ..d() }, "`w`: its properties have no state"),
        (
            Parts { properties: b"cm\nP\n)\x81(ctorch\ncomplex64\ntb", ..d() },
            "`w`: its dtype `torch.complex64` is not supported",
        ),
        (Parts { size: b"(J\xff\xff\xff\xfft", ..d() }, "`w`: its size is not made of numbers from 0"),
        (Parts { size: b"(\x8a\x08\0\0\0\0\0\0\0\x40t", ..d() }, "`w`: the shape [4611686018427387904] overflows"),
        (Parts { size: b"(\x8a\x09\0\0\0\0\0\0\0\x80\x00t", ..d() }, "`w`: the shape [9223372036854775808] overflows"),
        (Parts { size: b"K\x03\x85", ..d() }, "`w`: the chunk at [0] of [4] lies outside [3]"),
        (Parts { size: b"K\x04K\x01\x86", ..d() }, "`w`: the chunk at [0] of [4] lies outside [4, 1]"),
        (Parts { chunks: b"](NNe", ..d() }, "`w`: it has 2 chunks, but 1 places in storage_data"),
        (Parts { chunks: b"](Ne", ..d() }, "`w`: a chunk has no offsets and sizes from 0"),
        (
            Parts { index: b"U\x03fqnU\x01wU\x06offsetK\x01\x85", ..d() },
            "`w`: the chunk at [0] has no place in storage_data",
        ),
        (Parts { index: b"U\x03fqnU\x01w", ..d() }, "`w`: its place in storage_data has no offset"),
        (
            Parts {
                info: b"U\x0drelative_pathU\x01fU\x06offset\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0U\x06lengthK\x09",
                ..d()
            },
            "`w`: 9 bytes at 18446744073709551615 overflow",
        ),
        (
            Parts {
                info: b"U\x0drelative_pathU\x01fU\x06offsetK\x00U\x06lengthK\x09U\x15transform_descriptors](Ne",
                ..d()
            },
            "`w`: stored through a transform, which is not supported",
        ),
        (Parts { more: b"U\x01xcm\nBytesStorageMetadata\n)\x81", ..d() }, "`x` has no place in storage_data"),
    ];
    for (parts, want) in cases {
        assert_eq!(parts.parse().unwrap_err(), want);
    }
}

#[test]
fn one_state_shared_by_many_rows_is_not_searched_without_bound() {
    // An attribute that is there, in a state with far too many others.
    let crowded =
        [&b"cm\nM\n)\x81}(U\x13state_dict_metadata}"[..], &b"NN".repeat(100), b"U\x0cstorage_data}ub."].concat();
    assert!(parse(&crowded).unwrap_err().what.contains("expected an object with state_dict_metadata"));
}

#[test]
fn truncation_and_damage_never_panic() {
    let bytes = write(&table());
    for cut in 0..bytes.len() {
        assert!(parse(&bytes[..cut]).is_err());
    }
    for at in 0..bytes.len() {
        for byte in (0..8).map(|bit| bytes[at] ^ (1 << bit)).chain(*b"N)]}(.\xff\x00") {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            let Ok(found) = parse(&damaged) else { continue };
            for entry in found.tensors.values() {
                assert!(entry.chunks.iter().all(|c| c.rect.fits(&entry.shape)));
            }
        }
    }
}
