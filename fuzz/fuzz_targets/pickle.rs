//! Any bytes as a pickle: parse, then look at everything a reader can look at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::torch_dist::pickle::{Pickle, TEXT_DEPTH, TEXT_LEN, View};

/// Values that the walk looks at: pickles share values, so a walk by depth alone has no bound.
const VALUES: usize = 10_000;

fn walk(view: View<'_>, depth: usize, left: &mut usize) {
    if depth > TEXT_DEPTH || *left == 0 {
        return;
    }
    *left -= 1;
    assert!(view.same(view) && !view.kind().is_empty());
    let number = (view.as_i64(), view.as_u64());
    if let (Some(signed), Some(unsigned)) = number {
        assert_eq!(i128::from(signed), i128::from(unsigned));
    }
    let kinds = [
        view.is_none(),
        view.as_bool().is_some(),
        view.as_f64().is_some(),
        view.as_str().is_some(),
        view.as_bytes().is_some(),
    ];
    assert!(kinds.into_iter().filter(|k| *k).count() <= 1);
    let _ = (view.class_parts(), view.class(), view.attr_count());
    for (_, value) in view.attributes() {
        walk(value, depth + 1, left);
    }
    if let Some(items) = view.items() {
        let said = items.len();
        assert_eq!(items.clone().count(), said);
        items.for_each(|item| walk(item, depth + 1, left));
    }
    if let Some(entries) = view.entries() {
        let said = entries.len();
        assert_eq!(entries.clone().count(), said);
        for (key, value) in entries {
            walk(key, depth + 1, left);
            walk(value, depth + 1, left);
        }
    }
    for next in [view.args(), view.state(), view.persistent(), view.get("args")].into_iter().flatten() {
        walk(next, depth + 1, left);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(pickle) = Pickle::parse(bytes) else { return };
    walk(pickle.root(), 0, &mut VALUES.clone());
    // A string adds at most 512 characters, escaped, and a class its whole name.
    assert!(pickle.root().to_text().len() <= TEXT_LEN + 8192 + 16 * bytes.len());
    if let Some(only) = pickle.into_single_item() {
        walk(only.root(), 0, &mut VALUES.clone());
    }
});
