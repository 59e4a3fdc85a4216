//! Any bytes as `longshore.json`: what is accepted survives being written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_convert::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    assert_eq!(Manifest::parse(&manifest.to_json()), Ok(manifest));
});
