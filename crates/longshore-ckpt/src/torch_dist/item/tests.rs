use super::*;

/// A whole item around `payload`.
fn item(dtype: Dtype, sizes: &[u64], payload: &[u8]) -> Vec<u8> {
    let frame = Frame::tensor(dtype, sizes);
    assert_eq!(frame.payload_len, payload.len() as u64);
    let out = [&frame.head[..], payload, &frame.tail(crc32fast::hash(payload))].concat();
    assert_eq!(out.len() as u64, frame.item_len());
    out
}

fn locate_in(bytes: &[u8]) -> Result<Located, LocateError> {
    locate(bytes.len() as u64, &mut |at, buffer| {
        buffer.copy_from_slice(&bytes[at as usize..][..buffer.len()]);
        Ok(())
    })
}

fn object_in(bytes: &[u8]) -> Result<Pickle, LocateError> {
    object_pickle(bytes.len() as u64, 1 << 20, &mut |at, buffer| {
        buffer.copy_from_slice(&bytes[at as usize..][..buffer.len()]);
        Ok(())
    })
}

/// An archive of any records with their CRC, the way an object is written.
fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut entries) = (Vec::new(), Vec::new());
    for (name, data) in records {
        small_record(&mut out, &mut entries, name, data);
    }
    zip::finish(&mut out, 0, &entries, 0);
    out
}

/// An item whose data.pkl is `pickle` and whose storage `0` has these bytes.
fn with_pickle(pickle: &[u8], data: &[u8]) -> Vec<u8> {
    archive(&[("archive/data.pkl", pickle), ("archive/data/0", data), ("archive/version", b"3\n")])
}

/// The pickle of `_rebuild_tensor_v2` over four floats.
fn view_pickle(first: u64, sizes: &[u64], strides: &[u64]) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    w.str("storage");
    w.global("torch", "FloatStorage");
    w.str("0");
    w.str("cpu");
    w.uint(4);
    w.raw(b"tQ");
    w.uint(first);
    for dims in [sizes, strides] {
        w.mark();
        for &n in dims {
            w.uint(n);
        }
        w.tuple();
    }
    w.raw(b"\x89}tR");
    w.finish()
}

#[test]
fn what_is_framed_is_located() {
    let shapes: [(Dtype, &[u64]); 7] = [
        (Dtype::Bfloat16, &[2, 3]),
        (Dtype::Float32, &[]),
        (Dtype::Float64, &[0, 5]),
        (Dtype::Int64, &[70_000]),
        (Dtype::Bool, &[1, 1, 2]),
        (Dtype::Float8E4m3, &[2, 3, 4]),
        (Dtype::Uint16, &[3, 0]),
    ];
    for (dtype, sizes) in shapes {
        let len = element_count(sizes).unwrap() * dtype.size();
        let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        let found = locate_in(&item(dtype, sizes, &payload)).unwrap();
        let head = Frame::tensor(dtype, sizes).head.len() as u64;
        assert_eq!(found.payload_offset, head);
        assert_eq!(head % ALIGNMENT, 0);
        assert_eq!((found.dtype, &found.sizes[..], found.payload_len), (dtype, sizes, len));
        assert_eq!(found.crc32, (len > 0).then(|| crc32fast::hash(&payload)));
    }
}

#[test]
fn lengths_do_not_depend_on_the_checksum() {
    for sizes in [&[3u64, 5][..], &[1 << 31, 4], &[(1 << 31) - 1, 2]] {
        let frame = Frame::tensor(Dtype::Bool, sizes);
        assert_eq!(frame.tail(0).len() as u64, frame.tail_len());
        assert_eq!(frame.tail(u32::MAX).len() as u64, frame.tail_len());
    }
}

#[test]
fn payloads_of_every_size_around_4_gib_are_located_by_two_small_reads() {
    for len in [(1 << 32) - 1000, (1 << 32) - 400, u64::from(u32::MAX) - 1, u64::from(u32::MAX), 1 << 32, 1 << 40] {
        let frame = Frame::tensor(Dtype::Uint8, &[len]);
        let tail = frame.tail(7);
        let tail_at = frame.head.len() as u64 + len;
        let mut reads = 0;
        let found = locate(frame.item_len(), &mut |at, buffer| {
            reads += 1;
            assert!(buffer.len() <= 4096);
            for (i, byte) in buffer.iter_mut().enumerate() {
                let at = at + i as u64;
                *byte = if at < frame.head.len() as u64 {
                    frame.head[at as usize]
                } else {
                    at.checked_sub(tail_at).map_or(0xee, |at| tail[at as usize])
                };
            }
            Ok(())
        });
        let found = found.unwrap();
        assert_eq!((found.payload_offset, found.payload_len), (frame.head.len() as u64, len));
        assert_eq!((found.crc32, reads), (Some(7), 2));
    }
}

#[test]
fn part_of_a_storage_is_located_without_a_checksum() {
    let data = [1u8; 16];
    let found = locate_in(&with_pickle(&view_pickle(1, &[1, 3], &[99, 1]), &data)).unwrap();
    assert_eq!((found.payload_len, &found.sizes[..], found.crc32), (12, &[1u64, 3][..], None));
    let whole = locate_in(&with_pickle(&view_pickle(0, &[1, 4], &[99, 1]), &data)).unwrap();
    assert_eq!(whole.payload_offset + 4, found.payload_offset);
    assert!(whole.crc32.is_some());
}

#[test]
fn views_that_are_not_contiguous_or_too_long_are_refused() {
    let data = [1u8; 16];
    let refused = |pickle: &[u8]| locate_in(&with_pickle(pickle, &data)).unwrap_err().to_string();
    assert!(refused(&view_pickle(0, &[2, 2], &[1, 2])).contains("strides [1, 2] is not supported"));
    assert!(refused(&view_pickle(1, &[4], &[1])).contains("expected 20 bytes in `data/0`, found 16"));
    assert!(refused(&view_pickle(0, &[1 << 62, 4], &[4, 1])).contains("overflows"));
    assert!(refused(&view_pickle(u64::MAX, &[4], &[1])).contains("overflows"));
    assert!(refused(&view_pickle(0, &[4], &[1, 1])).contains("1 sizes and 2 strides"));
    assert!(refused(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.").contains("`os.system` is not supported"));
    assert!(refused(b"\x80\x02N.").contains("an item that is None is not supported"));
    let other = archive(&[("archive/data.pkl", &view_pickle(0, &[4], &[1])), ("archive/data/1", &data)]);
    assert!(locate_in(&other).unwrap_err().to_string().contains("`data/0` is missing"));
}

#[test]
fn a_parameter_is_its_tensor() {
    let inner = view_pickle(0, &[2, 2], &[2, 1]);
    let inner = &inner[2..inner.len() - 1];
    let wrapped = [&b"\x80\x02ctorch._utils\n_rebuild_parameter\n("[..], inner, b"\x88}tR."].concat();
    assert_eq!(locate_in(&with_pickle(&wrapped, &[1; 16])).unwrap().sizes, [2, 2]);
    // A parameter of itself.
    let cyclic = b"\x80\x02]q\x000ctorch._utils\n_rebuild_parameter\n(h\x00\x88}tR.";
    assert!(locate_in(&with_pickle(cyclic, &[1; 16])).is_err());
}

#[test]
fn big_endian_is_refused_and_no_byte_order_means_little() {
    let pickle = view_pickle(0, &[4], &[1]);
    let of = |order| archive(&[("a/data.pkl", &pickle), ("a/byteorder", order), ("a/data/0", &[0; 16])]);
    assert!(locate_in(&of(b"big")).unwrap_err().to_string().contains("byte order `big` is not supported"));
    locate_in(&of(b"little")).unwrap();
    locate_in(&with_pickle(&pickle, &[0; 16])).unwrap();
}

#[test]
fn the_empty_extra_state_is_a_list_of_none() {
    assert_eq!(object_in(&empty_extra_state()).unwrap().root().to_text(), "[None]");
    assert!(locate_in(&empty_extra_state()).is_err());
}

#[test]
fn names_are_unique_and_end_records_alone() {
    let double = archive(&[("a/data.pkl", b"N."), ("a/data.pkl", b"N.")]);
    assert!(object_in(&double).unwrap_err().to_string().contains("two records are called `a/data.pkl`"));
    let mut trailing = empty_extra_state();
    trailing.push(0);
    assert!(object_in(&trailing).unwrap_err().to_string().contains("end record at the end"));
    assert!(object_in(&archive(&[])).unwrap_err().to_string().contains("`data.pkl` is missing"));
}

#[test]
fn damage_never_panics_and_never_leaves_the_item() {
    let small = item(Dtype::Float32, &[2, 2], &[7; 16]);
    for cut in 0..small.len() {
        assert!(locate_in(&small[..cut]).is_err());
        assert!(object_in(&empty_extra_state()[..cut.min(empty_extra_state().len() - 1)]).is_err());
    }
    let objects = empty_extra_state();
    for at in 0..small.len() {
        for byte in
            [0, 1, 2, 8, 0x2a, 0x50, 0x7f, 0x80, 0xfe, 0xff].into_iter().chain((0..8).map(|b| small[at] ^ (1 << b)))
        {
            let mut damaged = small.clone();
            damaged[at] = byte;
            if let Ok(found) = locate_in(&damaged) {
                assert!(found.payload_offset + found.payload_len <= small.len() as u64);
            }
            if let Some(slot) = objects.get(at) {
                let mut damaged = objects.clone();
                damaged[at] = byte ^ slot;
                let _ = object_in(&damaged);
            }
        }
    }
}

#[test]
fn lies_about_offsets_and_sizes_are_refused() {
    let good = item(Dtype::Float32, &[2, 2], &[7; 16]);
    let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let end = good.len() - 22;
    let change = |at: usize, bytes: &[u8]| {
        let mut out = good.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        locate_in(&out).unwrap_err().to_string()
    };
    // Compressed, encrypted, sizes, header offset of the first record; then the end record's fields.
    assert!(change(directory + 10, &[8]).contains("compressed with method 8"));
    assert!(change(directory + 8, &[1]).contains("encrypted"));
    assert!(change(directory + 20, &[9]).contains("its two sizes"));
    assert!(change(directory + 20, &[9, 0, 0, 0, 9]).contains("differs from the directory"));
    assert!(change(directory + 20, &[0xff, 0xff, 0, 0, 0xff, 0xff]).contains("overlap what follows"));
    assert!(change(directory + 20, &[0xff; 4]).contains("a zip structure ends early"));
    assert!(change(directory + 42, &[1]).contains("expected the header of a record"));
    assert!(change(directory + 42, &[0xff, 0xff, 0xff, 0x7f]).contains("overlaps what follows"));
    assert!(change(directory + 16, &[1]).contains("differs from the directory"));
    assert!(change(directory + 46, b"x").contains("another name"));
    assert!(change(directory + 46, b"\xff").contains("not UTF-8"));
    assert!(change(end + 8, &[3, 0, 3, 0]).contains("bytes follow the 3 records"));
    assert!(change(end + 8, &[5, 0, 5, 0]).contains("a zip structure ends early"));
    assert!(change(end + 16, &[0]).contains("expected the end of the directory"));
    assert!(change(end + 20, &[1]).contains("comment"));
    assert!(change(end + 16, &[0xff; 4]).contains("zip64 end record is missing"));
}
