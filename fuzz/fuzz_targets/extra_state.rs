//! Any bytes as the item of an `_extra_state` object: an archive in which there may be another.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::torch_dist::extra_state::{ExtraState, read};
use std::io;

fuzz_target!(|bytes: &[u8]| {
    let mut most = 0;
    let mut read_at = |offset: u64, buffer: &mut [u8]| {
        most = most.max(buffer.len());
        let range =
            usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    match read(bytes.len() as u64, &mut read_at) {
        Ok(ExtraState::Pickled(pickle)) => {
            let _ = pickle.root().get("modelopt_quantizer_state").map(|state| state.to_text());
        }
        Ok(ExtraState::Unknown(what)) => assert!(!what.is_empty()),
        Ok(ExtraState::Empty) => {}
        // All reads of these bytes succeed inside them, and none may leave them.
        Err(longshore_ckpt::torch_dist::item::LocateError::Io(error)) => panic!("a read outside of the item: {error}"),
        Err(_) => {}
    }
    assert!(most <= bytes.len());
});
