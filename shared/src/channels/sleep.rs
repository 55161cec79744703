//! Who sleeps, and who wakes: a number that is odd while its one writer sleeps. The sleeper stores it, and looks again
//! whether there is something to do; whoever has made something to do looks at the number after that. A fence on each
//! side, so that one of the two sees the other. An eventfd wakes, once for each sleep.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};

/// Makes what wakes one process.
///
/// # Errors
/// What the kernel says.
pub fn bell() -> io::Result<OwnedFd> {
    let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    Ok(bell.into())
}

/// Wakes whoever waits for `bell`.
pub fn ring(bell: BorrowedFd<'_>) {
    if let Err(error) = write(bell, &1_u64.to_ne_bytes())
        // It has been rung more often than anybody counts.
        && error != nix::errno::Errno::EAGAIN
    {
        log::error!("cannot wake by descriptor {}: {error}", bell.as_raw_fd());
    }
}

/// Takes what [`ring`] has left.
pub fn hush(bell: BorrowedFd<'_>) {
    // Nothing there, or something: either way it is quiet now.
    let _ = read(bell, &mut [0; 8]);
}

/// About to sleep. Whoever calls it looks once more for something to do after that, and sleeps if there is nothing.
pub fn fall_asleep(number: &AtomicU64) {
    let value = number.load(Ordering::Relaxed);
    number.store(value | 1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// Awake. Said also by a process that goes on for one that may have died asleep.
pub fn wake_up(number: &AtomicU64) {
    let value = number.load(Ordering::Relaxed);
    number.store((value | 1).wrapping_add(1), Ordering::Relaxed);
}

/// What the waker remembers of the one it wakes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Waker {
    /// The sleep that was ended last.
    woken: u64,
}

impl Waker {
    /// There is something to do. Says whether the other side has to be woken, which is so once for each sleep. What there is to do
    /// was stored before; the fence after it may be shared by many calls.
    pub fn must_wake(&mut self, number: &AtomicU64) -> bool {
        let sleep = number.load(Ordering::Relaxed);
        if sleep.is_multiple_of(2) || sleep == self.woken {
            return false;
        }
        self.woken = sleep;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sleep_is_ended_once() {
        let number = AtomicU64::new(0);
        let mut waker = Waker::default();
        assert!(!waker.must_wake(&number));
        fall_asleep(&number);
        assert!(waker.must_wake(&number) && !waker.must_wake(&number));
        wake_up(&number);
        assert!(!waker.must_wake(&number));
        fall_asleep(&number);
        assert!(waker.must_wake(&number));
        // One that goes on for a dead one sleeps a new sleep.
        wake_up(&number);
        fall_asleep(&number);
        assert!(waker.must_wake(&number));
    }

    #[test]
    fn nothing_that_is_made_before_a_sleep_is_slept_through() {
        use std::sync::Arc;
        let (number, made) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let bell = Arc::new(bell().unwrap());
        const ROUNDS: u64 = 20_000;
        let maker = {
            let (number, made, bell) = (number.clone(), made.clone(), bell.clone());
            std::thread::spawn(move || {
                let mut waker = Waker::default();
                for count in 1..=ROUNDS {
                    made.store(count, Ordering::Release);
                    fence(Ordering::SeqCst);
                    if waker.must_wake(&number) {
                        ring(std::os::fd::AsFd::as_fd(&*bell));
                    }
                }
            })
        };
        let mut seen = 0;
        while seen < ROUNDS {
            fall_asleep(&number);
            if made.load(Ordering::Acquire) == seen {
                let mut wanted =
                    [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&*bell), nix::poll::PollFlags::POLLIN)];
                let came = nix::poll::poll(&mut wanted, 60_000_u16).unwrap();
                assert!(came == 1, "nobody woke it at {seen}");
                hush(std::os::fd::AsFd::as_fd(&*bell));
            }
            wake_up(&number);
            seen = made.load(Ordering::Acquire);
        }
        maker.join().unwrap();
    }
}
