//! How much space is left where the log lies.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Bytes that this user may still write there, or where the directory would be made.
///
/// # Errors
/// The system's.
pub fn free(dir: &Path) -> io::Result<u64> {
    let dir = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a NUL, and the structure is large enough.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in, since the call succeeded.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
