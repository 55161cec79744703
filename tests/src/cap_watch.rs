//! What must be true at every moment: the cap is never passed, by the service's own account and by the
//! kernel's, whoever has come is in or has left, and no total ever goes backwards, whoever died in between.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::RawClient;
use crate::control::{Control, Totals};
use crate::holdfast::Holdfast;
use crate::kernel::{self, Established};

/// Rest between two looks of [`never_above`], so that looking does not become the load.
const PAUSE: Duration = Duration::from_millis(1);

/// Who has been sent more bytes than this has been let in: refusals are shorter.
const LONGEST_REFUSAL: u64 = 1000;

/// Looks in a thread of its own, until it is dropped.
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<Looks>>,
}

/// How often it was looked, and the most that was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looks {
    /// Answers of the control socket.
    pub control: u64,
    /// The most connections among them.
    pub most_reported: u64,
    /// Dumps of the kernel's socket table.
    pub kernel: u64,
    /// The most clients that had been let in among them.
    pub most_established: u64,
}

impl Watch {
    /// Watches the service behind `control`, which listens on `address` and answers an upgrade with
    /// `upgraded` bytes, resting for `pause` between two looks.
    #[must_use]
    pub fn start(control: Control, address: SocketAddr, upgraded: u64, pause: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || look_until(&stopped, &control, address, upgraded, pause));
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Whether something was seen that must not be.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(thread::JoinHandle::is_finished)
    }

    /// Ends it.
    ///
    /// # Panics
    /// When something was seen that must not be.
    pub fn end(mut self) -> Looks {
        self.stop = None;
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(looks)) => looks,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Looks::default(),
        }
    }
}

/// Does `work` while the service is watched. Meant for clients that stay idle once they are in. Returns what `work`
/// does, and what was seen.
///
/// # Panics
/// When something was seen that must not be, and when `work` does.
pub fn never_above<T>(server: &Holdfast, work: impl FnOnce() -> T) -> (T, Looks) {
    let upgraded = length_of_101(server);
    let watch = Watch::start(server.control().clone(), server.address(), upgraded, PAUSE);
    let result = work();
    (result, watch.end())
}

/// How many bytes the server sends to let a client in.
pub(crate) fn length_of_101(server: &Holdfast) -> u64 {
    let before = server.totals().number("connections");
    let client = RawClient::open(server.address());
    let length = kernel::established(server.address().port())[&client.local_addr()].bytes_sent;
    drop(client);
    server.wait_until("the probe has left", |totals| totals.number("connections") == before);
    length
}

fn look_until(
    stopped: &Receiver<()>,
    control: &Control,
    address: SocketAddr,
    upgraded: u64,
    pause: Duration,
) -> Looks {
    let mut looks = Looks::default();
    let mut ceiling = Ceiling::default();
    let mut totals = NeverBackwards::default();
    let mut before: BTreeMap<SocketAddr, Established> = kernel::established(address.port());
    // What the kernel showed while nobody could be asked for the cap.
    let mut established = 0;
    // How things were left in the end takes two looks to see: each look at the kernel compares with the one before.
    let mut left = 2;
    while left > 0 {
        if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            left -= 1;
        }
        if let Some(answer) = control.try_request("GET", "/totals").filter(|answer| answer.status == 200) {
            let now = Totals(answer.json());
            let (count, cap) = (now.number("connections"), now.number("max_connections"));
            let allowed = ceiling.next(count, cap);
            assert!(count <= allowed, "{count} connections, and {allowed} were allowed: {:?}", now.0);
            assert!(
                established <= allowed,
                "the kernel has {established} clients, and {allowed} were allowed"
            );
            totals.next(&now.0);
            let (accepted, closed) = (now.number("accepted_total"), now.sum("closed_total"));
            assert!(accepted == count + closed, "who came and is not in has not left: {:?}", now.0);
            looks.control += 1;
            looks.most_reported = looks.most_reported.max(count);
            established = 0;
        }
        let now = kernel::established(address.port());
        let in_both = kernel::in_both(&std::mem::replace(&mut before, now.clone()), &now);
        let is_in = |socket: &&Established| {
            socket.bytes_sent == upgraded || socket.bytes_sent > upgraded.max(LONGEST_REFUSAL)
        };
        let count = in_both.iter().filter(is_in).count() as u64;
        established = established.max(count);
        looks.kernel += 1;
        looks.most_established = looks.most_established.max(count);
    }
    looks
}

/// How many connections there may be, when the cap may be lowered below what there are: then they may only
/// get fewer.
#[derive(Debug, Default)]
struct Ceiling {
    last_count: u64,
    last_cap: u64,
}

impl Ceiling {
    /// The most there may be at a look that shows `count` and `cap`; a cap that is new may have come at any
    /// moment since the last look.
    fn next(&mut self, count: u64, cap: u64) -> u64 {
        let before = if cap == self.last_cap { self.last_count } else { self.last_cap.max(self.last_count) };
        (self.last_count, self.last_cap) = (count, cap);
        cap.max(before)
    }
}

/// Everything called `_total`, as it was seen last.
#[derive(Debug, Default)]
struct NeverBackwards(BTreeMap<String, u64>);

impl NeverBackwards {
    fn next(&mut self, totals: &Value) {
        for (name, value) in
            totals.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_total"))
        {
            match value {
                Value::Object(by_reason) => {
                    for (reason, count) in by_reason {
                        self.check(format!("{name}.{reason}"), count);
                    }
                }
                count => self.check(name.clone(), count),
            }
        }
    }

    fn check(&mut self, name: String, count: &Value) {
        let count = count.as_u64().unwrap_or_default();
        let before = self.0.get(&name).copied().unwrap_or_default();
        assert!(count >= before, "{name} went from {before} to {count}");
        self.0.insert(name, count);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lowered_cap_lets_those_stay_who_are_there_and_nobody_in() {
        let mut ceiling = Ceiling::default();
        assert_eq!(ceiling.next(90, 100), 100);
        // Ten more may have come before it was lowered.
        assert_eq!(ceiling.next(97, 50), 100);
        assert_eq!(ceiling.next(95, 50), 97);
        assert_eq!(ceiling.next(95, 50), 95);
        assert_eq!(ceiling.next(40, 50), 95);
        assert_eq!(ceiling.next(51, 50), 50);
    }

    #[test]
    #[should_panic(expected = "closed_total.client went from 2 to 1")]
    fn a_total_that_goes_backwards_is_seen() {
        let mut totals = NeverBackwards::default();
        totals.next(&json!({"connections": 5, "closed_total": {"client": 2}, "accepted_total": 7}));
        totals.next(&json!({"connections": 4, "closed_total": {"client": 2}, "accepted_total": 7}));
        totals.next(&json!({"connections": 4, "closed_total": {"client": 1}, "accepted_total": 7}));
    }
}
