//! Boxes of any numbers: `fits` decides without overflow; boxes that fit are compared with their definition.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::Rect;
use longshore_ckpt::tensor::{check_tiling, element_count};

/// Tensors up to this are looked at element by element.
const SMALL: u64 = 4096;

fuzz_target!(|input: (Vec<u64>, Vec<(Vec<u64>, Vec<u64>)>)| {
    let (shape, rects) = input;
    let rects: Vec<Rect> = rects.into_iter().map(|(offsets, sizes)| Rect { offsets, sizes }).collect();
    let all: Vec<&Rect> = rects.iter().collect();
    let verdict = check_tiling(&shape, &all);
    let Some(total) = element_count(&shape).filter(|&n| n <= SMALL) else { return };
    let mut times = vec![0; total as usize];
    for rect in rects.iter().filter(|r| r.fits(&shape)) {
        for index in 0..total {
            let found = rect.find(&shape, index);
            assert_eq!(found.is_some(), inside(rect, &shape, index));
            if let Some((local, run)) = found {
                times[index as usize] += 1;
                let (global, longer) = rect.run_at(&shape, local);
                assert_eq!(global, index);
                assert!(run >= 1 && longer >= 1 && local + run <= rect.len());
                for step in 1..run {
                    assert_eq!(rect.find(&shape, index + step).map(|f| f.0), Some(local + step));
                }
            }
        }
    }
    let exact = rects.iter().all(|r| r.fits(&shape)) && times.iter().all(|&n| n == 1);
    assert_eq!(verdict.is_ok(), exact, "{shape:?} {rects:?} {verdict:?}");
});

fn inside(rect: &Rect, shape: &[u64], mut index: u64) -> bool {
    (0..shape.len()).rev().all(|axis| {
        let at = index % shape[axis];
        index /= shape[axis];
        at >= rect.offsets[axis] && at - rect.offsets[axis] < rect.sizes[axis]
    })
}
