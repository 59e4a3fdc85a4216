//! Any bytes as a safetensors file: what is accepted, the `safetensors` crate accepts with the same tensors, and the
//! other way round but for the refusals that `longshore_ckpt::safetensors` lists.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::safetensors::{header_len, parse_header};
use safetensors::SafeTensors;

fuzz_target!(|bytes: &[u8]| {
    let ours = bytes.first_chunk::<8>().and_then(|prefix| {
        let len = header_len(*prefix, bytes.len() as u64).ok()? as usize;
        parse_header(&bytes[8..8 + len], bytes.len() as u64).ok()
    });
    let theirs = SafeTensors::deserialize(bytes);
    let Some(ours) = ours else {
        if let Ok(theirs) = theirs {
            assert!(refused_on_purpose(bytes, &theirs), "refused, but the crate accepts it");
        }
        return;
    };
    let theirs = theirs.expect("accepted, but the crate refuses it");
    assert_eq!(ours.tensors.len(), theirs.len());
    for tensor in &ours.tensors {
        let view = theirs.tensor(&tensor.name).expect("the crate knows the tensor");
        let shape: Vec<u64> = view.shape().iter().map(|&n| n as u64).collect();
        assert_eq!((tensor.dtype.safetensors_name(), &tensor.shape), (view.dtype().to_string().as_str(), &shape));
        let data = &bytes[ours.data_start as usize..][tensor.begin as usize..tensor.end as usize];
        assert!(std::ptr::eq(data.as_ptr(), view.data().as_ptr()) || data.is_empty());
        assert_eq!(data, view.data());
    }
});

/// Whether the file has one of the four properties that are refused on purpose.
fn refused_on_purpose(bytes: &[u8], theirs: &SafeTensors<'_>) -> bool {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header = &bytes[8..8 + len];
    let known = [
        "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3",
        "F8_E5M2", "F8_E8M0",
    ];
    let other_dtype = theirs.iter().any(|(_, view)| !known.contains(&view.dtype().to_string().as_str()));
    // A dtype as an object, or a name that occurs twice: as text, every object of the file has one `"dtype"` with a
    // string, and the crate keeps as many tensors as there are.
    let text = String::from_utf8_lossy(header);
    let squeezed: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let plain = squeezed.matches("\"dtype\":\"").count();
    header.first() != Some(&b'{')
        || other_dtype
        || plain != theirs.len()
        || squeezed.matches("\"__metadata__\"").count() > 0
        || squeezed.contains('\\')
}
