//! Zip archives that lie: an item of a `.distcp` file with one field changed.

use crate::corpus::Corpus;
use longshore_ckpt::torch_dist::item::{Frame, object_item};
use longshore_ckpt::torch_dist::metadata::{Metadata, write};
use longshore_ckpt::{Dtype, Rect};
use std::fs;
use std::path::PathBuf;

const END: &[u8] = b"PK\x05\x06";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
const DESCRIPTOR: &[u8] = b"PK\x07\x08";

/// A sound item: `w`, float32 `[2, 3]`.
fn sound() -> Vec<u8> {
    let frame = Frame::tensor(Dtype::Float32, &[2, 3]);
    // The payload is not read by what is tested here, and CRC 0 stands for "not computed".
    [frame.head.clone(), vec![0; 24], frame.tail(0)].concat()
}

/// A checkpoint whose only item is `item`, for the tensor `w`.
pub(crate) fn item_entry(corpus: &mut Corpus, name: &str, item: &[u8]) -> PathBuf {
    let mut table = Metadata::default();
    let path = table.add_path("__0_0.distcp");
    let whole = Rect { offsets: vec![0, 0], sizes: vec![2, 3] };
    table.add_chunk("w", Dtype::Float32, &[2, 3], whole, path, 0, item.len() as u64);
    let folder = corpus.table(name, &write(&table));
    fs::write(folder.join("__0_0.distcp"), item).unwrap();
    // The same archive where the common state is expected.
    fs::write(folder.join("common.pt"), object_item(b"\x80\x02}.")).unwrap();
    folder
}

/// Where the `n`-th structure with this signature begins.
fn at(item: &[u8], signature: &[u8], n: usize) -> usize {
    item.windows(4).enumerate().filter(|w| w.1 == signature).nth(n).unwrap().0
}

fn put(item: &mut [u8], place: usize, bytes: &[u8]) {
    item[place..place + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn make(corpus: &mut Corpus) {
    let mut add = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut item = sound();
        change(&mut item);
        item_entry(corpus, &format!("zip/{name}"), &item);
    };
    let field = |signature: &'static [u8], n: usize, offset: usize, bytes: &'static [u8]| {
        move |item: &mut Vec<u8>| {
            let place = at(item, signature, n) + offset;
            put(item, place, bytes);
        }
    };
    add("sound", &|_| ());
    add("one-byte", &|item| item.truncate(1));
    add("cut-in-half", &|item| item.truncate(item.len() / 2));
    add("zeros", &|item| item.fill(0));
    add("only-an-end", &|item| *item = [END, &[0; 18]].concat());
    add("byte-after-the-end", &|item| item.push(0));
    // The end record: disks, counts, size and offset of the directory, comment.
    add("end-on-disk-1", &field(END, 0, 4, &[1, 0]));
    add("end-counts-differ", &field(END, 0, 8, &[3, 0]));
    add("end-counts-one-less", &field(END, 0, 8, &[3, 0, 3, 0]));
    add("end-counts-one-more", &field(END, 0, 8, &[5, 0, 5, 0]));
    add("end-counts-65535", &field(END, 0, 8, &[0xff; 4]));
    add("end-directory-size-0", &field(END, 0, 12, &[0; 4]));
    add("end-directory-size-4-gib", &field(END, 0, 12, &[0xfe, 0xff, 0xff, 0xff]));
    add("end-directory-offset-0", &field(END, 0, 16, &[0; 4]));
    add("end-directory-offset-4-gib", &field(END, 0, 16, &[0xfe, 0xff, 0xff, 0xff]));
    add("end-saturated-without-zip64", &field(END, 0, 12, &[0xff; 8]));
    add("end-comment", &field(END, 0, 20, &[1, 0]));
    // The directory: method, flags, CRC, sizes, name, disk, offset of the header.
    add("directory-deflated", &field(CENTRAL, 0, 10, &[8, 0]));
    add("directory-encrypted", &field(CENTRAL, 0, 8, &[1, 8]));
    add("directory-other-crc", &field(CENTRAL, 0, 16, &[1, 2, 3, 4]));
    add("directory-sizes-differ", &field(CENTRAL, 2, 24, &[25, 0, 0, 0]));
    add("directory-size-4-gib", &field(CENTRAL, 2, 20, &[0xfe, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff]));
    add("directory-saturated-without-zip64", &field(CENTRAL, 2, 20, &[0xff; 8]));
    add("directory-name-65535-long", &field(CENTRAL, 0, 28, &[0xff, 0xff]));
    add("directory-extra-65535-long", &field(CENTRAL, 0, 30, &[0xff, 0xff]));
    add("directory-disk-1", &field(CENTRAL, 0, 34, &[1, 0]));
    add("directory-name-not-utf8", &field(CENTRAL, 0, 46, &[0xff]));
    add("directory-header-past-the-end", &field(CENTRAL, 0, 42, &[0xfe, 0xff, 0xff, 0xff]));
    add("directory-header-of-the-next", &|item| {
        let place = at(item, CENTRAL, 1) + 42;
        let next: [u8; 4] = item[place..place + 4].try_into().unwrap();
        let first = at(item, CENTRAL, 0) + 42;
        put(item, first, &next);
    });
    // The local headers: name, sizes, lengths.
    add("header-other-name", &field(LOCAL, 0, 30, b"X"));
    add("header-other-size", &field(LOCAL, 0, 18, &[1, 0, 0, 0, 1, 0, 0, 0]));
    add("header-extra-65535-long", &field(LOCAL, 2, 28, &[0xff, 0xff]));
    add("header-deflated", &field(LOCAL, 2, 8, &[8, 0]));
    add("header-without-descriptor", &field(LOCAL, 2, 6, &[0, 8]));
    add("header-no-signature", &field(LOCAL, 0, 0, b"XX"));
    add("descriptor-other-crc", &field(DESCRIPTOR, 0, 4, &[1, 2, 3, 4]));
    add("descriptor-other-size", &field(DESCRIPTOR, 0, 8, &[1, 0, 0, 0]));
    add("no-record-of-the-storage", &|item| {
        let text = item.clone();
        let found: Vec<usize> = text.windows(13).enumerate().filter(|w| w.1 == b"archive/data/").map(|w| w.0).collect();
        assert_eq!(found.len(), 2);
        for place in found {
            put(item, place, b"archive/data.");
        }
    });
    zip64(corpus);
    tensors(corpus);
}

fn zip64(corpus: &mut Corpus) {
    let mut add = |name: &str, end64: &[u8], locator: &[u8], saturate: bool| {
        let mut item = sound();
        let end = at(&item, END, 0);
        let mut tail = item.split_off(end);
        if saturate {
            put(&mut tail, 8, &[0xff; 12]);
        }
        item_entry(corpus, &format!("zip64/{name}"), &[&item, end64, locator, &tail].concat());
    };
    let item = sound();
    let end = at(&item, END, 0) as u64;
    let start = at(&item, CENTRAL, 0) as u64;
    let record = |count: u64, size: u64, offset: u64| {
        [
            b"PK\x06\x06".as_slice(),
            &44u64.to_le_bytes(),
            &[45, 0, 45, 0],
            &[0; 8],
            &count.to_le_bytes(),
            &count.to_le_bytes(),
            &size.to_le_bytes(),
            &offset.to_le_bytes(),
        ]
        .concat()
    };
    let locator = |at: u64| [b"PK\x06\x07".as_slice(), &[0; 4], &at.to_le_bytes(), &[1, 0, 0, 0]].concat();
    add("sound", &record(4, end - start, start), &locator(end), true);
    add("locator-elsewhere", &record(4, end - start, start), &locator(0), true);
    add("locator-2-to-64", &record(4, end - start, start), &locator(u64::MAX), true);
    add("count-2-to-64", &record(u64::MAX, end - start, start), &locator(end), true);
    add("size-2-to-64", &record(4, u64::MAX, start), &locator(end), true);
    add("offset-2-to-64", &record(4, end - start, u64::MAX), &locator(end), true);
    add("differs", &record(3, end - start, start), &locator(end), false);
    add("no-record", &[0; 56], &locator(end), true);
}

/// Items whose pickle lies about the tensor.
fn tensors(corpus: &mut Corpus) {
    let call = |function: &str, storage: &str, offset: &str, sizes: &str, strides: &str| {
        let class = "ctorch\nFloatStorage\n";
        format!("c{function}\n(({storage}{class}V0\nVcpu\nI6\ntQI{offset}\n({sizes}t({strides}tI00\nNtR.").into_bytes()
    };
    let v2 = "torch._utils\n_rebuild_tensor_v2";
    let mut add = |name: &str, pickle: &[u8]| {
        item_entry(corpus, &format!("tensor/{name}"), &item_with(pickle));
    };
    add("sound", &call(v2, "Vstorage\n", "0", "I2\nI3\n", "I3\nI1\n"));
    add("payload", b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85R.");
    add(
        "payload-as-storage",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85RK\x00NNNNtR.",
    );
    add("payload-as-hooks", &[
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89".as_slice(),
        b"cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85RtR.",
    ].concat());
    add("not-a-storage", &call(v2, "Vother\n", "0", "I2\nI3\n", "I3\nI1\n"));
    add("transposed", &call(v2, "Vstorage\n", "0", "I2\nI3\n", "I1\nI2\n"));
    add("expanded", &call(v2, "Vstorage\n", "0", "I2\nI3\n", "I0\nI1\n"));
    add("offset-past-the-end", &call(v2, "Vstorage\n", "1", "I2\nI3\n", "I3\nI1\n"));
    add("offset-2-to-63", &call(v2, "Vstorage\n", "9223372036854775807", "I2\nI3\n", "I3\nI1\n"));
    add("offset-negative", &call(v2, "Vstorage\n", "-1", "I2\nI3\n", "I3\nI1\n"));
    add("sizes-negative", &call(v2, "Vstorage\n", "0", "I-2\nI-3\n", "I3\nI1\n"));
    add("sizes-overflow", &call(v2, "Vstorage\n", "0", "I4294967296\nI4294967296\nI4\n", "I1\nI4\nI1\n"));
    add("other-shape", &call(v2, "Vstorage\n", "0", "I3\nI2\n", "I2\nI1\n"));
    add("sizes-are-themselves", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00]q\x00h\x00ah\x00NNtR.");
    let two = [("a/data.pkl", b"N.".as_slice()), ("a/data.pkl", b"N."), ("a/data/0", &[0; 24])];
    item_entry(corpus, "zip/two-records-of-one-name", &archive(&two));
    let mut add = |name: &str, pickle: &[u8]| {
        item_entry(corpus, &format!("tensor/{name}"), &item_with(pickle));
    };
    let wrapped = |n: usize| {
        let inner = call(v2, "Vstorage\n", "0", "I2\nI3\n", "I3\nI1\n");
        let open = "ctorch._utils\n_rebuild_parameter\n(".repeat(n);
        [open.as_bytes(), &inner[..inner.len() - 1], &b"I00\nNtR".repeat(n), b"."].concat()
    };
    add("parameter", &wrapped(1));
    add("parameter-100-deep", &wrapped(100));
}

/// An archive of torch with this `data.pkl` and 24 zero bytes of data.
fn item_with(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[0; 24])])
}

/// An archive of stored records.
fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in records {
        let crc = crc32(data);
        let sizes = [(data.len() as u32).to_le_bytes(); 2].concat();
        let name_len = (name.len() as u16).to_le_bytes();
        // Flags, method and time are 0, and so is the length of the extra field.
        let common = [[0; 8].as_slice(), &crc.to_le_bytes(), &sizes, &name_len, &[0; 2]].concat();
        let offset = (out.len() as u32).to_le_bytes();
        directory.extend([CENTRAL, &[20, 0, 20, 0], &common, &[0; 10], &offset, name.as_bytes()].concat());
        out.extend([LOCAL, &[20, 0], &common, name.as_bytes(), data].concat());
    }
    let (size, offset) = ((directory.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    let end = [END, &[0; 4], &[3, 0, 3, 0], &size, &offset, &[0; 2]].concat();
    [out, directory, end].concat()
}

/// CRC-32 (IEEE).
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (0u32.wrapping_sub(crc & 1)));
        }
    }
    !crc
}
