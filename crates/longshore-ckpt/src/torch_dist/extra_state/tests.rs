use super::*;
use crate::torch_dist::item::empty_extra_state;

fn read_in(bytes: &[u8]) -> Result<ExtraState, LocateError> {
    read(bytes.len() as u64, &mut |at, buffer| {
        buffer.copy_from_slice(&bytes[at as usize..][..buffer.len()]);
        Ok(())
    })
}

/// The item of a list of one tensor with these bytes.
fn carrying(dtype: Dtype, payload: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(b"](");
    item::tensor_pickle(&mut w, dtype, &[payload.len() as u64 / dtype.size()]);
    w.raw(b"e");
    let frame = Frame::around(&w.finish(), payload.len() as u64);
    [&frame.head[..], payload, &frame.tail(crc32fast::hash(payload))].concat()
}

fn state() -> Plain {
    let text = |s: &str| Plain::Str(s.into());
    Plain::Dict(vec![
        (text("sizes"), Plain::Tuple(vec![Plain::Size(vec![]), Plain::Size(vec![4, 1, 70_000])])),
        (text("dtype"), Plain::Global("torch".into(), "bfloat16".into())),
    ])
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = write(&state());
    let ExtraState::Pickled(pickle) = read_in(&bytes).unwrap() else { panic!("expected a state") };
    let text = pickle.root().to_text();
    assert_eq!(text, r#"{"sizes": (torch.Size((),), torch.Size((4, 1, 70000),)), "dtype": <torch.bfloat16>}"#);
}

#[test]
fn the_blob_begins_where_torch_aligns_it() {
    let bytes = write(&state());
    let blob = object_item(&dump(&state()));
    let at = bytes.windows(blob.len()).position(|w| w == blob).unwrap();
    assert_eq!(at as u64 % item::ALIGNMENT, 0);
}

#[test]
fn an_empty_state_is_none() {
    assert!(matches!(read_in(&empty_extra_state()).unwrap(), ExtraState::Empty));
    assert!(matches!(read_in(&carrying(Dtype::Uint8, b"")).unwrap(), ExtraState::Empty));
}

#[test]
fn states_of_other_programs_are_unknown_and_no_error() {
    let what = |bytes: &[u8]| match read_in(bytes).unwrap() {
        ExtraState::Unknown(what) => what,
        other => panic!("expected something unknown, found {other:?}"),
    };
    assert_eq!(what(&carrying(Dtype::Uint8, b"\x80\x04}.")), "bytes that are no archive");
    assert_eq!(what(&carrying(Dtype::Float32, &[0; 8])), "a tensor of float32");
    assert_eq!(what(&object_item(b"\x80\x02]}a.")), "an item that is a dict");
    assert_eq!(what(&object_item(b"\x80\x02](NNe.")), "a list, not a list of one item");
    assert_eq!(what(&object_item(b"\x80\x02c_io\nBytesIO\n)R.")), "_io.BytesIO, not a list of one item");
}

#[test]
fn a_damaged_blob_is_an_error_with_its_place() {
    let blob = object_item(&dump(&state()));
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut blob = blob.clone();
        change(&mut blob);
        read_in(&carrying(Dtype::Uint8, &blob)).unwrap_err().to_string()
    };
    let cut = damaged(&|b| b.truncate(b.len() - 1));
    assert!(cut.contains("the state inside: expected the archive's end record"), "{cut}");
    let opcode = damaged(&|b| *b.iter_mut().find(|b| **b == 0x85).unwrap() = 0xff);
    assert!(opcode.contains("the state inside: data.pkl: 0xff is no opcode"), "{opcode}");
    let large = read_in(&carrying(Dtype::Uint8, &vec![0; MAX_BLOB as usize + 1])).unwrap_err().to_string();
    assert!(large.contains("expected at most 4194304"), "{large}");
}

#[test]
fn nothing_inside_the_inner_archive_is_opened() {
    let nested = Plain::List(vec![Plain::None]);
    let twice = write(&nested);
    let ExtraState::Pickled(pickle) = read_in(&carrying(Dtype::Uint8, &twice)).unwrap() else { panic!("an archive") };
    assert!(pickle.root().items().unwrap().next().unwrap().class().unwrap().ends_with("_rebuild_tensor_v2"));
}
