//! Files that the user named and a guest is given.

use crate::error::Error;
use std::fs::File;
use std::path::Path;

/// Opens a file to be loaded. The answer has its size.
pub fn open(what: &'static str, path: &Path) -> Result<(File, u64), Error> {
    let failed = |why: std::io::Error| Error::file(what, path, why);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(Error::file(what, path, "is not a file")),
    }
}
