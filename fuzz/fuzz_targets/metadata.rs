//! Any bytes as `.metadata`: what is accepted survives being written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::tensor::check_tiling;
use longshore_ckpt::torch_dist::metadata::{parse, write};

fuzz_target!(|bytes: &[u8]| {
    let Ok(table) = parse(bytes) else { return };
    for tensor in table.tensors.values() {
        assert!(tensor.chunks.iter().all(|c| c.rect.fits(&tensor.shape)));
        assert!(tensor.chunks.iter().all(|c| (c.stored.path as usize) < table.paths.len()));
        let _ = check_tiling(&tensor.shape, &tensor.chunks.iter().map(|c| &c.rect).collect::<Vec<_>>());
    }
    let written = write(&table);
    let mut again = parse(&written).expect("what was written is a table");
    // Rows that belong to nothing are not written; paths are numbered anew.
    assert_eq!(again.tensors.len(), table.tensors.len());
    assert_eq!(again.objects.len(), table.objects.len());
    for (name, tensor) in &table.tensors {
        let other = &again.tensors[name];
        assert_eq!((tensor.dtype, &tensor.shape, tensor.chunks.len()), (other.dtype, &other.shape, other.chunks.len()));
        for (a, b) in tensor.chunks.iter().zip(&other.chunks) {
            assert_eq!(
                (&a.rect, &table.paths[a.stored.path as usize]),
                (&b.rect, &again.paths[b.stored.path as usize])
            );
            assert_eq!((a.stored.offset, a.stored.length), (b.stored.offset, b.stored.length));
        }
    }
    for (name, a) in &table.objects {
        let b = again.objects[name];
        assert_eq!(table.paths[a.path as usize], again.paths[b.path as usize]);
        assert_eq!((a.offset, a.length), (b.offset, b.length));
    }
    assert_eq!(write(&again), write(&parse(&write(&again)).expect("a table")));
    again.paths.clear();
});
