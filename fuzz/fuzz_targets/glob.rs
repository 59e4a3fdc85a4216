//! Any pattern and name: the matcher against a table of all prefixes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_convert::diff::glob_matches;

fuzz_target!(|input: (&str, &str)| {
    let (pattern, name) = input;
    if pattern.len() * name.len() <= 1 << 14 {
        assert_eq!(glob_matches(pattern, name), by_table(pattern.as_bytes(), name.as_bytes()));
    }
});

/// `table[j]`: whether the pattern so far matches the first `j` bytes of the name.
fn by_table(pattern: &[u8], name: &[u8]) -> bool {
    let mut table = vec![false; name.len() + 1];
    table[0] = true;
    for &wild in pattern {
        let mut next = vec![false; name.len() + 1];
        next[0] = wild == b'*' && table[0];
        for j in 1..=name.len() {
            next[j] = match wild {
                b'*' => table[j] || next[j - 1],
                b'?' => table[j - 1],
                byte => table[j - 1] && byte == name[j - 1],
            };
        }
        table = next;
    }
    table[name.len()]
}
