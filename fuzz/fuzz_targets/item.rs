//! Any bytes as an item of a `.distcp` file, read through the function that reads files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::torch_dist::item::{locate, object_pickle};
use longshore_ckpt::torch_dist::zip::Archive;
use std::io;

fuzz_target!(|bytes: &[u8]| {
    let mut most = 0;
    let mut read = |offset: u64, buffer: &mut [u8]| {
        most = most.max(buffer.len());
        let range =
            usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let len = bytes.len() as u64;
    if let Ok(archive) = Archive::open(len, &mut read) {
        for pair in archive.records.windows(2) {
            assert!(pair[0].data_offset + pair[0].size <= pair[1].data_offset);
        }
        for record in &archive.records {
            assert!(record.data_offset + record.size <= len);
        }
    }
    if let Ok(found) = locate(len, &mut read) {
        assert!(found.payload_offset.checked_add(found.payload_len).is_some_and(|end| end <= len));
        let elements = found.sizes.iter().product::<u64>();
        assert_eq!(elements * found.dtype.size(), found.payload_len);
    }
    if let Ok(pickle) = object_pickle(len, 1 << 20, &mut read) {
        let _ = pickle.root().to_text();
    }
    assert!(most <= bytes.len());
});
