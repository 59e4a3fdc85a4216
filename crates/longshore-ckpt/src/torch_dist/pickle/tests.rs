use super::*;

/// Every opcode of `CPython` 3.14's pickletools.
const OPCODES: &[(u8, &str)] = &[
    (b'I', "INT"),
    (b'J', "BININT"),
    (b'K', "BININT1"),
    (b'M', "BININT2"),
    (b'L', "LONG"),
    (0x8a, "LONG1"),
    (0x8b, "LONG4"),
    (b'S', "STRING"),
    (b'T', "BINSTRING"),
    (b'U', "SHORT_BINSTRING"),
    (b'B', "BINBYTES"),
    (b'C', "SHORT_BINBYTES"),
    (0x8e, "BINBYTES8"),
    (0x96, "BYTEARRAY8"),
    (0x97, "NEXT_BUFFER"),
    (0x98, "READONLY_BUFFER"),
    (b'N', "NONE"),
    (0x88, "NEWTRUE"),
    (0x89, "NEWFALSE"),
    (b'V', "UNICODE"),
    (0x8c, "SHORT_BINUNICODE"),
    (b'X', "BINUNICODE"),
    (0x8d, "BINUNICODE8"),
    (b'F', "FLOAT"),
    (b'G', "BINFLOAT"),
    (b']', "EMPTY_LIST"),
    (b'a', "APPEND"),
    (b'e', "APPENDS"),
    (b'l', "LIST"),
    (b')', "EMPTY_TUPLE"),
    (b't', "TUPLE"),
    (0x85, "TUPLE1"),
    (0x86, "TUPLE2"),
    (0x87, "TUPLE3"),
    (b'}', "EMPTY_DICT"),
    (b'd', "DICT"),
    (b's', "SETITEM"),
    (b'u', "SETITEMS"),
    (0x8f, "EMPTY_SET"),
    (0x90, "ADDITEMS"),
    (0x91, "FROZENSET"),
    (b'0', "POP"),
    (b'2', "DUP"),
    (b'(', "MARK"),
    (b'1', "POP_MARK"),
    (b'g', "GET"),
    (b'h', "BINGET"),
    (b'j', "LONG_BINGET"),
    (b'p', "PUT"),
    (b'q', "BINPUT"),
    (b'r', "LONG_BINPUT"),
    (0x94, "MEMOIZE"),
    (0x82, "EXT1"),
    (0x83, "EXT2"),
    (0x84, "EXT4"),
    (b'c', "GLOBAL"),
    (0x93, "STACK_GLOBAL"),
    (b'R', "REDUCE"),
    (b'b', "BUILD"),
    (b'i', "INST"),
    (b'o', "OBJ"),
    (0x81, "NEWOBJ"),
    (0x92, "NEWOBJ_EX"),
    (0x80, "PROTO"),
    (b'.', "STOP"),
    (0x95, "FRAME"),
    (b'P', "PERSID"),
    (b'Q', "BINPERSID"),
];

fn text(bytes: &[u8]) -> String {
    Pickle::parse(bytes).map_or_else(|e| format!("error: {e}"), |p| p.root().to_text())
}

#[test]
fn every_byte_is_an_opcode_that_is_handled_or_refused_by_name_or_none() {
    assert_eq!(OPCODES.len(), 68);
    for byte in 0..=255u8 {
        let name = OPCODES.iter().find(|row| row.0 == byte).map(|row| row.1);
        let what = Pickle::parse(&[byte]).unwrap_err().what;
        let want = match name {
            None => format!("0x{byte:02x} is no opcode"),
            Some("EXT1" | "EXT2" | "EXT4") => "extension codes (EXT1, EXT2, EXT4) are not supported".into(),
            Some("NEXT_BUFFER" | "READONLY_BUFFER") => "out-of-band buffers are not supported".into(),
            Some(_) => {
                assert!(!what.contains("opcode") && !what.contains("supported"), "{byte:02x}: {what}");
                continue;
            }
        };
        assert_eq!(what, want);
    }
}

#[test]
fn each_opcode_does_what_pickletools_says() {
    let cases: &[(&[u8], &str)] = &[
        (b"I42\n.", "42"),
        (b"I01\n.", "True"),
        (b"I00\n.", "False"),
        (b"J\xff\xff\xff\xff.", "-1"),
        (b"K\xff.", "255"),
        (b"M\xff\xff.", "65535"),
        (b"L-12L\n.", "-12"),
        (b"L170141183460469231731687303715884105727L\n.", "170141183460469231731687303715884105727"),
        (b"\x8a\x00.", "0"),
        (b"\x8a\x02\x00\xff.", "-256"),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.", "18446744073709551615"),
        (b"\x8a\x11\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01.", "<integer of 17 bytes>"),
        (b"\x8b\x01\x00\x00\x00\x80.", "-128"),
        (b"S'a\\'\\x41\\n\\101\\q'\n.", "\"a'A\\nA\\\\q\""),
        (b"T\x02\x00\x00\x00hi.", "\"hi\""),
        (b"U\x02hi.", "\"hi\""),
        (b"U\x01\xff.", "<1 bytes>"),
        (b"B\x02\x00\x00\x00hi.", "<2 bytes>"),
        (b"C\x02hi.", "<2 bytes>"),
        (b"\x8e\x02\x00\x00\x00\x00\x00\x00\x00hi.", "<2 bytes>"),
        (b"\x96\x02\x00\x00\x00\x00\x00\x00\x00hi.", "<2 bytes>"),
        (b"N.", "None"),
        (b"\x88.", "True"),
        (b"\x89.", "False"),
        (b"V\xe4\\u20ac\\U0001f600\n.", "\"ä€😀\""),
        (b"\x8c\x02hi.", "\"hi\""),
        (b"X\x02\x00\x00\x00hi.", "\"hi\""),
        (b"X\x03\x00\x00\x00\xed\xa0\x80.", "<3 bytes>"),
        (b"\x8d\x02\x00\x00\x00\x00\x00\x00\x00hi.", "\"hi\""),
        (b"F1.5\n.", "1.5"),
        (b"F-inf\n.", "-inf"),
        (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", "1.5"),
        (b"]NaK\x01a.", "[None, 1]"),
        (b"](NK\x01e(K\x02e.", "[None, 1, 2]"),
        (b"](N(K\x01e.", "error: byte 6: items are added to a value that takes none"),
        (b"(NK\x01l.", "[None, 1]"),
        (b").", "()"),
        (b"(K\x01t.", "(1,)"),
        (b"K\x01\x85.", "(1,)"),
        (b"K\x01K\x02\x86.", "(1, 2)"),
        (b"K\x01K\x02K\x03\x87.", "(1, 2, 3)"),
        (b"}K\x01K\x02s.", "{1: 2}"),
        (b"}(K\x01K\x02u.", "{1: 2}"),
        (b"}(K\x01u.", "error: byte 4: a dict's key has no value"),
        (b"(K\x01K\x02d.", "{1: 2}"),
        (b"\x8f(K\x01K\x02\x90.", "set(1, 2)"),
        (b"(K\x01\x91.", "set(1)"),
        (b"K\x01K\x020.", "1"),
        (b"K\x01(0.", "1"),
        (b"]K\x012a.", "error: byte 4: items are added to a value that takes none"),
        (b"]2a.", "[[…]]"),
        (b"K\x01(K\x02K\x031.", "1"),
        (b"K\x01p0\n0g0\n.", "1"),
        (b"K\x01q\x070h\x07.", "1"),
        (b"K\x01r\x07\x00\x00\x000j\x07\x00\x00\x00.", "1"),
        (b"K\x01\x94K\x02\x940\x30h\x01.", "2"),
        (b"h\x00.", "error: byte 0: memo entry 0 does not exist"),
        (b"ctorch\nSize\n.", "<torch.Size>"),
        (b"\x8c\x05torch\x8c\x04Size\x93.", "<torch.Size>"),
        (b"K\x01\x8c\x04Size\x93.", "error: byte 8: the name of a global is no string"),
        (b"cos\nsystem\nU\x02ls\x85R.", "os.system(\"ls\",)"),
        (b"cos\nsystem\nU\x02lsR.", "error: byte 15: the arguments of a call are no tuple"),
        (b"ca\nB\n)\x81}U\x01xK\x01sb.", "a.B() {\"x\": 1}"),
        (b"ca\nB\n)\x81NbNb.", "error: byte 10: state is given to an object twice"),
        (b"}Nb.", "error: byte 2: state is given to a value that is no object"),
        (b"(K\x01ia\nB\n.", "a.B(1,)"),
        (b"(ca\nB\nK\x01o.", "a.B(1,)"),
        (b"(o.", "error: byte 1: the class of an object is missing"),
        (b"ca\nB\n)}\x92.", "a.B((), {})"),
        (b"ccollections\nOrderedDict\n)RK\x01K\x02s.", "collections.OrderedDict() {1: 2}"),
        (b"ccollections\ndeque\n)R(K\x01K\x02e.", "collections.deque() [1, 2]"),
        (b"\x80\x06.", "error: byte 0: pickle protocol 6 is not supported"),
        (b"\x80\x05\x95\x00\x00\x00\x00\x00\x00\x00\x00N.", "None"),
        (b"Pabc\n.", "persistent \"abc\""),
        (b"K\x01Q.", "persistent 1"),
        (b"N.N", "error: byte 2: bytes follow the end of the pickle"),
        (b".", "error: byte 0: the stack is empty"),
        (b"N", "error: byte 1: the pickle ends early"),
        (b"", "error: byte 0: the pickle ends early"),
    ];
    for (bytes, want) in cases {
        let want =
            if *want == "[[…]]" { format!("{}…{}", "[".repeat(17), "]".repeat(17)) } else { (*want).to_owned() };
        assert_eq!(text(bytes), want, "{}", bytes.escape_ascii());
    }
}

#[test]
fn calls_are_inert_and_name_their_class() {
    let pickle = Pickle::parse(b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03.").unwrap();
    let root = pickle.root();
    assert_eq!(root.class().as_deref(), Some("os.system"));
    assert_eq!(root.args().unwrap().items().unwrap().next().unwrap().as_str(), Some("id"));
    assert_eq!(root.as_str(), None);
    let old = Pickle::parse(b"ccopy_reg\n_reconstructor\n(ca\nB\nc__builtin__\nobject\nNtR(dS'x'\nI5\nsb.").unwrap();
    assert_eq!(old.root().class().as_deref(), Some("a.B"));
    assert_eq!(old.root().attr("x").and_then(View::as_i64), Some(5));
}

#[test]
fn attributes_come_from_the_dict_and_from_slots() {
    let pickle = Pickle::parse(b"ca\nB\n)\x81}U\x01xK\x01s}U\x01yK\x02s\x86b.").unwrap();
    let root = pickle.root();
    assert_eq!(root.attr("x").and_then(View::as_u64), Some(1));
    assert_eq!(root.attr("y").and_then(View::as_u64), Some(2));
    assert!(root.attr("z").is_none());
    assert_eq!(root.attributes().iter().map(|a| a.0).collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn the_last_of_equal_keys_counts() {
    let pickle = Pickle::parse(b"}(U\x01xK\x01U\x01xK\x02u.").unwrap();
    assert_eq!(pickle.root().get("x").and_then(View::as_i64), Some(2));
    assert_eq!(pickle.root().entries().unwrap().len(), 2);
}

#[test]
fn integers_of_every_width_keep_their_value() {
    for value in [0, 255, 256, 65535, 65536, -1, -129, i64::from(i32::MAX), 1 << 31, 1 << 40, i64::MAX, i64::MIN] {
        let pickle = Pickle::parse(&dump(&Plain::Int(value))).unwrap();
        assert_eq!(pickle.root().as_i64(), Some(value));
        assert_eq!(pickle.root().as_u64(), u64::try_from(value).ok());
    }
    let mut writer = Writer::new();
    writer.uint(u64::MAX);
    let pickle = Pickle::parse(&writer.finish()).unwrap();
    assert_eq!(pickle.root().as_u64(), Some(u64::MAX));
    assert_eq!(pickle.root().as_i64(), None);
}

#[test]
fn what_is_dumped_is_read() {
    let text = |s: &str| Plain::Str(s.into());
    let value = Plain::Dict(vec![
        (text("args"), Plain::Namespace(vec![("a".into(), Plain::Float(1.5)), ("b".into(), Plain::List(vec![]))])),
        (text("t"), Plain::Tuple(vec![Plain::None, Plain::Bool(true), Plain::Tuple(vec![])])),
        (text("d"), Plain::Global("torch".into(), "bfloat16".into())),
        (text("ü"), Plain::List(vec![Plain::Int(-7), text("x"), Plain::Dict(vec![])])),
        (text("e"), Plain::Global("torch".into(), "bfloat16".into())),
    ]);
    let bytes = dump(&value);
    assert_eq!(
        super::Pickle::parse(&bytes).unwrap().root().to_text(),
        "{\"args\": argparse.Namespace() {\"a\": 1.5, \"b\": []}, \"t\": (None, True, ()), \"d\": <torch.bfloat16>, \
         \"ü\": [-7, \"x\", {}], \"e\": <torch.bfloat16>}"
    );
    assert_eq!(bytes.windows(8).filter(|w| w == b"bfloat16").count(), 1, "globals are memoized");
}

#[test]
fn a_string_is_never_taken_for_a_global() {
    let mut writer = Writer::new();
    writer.mark();
    writer.global("torch", "Size");
    writer.shared_str("ctorch\nSize\n");
    writer.shared_str("ctorch\nSize\n");
    writer.tuple();
    let pickle = Pickle::parse(&writer.finish()).unwrap();
    assert_eq!(pickle.root().to_text(), "(<torch.Size>, \"ctorch\\nSize\\n\", \"ctorch\\nSize\\n\")");
}

#[test]
fn appending_reaches_every_holder_of_a_list() {
    // The same list twice in a tuple; items are added in turn to it and to another.
    let pickle = Pickle::parse(b"]q\x00h\x00]q\x01\x87q\x020h\x00K\x01a0h\x01K\x02a0h\x00(K\x03K\x04e0h\x02.").unwrap();
    assert_eq!(pickle.root().to_text(), "([1, 3, 4], [1, 3, 4], [2])");
    assert_eq!(pickle.root().items().unwrap().next().unwrap().items().unwrap().len(), 3);
}

#[test]
fn a_huge_memo_index_allocates_nothing() {
    assert_eq!(text(b"K\x01r\xff\xff\xff\xff0j\xff\xff\xff\xff."), "1");
    assert_eq!(text(b"K\x01p18446744073709551615\n0g18446744073709551615\n."), "1");
    assert_eq!(text(b"K\x01p99999999999999999999\n."), "error: byte 2: a memo index is no number");
    // The dense part grows over an entry that was put ahead of it.
    assert_eq!(text(b"K\x01q\x01K\x02q\x00K\x03q\x01K\x09\x94h\x01h\x02\x86."), "(3, 9)");
}

#[test]
fn doubling_through_the_memo_stays_small() {
    // Each level holds the one below twice: 2^200 leaves.
    let mut bytes = b"](K\x01e".to_vec();
    for _ in 0..200 {
        bytes.extend_from_slice(b"2\x86");
    }
    bytes.push(b'.');
    let pickle = Pickle::parse(&bytes).unwrap();
    assert!(pickle.nodes.len() < 300);
    assert!(pickle.root().to_text().len() < TEXT_LEN + 10_000);
}

#[test]
fn depth_costs_no_stack() {
    let n = 1_000_000;
    let mut bytes = vec![b']'; n];
    bytes.resize(2 * n - 1, b'a');
    bytes.push(b'.');
    let pickle = Pickle::parse(&bytes).unwrap();
    assert!(pickle.root().to_text().ends_with(']'));
    drop(pickle);
    let marks = vec![b'('; n];
    assert_eq!(Pickle::parse(&marks).unwrap_err().what, "the pickle ends early");
}

#[test]
fn lengths_beyond_the_input_allocate_nothing() {
    for bytes in [
        &b"X\xff\xff\xff\xff."[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"B\xff\xff\xff\xff",
    ] {
        assert_eq!(Pickle::parse(bytes).unwrap_err().what, "the pickle ends early");
    }
    assert_eq!(Pickle::parse(b"\x8b\xff\xff\xff\xff").unwrap_err().what, "a length is negative");
}

#[test]
fn nodes_are_small_and_few() {
    assert_eq!(size_of::<Node>(), 16);
    let pickle =
        Pickle::parse(&[b"]".as_slice(), &b"X\x03\x00\x00\x00abcaM\x00\x10a".repeat(1000), b"."].concat()).unwrap();
    assert!(pickle.nodes.len() < 20, "equal strings and integers are stored once");
    assert_eq!(pickle.segments.len(), 1, "items added one by one share a segment");
}

#[test]
fn damage_never_panics() {
    let value = Plain::Dict(vec![
        (Plain::Str("a".into()), Plain::Namespace(vec![("n".into(), Plain::Int(1 << 40)), ("l".into(), Plain::None)])),
        (Plain::Str("b".into()), Plain::List(vec![Plain::Float(0.5), Plain::Tuple(vec![Plain::Bool(false); 3])])),
        (Plain::Str("c".into()), Plain::Global("torch".into(), "float32".into())),
    ]);
    let bytes = dump(&value);
    for cut in 0..bytes.len() {
        assert!(Pickle::parse(&bytes[..cut]).is_err());
    }
    for at in 0..bytes.len() {
        for byte in 0..=255 {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            if let Ok(pickle) = Pickle::parse(&damaged) {
                let root = pickle.root();
                root.to_text();
                root.get("a").map(View::attributes);
                root.items().into_iter().flatten().for_each(|v| drop(v.class()));
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(ops in proptest::collection::vec(0..OPCODES.len() + 8, 0..200), seed: u64) {
        let mut state = seed;
        let mut bytes = Vec::new();
        for op in ops {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.push(OPCODES.get(op).map_or((state >> 60) as u8, |row| row.0));
            if state >> 63 == 1 {
                bytes.extend_from_slice(b"K\x01)");
            }
        }
        bytes.push(b'.');
        if let Ok(pickle) = Pickle::parse(&bytes) {
            pickle.root().to_text();
            proptest::prop_assert!(pickle.nodes.len() <= bytes.len() + 4);
        }
    }
}

#[test]
fn a_backslash_before_an_escape_is_no_escape_as_in_python() {
    let pickle = Pickle::parse(b"V\\\\u0041\\u0042\\n\n.").unwrap();
    assert_eq!(pickle.root().as_str(), Some("\\\\u0041B\\n"));
}
