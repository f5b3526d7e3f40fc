//! A lock on a file: one process at a time, and free again the moment it is dropped or its process is dead.

use std::fs::{File, TryLockError};
use std::io;

/// Holds the lock. Dropping it gives it back.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Without waiting; `None` = another one holds it.
    pub fn take(file: File) -> io::Result<Option<Lock>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// The file that is locked.
    pub fn file(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a process that another thread is just starting has a copy of it until
    /// it runs its own program, and the lock with it.
    fn drop(&mut self) {
        if let Err(e) = self.0.unlock() {
            log::warn!("event=lock_kept cause={:?}", e.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_of_is_free_though_a_starting_process_has_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::create(dir.path().join("lock")).unwrap();
        let mine = Lock::take(open()).unwrap().unwrap();
        // What a child has between fork and exec: the same open file.
        let copy = mine.0.try_clone().unwrap();
        assert!(Lock::take(open()).unwrap().is_none());
        drop(mine);
        assert!(Lock::take(open()).unwrap().is_some());
        drop(copy);
    }
}
