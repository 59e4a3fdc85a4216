//! Checkpoints that Megatron wrote, and folders that are damaged.

use super::pickle::View;
use super::*;
use crate::tensor::Rect;
use serde_json::Value;
use std::path::PathBuf;

/// The golden checkpoints, or `None` with a line on the console where they are not present.
fn goldens() -> Option<Vec<PathBuf>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("LONGSHORE_DATA").map_or(beside, PathBuf::from);
    let Ok(folder) = std::fs::read_dir(shared.join("golden/torch_dist")) else {
        eprintln!("skipped: shared data not present");
        return None;
    };
    let mut out: Vec<_> = folder.map(|entry| entry.unwrap().path()).filter(|p| p.is_dir()).collect();
    out.sort();
    assert!(!out.is_empty());
    Some(out)
}

fn dims(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

#[test]
fn keys_shapes_types_and_chunks_are_megatrons() {
    for golden in goldens().unwrap_or_default() {
        let catalog = open(&golden).unwrap();
        let Ok(keys) = std::fs::read(golden.join("keys.json")) else { continue };
        let keys: BTreeMap<String, Value> = serde_json::from_slice(&keys).unwrap();
        let found: Vec<&String> = catalog.tensors.keys().chain(catalog.objects.keys()).collect();
        assert_eq!(found.len(), keys.len(), "{}", golden.display());
        for (key, want) in keys {
            if want["object"] == Value::Bool(true) {
                assert!(catalog.objects.contains_key(&key), "{key}");
                continue;
            }
            let info = &catalog.tensors[&key];
            assert_eq!(info.dtype.torch_name(), want["dtype"].as_str().unwrap());
            assert_eq!(info.shape, dims(&want["shape"]), "{key}");
            let mut found: Vec<_> =
                info.chunks.iter().map(|c| (c.rect.offsets.clone(), c.rect.sizes.clone())).collect();
            let chunks = want["chunks"].as_array().unwrap().iter();
            let mut want: Vec<_> = chunks.map(|c| (dims(&c[0]), dims(&c[1]))).collect();
            found.sort();
            want.sort();
            assert_eq!(found, want, "{key}");
            assert_eq!(info.check(), Ok(()), "{key}");
        }
    }
}

#[test]
fn every_chunk_is_located_and_its_checksum_holds() {
    for golden in goldens().unwrap_or_default() {
        let catalog = open(&golden).unwrap();
        for (key, info) in &catalog.tensors {
            for chunk in &info.chunks {
                let file = ReadFile::open(&catalog.path(chunk.extent.file)).unwrap();
                let (extent, crc32) = locate_payload(&file, info, chunk).unwrap();
                assert_eq!(extent.len, chunk.rect.len() * info.dtype.size(), "{key}");
                let mut payload = vec![0; extent.len as usize];
                file.read_exact_at(extent.offset, &mut payload).unwrap();
                assert_eq!(crc32, Some(crc32fast::hash(&payload)), "{key}");
            }
        }
        for (key, extent) in &catalog.objects {
            let file = ReadFile::open(&catalog.path(extent.file)).unwrap();
            let pickle = object_pickle(&file, *extent).unwrap();
            assert_eq!(pickle.root().items().unwrap().len(), 1, "{key}");
        }
    }
}

#[test]
fn the_common_state_is_a_dict_wherever_it_lies() {
    for golden in goldens().unwrap_or_default() {
        let common = open(&golden).unwrap().common.unwrap();
        let args = common.root().get("args").unwrap();
        assert_eq!(args.class().as_deref(), Some("argparse.Namespace"), "{}", golden.display());
        assert!(args.attr("num_layers").and_then(View::as_u64).is_some());
    }
}

#[test]
fn tables_of_megatron_survive_writing() {
    for golden in goldens().unwrap_or_default() {
        let bytes = std::fs::read(inner_folder(&golden).unwrap().join(TABLE)).unwrap();
        let want = metadata::parse(&bytes).unwrap();
        let found = metadata::parse(&metadata::write(&want)).unwrap();
        let place = |table: &Metadata, at: StoredAt| (table.paths[at.path as usize].clone(), at.offset, at.length);
        for (key, entry) in &want.tensors {
            let other = &found.tensors[key];
            assert_eq!((entry.dtype, &entry.shape), (other.dtype, &other.shape));
            for (a, b) in entry.chunks.iter().zip(&other.chunks) {
                assert_eq!((&a.rect, place(&want, a.stored)), (&b.rect, place(&found, b.stored)));
            }
        }
        for (key, at) in &want.objects {
            assert_eq!(place(&want, *at), place(&found, found.objects[key]));
        }
        assert_eq!((want.tensors.len(), want.objects.len()), (found.tensors.len(), found.objects.len()));
    }
}

#[test]
fn a_table_cut_or_damaged_anywhere_is_refused_or_read() {
    let Some(goldens) = goldens() else { return };
    let tables = goldens.iter().map(|g| std::fs::read(inner_folder(g).unwrap().join(TABLE)).unwrap());
    let bytes = tables.min_by_key(Vec::len).unwrap();
    for cut in 0..bytes.len() {
        assert!(metadata::parse(&bytes[..cut]).is_err());
    }
    let mut damaged = bytes.clone();
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        damaged[at] ^= bit;
        let _ = metadata::parse(&damaged);
        damaged[at] ^= bit;
    }
}

/// A checkpoint of one tensor `w` [2, 2] and one object in a folder of its own.
fn checkpoint(path: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("iter_0000012");
    std::fs::create_dir(&inner).unwrap();
    let frame = item::Frame::tensor(Dtype::Float32, &[2, 2]);
    let state = item::empty_extra_state();
    let payload = [0u8; 16];
    let data = [&state[..], &frame.head, &payload, &frame.tail(crc32fast::hash(&payload))].concat();
    let mut table = Metadata::default();
    let file = table.add_path(path);
    table.add_object("w._extra_state/shard_0_1", file, 0, state.len() as u64);
    table.add_chunk("w", Dtype::Float32, &[2, 2], Rect::whole(&[2, 2]), file, state.len() as u64, frame.item_len());
    std::fs::write(folder.path().join(TRACKER), "12\n").unwrap();
    std::fs::write(inner.join(MARKER), metadata_json()).unwrap();
    std::fs::write(inner.join(TABLE), metadata::write(&table)).unwrap();
    if is_plain(path) {
        std::fs::write(inner.join(path), data).unwrap();
    }
    folder
}

#[test]
fn root_and_inner_folder_open_alike() {
    let folder = checkpoint("__0_0.distcp");
    let root = open(folder.path()).unwrap();
    let inner = open(&folder.path().join("iter_0000012")).unwrap();
    assert_eq!(root.folder, inner.folder);
    assert_eq!(root.tensors, inner.tensors);
    assert_eq!(root.files.len(), 1);
    assert!(root.common.is_none());
    let info = &root.tensors["w"];
    let file = ReadFile::open(&root.path(0)).unwrap();
    let (extent, crc32) = locate_payload(&file, info, &info.chunks[0]).unwrap();
    assert_eq!((extent.len, crc32), (16, Some(crc32fast::hash(&[0; 16]))));
}

#[test]
fn an_item_of_another_type_or_shape_is_refused() {
    let folder = checkpoint("__0_0.distcp");
    let catalog = open(folder.path()).unwrap();
    let file = ReadFile::open(&catalog.path(0)).unwrap();
    let mut info = catalog.tensors["w"].clone();
    let chunk = info.chunks[0].clone();
    info.dtype = Dtype::Bfloat16;
    let error = locate_payload(&file, &info, &chunk).unwrap_err().to_string();
    assert!(error.ends_with("expected bfloat16 [2, 2], found float32 [2, 2]"), "{error}");
}

#[test]
fn paths_that_lead_out_of_the_folder_are_refused() {
    for path in ["../x", "/etc/passwd", "a/../b", "", ".", "a//b", "a\\b", "x\0"] {
        let error = open(checkpoint(path).path()).unwrap_err().to_string();
        assert!(error.contains("is not a plain name inside the folder"), "{path:?}: {error}");
    }
}

#[test]
fn every_missing_or_short_file_is_reported() {
    let folder = checkpoint("b.distcp");
    let inner = folder.path().join("iter_0000012");
    let mut table = metadata::parse(&std::fs::read(inner.join(TABLE)).unwrap()).unwrap();
    let path = table.add_path("a.distcp");
    table.add_object("x/shard_0_1", path, 0, 9);
    std::fs::write(inner.join(TABLE), metadata::write(&table)).unwrap();
    std::fs::write(inner.join("b.distcp"), "12345").unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`a.distcp` is missing, `b.distcp` has 5 of at least"), "{error}");
}

#[test]
fn trackers_name_release_or_an_iteration() {
    let folder = checkpoint("__0_0.distcp");
    let with = |text: &str| {
        std::fs::write(folder.path().join(TRACKER), text).unwrap();
        inner_folder(folder.path()).map(|p| p.file_name().unwrap().to_owned()).map_err(|e| e.to_string())
    };
    assert_eq!(with(" 12\n").unwrap(), "iter_0000012");
    assert!(with("release").unwrap_err().contains("although"));
    for text in ["", "../x", "-1", "1.0", "RELEASE", "99999999999999999999999", "release\0"] {
        assert!(with(text).unwrap_err().contains("expected `release` or an iteration"), "{text:?}");
    }
}

#[test]
fn without_a_tracker_the_only_checkpoint_of_a_root_is_opened() {
    let folder = checkpoint("__0_0.distcp");
    let (root, inner) = (folder.path(), folder.path().join("iter_0000012"));
    std::fs::remove_file(root.join(TRACKER)).unwrap();
    std::fs::create_dir(root.join("iter_0000007")).unwrap();
    assert_eq!(inner_folder(root).unwrap(), inner);
    std::fs::create_dir(root.join("release")).unwrap();
    std::fs::write(root.join("release").join(MARKER), metadata_json()).unwrap();
    let error = inner_folder(root).unwrap_err().to_string();
    assert!(error.ends_with("to choose one of `iter_0000012`, `release`; name one of these folders"), "{error}");
    std::fs::remove_dir_all(root.join("release")).unwrap();
    std::fs::remove_dir_all(&inner).unwrap();
    assert!(matches!(inner_folder(root), Err(Error::NotFound { .. })));
}

#[test]
fn the_weights_of_nemo_are_found_in_their_folder() {
    for name in ["weights", "model_weights"] {
        let folder = checkpoint("__0_0.distcp");
        let (root, inner) = (folder.path(), folder.path().join(name));
        std::fs::remove_file(root.join(TRACKER)).unwrap();
        std::fs::rename(root.join("iter_0000012"), &inner).unwrap();
        assert_eq!(open(root).unwrap().folder, inner);
    }
}

#[test]
fn other_backends_are_named() {
    let folder = checkpoint("__0_0.distcp");
    let marker = folder.path().join("iter_0000012").join(MARKER);
    std::fs::write(&marker, r#"{"sharded_backend": "zarr", "sharded_backend_version": 1}"#).unwrap();
    assert!(matches!(open(folder.path()), Err(Error::OtherFormat { format: OtherFormat::Zarr, .. })));
    std::fs::write(&marker, r#"{"sharded_backend": "other"}"#).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().ends_with("the backend `other` is not supported"));
    std::fs::write(&marker, "[]").unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().ends_with("there is no `sharded_backend`"));
    std::fs::remove_file(folder.path().join("iter_0000012").join(TABLE)).unwrap();
    std::fs::write(&marker, metadata_json()).unwrap();
    assert!(matches!(open(folder.path()), Err(Error::NotFound { .. })));
}
