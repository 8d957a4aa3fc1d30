//! Seats: the places of the processes that write to a map file.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::lanes::Seats;
use super::lock::{LockKind, try_lock};

/// The byte that stands for seat 0. No file is that long, so the locks cover no data.
const FIRST_SEAT: u64 = 1 << 62;

/// More processes than that have no use for one file.
const SEATS: u32 = 1 << 16;

/// The seat of this opening of a file. It is given up with the file's last reference.
pub(super) struct Seat {
    file: Arc<File>,
    number: u32,
    /// Locks belong to the open file, so threads of a process could undo each other's.
    burying: Mutex<()>,
}

impl Seat {
    /// Takes a free seat.
    pub(super) fn take(file: &Arc<File>) -> io::Result<Self> {
        for number in 1..SEATS {
            if try_lock(file, FIRST_SEAT + u64::from(number), LockKind::Exclusive)? {
                return Ok(Self { file: Arc::clone(file), number, burying: Mutex::new(()) });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

impl Seats for Seat {
    #[inline]
    fn own(&self) -> u32 {
        self.number
    }

    fn if_dead(&self, seat: u32, bury: impl FnOnce()) {
        let _burying = self.burying.lock().unwrap_or_else(PoisonError::into_inner);
        let byte = FIRST_SEAT + u64::from(seat);
        // A lock that cannot be had for another reason says nothing about the owner.
        if let Ok(true) = try_lock(&self.file, byte, LockKind::Exclusive) {
            bury();
            // What fails to unlock stays locked until the file is closed: a seat less.
            let _ = try_lock(&self.file, byte, LockKind::None);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn file() -> (Arc<File>, Arc<File>) {
        let fd = rustix::fs::memfd_create("seats", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let again = File::options().read(true).write(true).open(again).unwrap();
        (Arc::new(file), Arc::new(again))
    }

    #[test]
    fn each_opening_has_a_seat_of_its_own_until_it_is_closed() {
        let (first, second) = file();
        let a = Seat::take(&first).unwrap();
        let b = Seat::take(&second).unwrap();
        assert_ne!(a.own(), b.own());
        let mut dead = false;
        b.if_dead(a.own(), || dead = true);
        assert!(!dead);
        let number = a.own();
        drop((a, first));
        b.if_dead(number, || dead = true);
        assert!(dead);
        b.if_dead(77, || dead = false);
        assert!(!dead, "a seat that nobody ever had is dead");
    }
}
