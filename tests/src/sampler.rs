//! Watches a cap while something else happens: what the control socket says, and what the kernel's socket
//! table shows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::client::RawClient;
use crate::holdfast::Holdfast;
use crate::kernel;

/// Rest between two samples, so that looking does not become the load.
const PAUSE: Duration = Duration::from_millis(1);

/// What the sampling saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples {
    /// How often it looked.
    pub looks: u64,
    /// The highest count of connections it ever saw.
    pub most: u64,
}

/// Does `work` while two other threads sample `server`: one asks the control socket, one the kernel. Meant
/// for clients that stay idle once they are in: what they were sent is then exactly the 101, which tells them
/// from pending ones (nothing sent) and refused ones (something else). Returns what `work` does, what was
/// reported, and what was established.
///
/// # Panics
/// When a count was above `cap`, and when `work` does.
pub fn never_above<T>(server: &Holdfast, cap: u64, work: impl FnOnce() -> T) -> (T, Samples, Samples) {
    let upgraded = length_of_101(server);
    let done = AtomicBool::new(false);
    let reported = || server.totals().number("connections");
    let mut before = kernel::established(server.address().port());
    let established = move || {
        let now = kernel::established(server.address().port());
        let in_both = kernel::in_both(&std::mem::replace(&mut before, now.clone()), &now);
        in_both.iter().filter(|socket| socket.bytes_sent == upgraded).count() as u64
    };
    thread::scope(|scope| {
        let control = scope.spawn(|| sample(server, &done, "the control socket", cap, reported));
        let kernel = scope.spawn(|| sample(server, &done, "the kernel", cap, established));
        let stop = StopOnDrop(&done);
        let result = work();
        drop(stop);
        let join = |sampler: thread::ScopedJoinHandle<'_, Samples>| {
            sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        (result, join(control), join(kernel))
    })
}

fn sample(
    server: &Holdfast,
    done: &AtomicBool,
    who: &str,
    cap: u64,
    mut count: impl FnMut() -> u64,
) -> Samples {
    let mut samples = Samples { looks: 0, most: 0 };
    let mut look = || {
        let now = count();
        assert!(now <= cap, "{who} shows {now} connections, {cap} are allowed; before: {samples:?}");
        samples = Samples { looks: samples.looks + 1, most: samples.most.max(now) };
    };
    while !done.load(Ordering::Relaxed) {
        look();
        server.process().pause(PAUSE, "the next sample");
    }
    // How the work left things takes two looks to see, for one that compares with the look before.
    look();
    look();
    samples
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

/// Ends the sampling also when the work panics: the scope would wait for it for ever otherwise.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
