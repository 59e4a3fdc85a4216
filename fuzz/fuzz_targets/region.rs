//! Regions of small tensors: runs, `at` and `find` agree, and tilings are told from holes and overlaps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_convert::region::{Region, check_tiling};

fuzz_target!(|input: Vec<(u8, u8, u8, u8, u8)>| {
    let regions: Vec<Region> = input.iter().take(8).map(|&shape| region(shape)).collect();
    for region in &regions {
        let mut seen = 0;
        for (index, element) in region.runs().flatten().enumerate() {
            assert_eq!(region.find(element).map(|f| f.0), Some(index as u64));
            assert_eq!(region.at(index as u64).0, element);
            seen += 1;
        }
        assert_eq!(seen, region.len());
        let found = (0..region.tensor_len()).filter(|&i| region.find(i).is_some()).count();
        assert_eq!(found as u64, region.len());
    }
    let Some(len) = regions.first().map(Region::tensor_len) else { return };
    let mut times = vec![0; len as usize];
    let same = regions.iter().all(|r| r.tensor_len() == len);
    if same {
        regions.iter().flat_map(Region::runs).flatten().for_each(|i| times[i as usize] += 1);
    }
    assert_eq!(check_tiling(len, &regions).is_ok(), same && times.iter().all(|&n| n == 1));
});

/// A region of a tensor of at most 4 * 8 * 8 * 8 elements.
fn region((kind, groups, rows, from, len): (u8, u8, u8, u8, u8)) -> Region {
    let small = |n: u8| u64::from(n % 8) + 1;
    let (groups, rows, len) = (small(groups), small(rows), small(len));
    let start = u64::from(from % 16) % rows;
    let end = (start + 1 + u64::from(from / 16)).min(rows);
    let inner = match kind % 3 {
        0 => Region::all(len),
        1 => Region::rows(rows, start..end, len),
        _ => Region::grouped(groups, rows, start..end, len),
    };
    if kind & 0x10 == 0 { inner } else { inner.in_slot(u64::from(kind >> 6), 4) }
}
