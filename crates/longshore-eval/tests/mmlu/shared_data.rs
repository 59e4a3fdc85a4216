//! Where the shared reference data lies: `$LONGSHORE_DATA`, else the folder `shared` beside the repository.

use std::path::{Path, PathBuf};

/// The folder or file `name` of the shared data; where it is absent the test says so and has nothing to do.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let path = std::env::var_os("LONGSHORE_DATA").map_or_else(beside, PathBuf::from).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: shared data not present ({})", path.display());
    None
}
