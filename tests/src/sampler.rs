//! Watches a cap while something else happens: what the control socket says, and what the kernel's socket table shows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::client::RawClient;
use crate::holdfast::Holdfast;
use crate::kernel;

/// Rest between two samples, so that looking does not become the load.
const PAUSE: Duration = Duration::from_millis(2);

/// What the sampling saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Samples {
    /// How often it looked.
    pub rounds: u64,
    /// Most connections the control socket ever named.
    pub most_reported: u64,
    /// Most server-side sockets that were established at one moment and had been sent a 101 and nothing else.
    pub most_established: u64,
}

/// Does `work` while another thread samples `server`. Meant for clients that stay idle once they are in: what they were
/// sent is then exactly the 101, which tells them from pending ones (nothing sent) and refused ones (something else).
///
/// # Panics
/// As soon as either count is above `cap`, and when `work` does.
pub fn never_above<T>(server: &Holdfast, cap: u64, work: impl FnOnce() -> T) -> (T, Samples) {
    let upgraded = length_of_101(server);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = Samples::default();
            while !done.load(Ordering::Relaxed) {
                look(server, upgraded, &mut samples);
                assert!(
                    samples.most_reported <= cap,
                    "the control socket reports more than {cap}: {samples:?}"
                );
                assert!(samples.most_established <= cap, "the kernel shows more than {cap}: {samples:?}");
                server.process().pause(PAUSE, "the next sample");
            }
            samples
        });
        let stop = StopOnDrop(&done);
        let result = work();
        drop(stop);
        (result, sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn look(server: &Holdfast, upgraded: u64, samples: &mut Samples) {
    let port = server.address().port();
    let reported = server.totals().number("connections");
    let (first, second) = (kernel::established(port), kernel::established(port));
    let in_both = kernel::in_both(&first, &second);
    let established = in_both.iter().filter(|socket| socket.bytes_sent == upgraded).count() as u64;
    samples.rounds += 1;
    samples.most_reported = samples.most_reported.max(reported);
    samples.most_established = samples.most_established.max(established);
}

/// How many bytes the server sends to let a client in.
fn length_of_101(server: &Holdfast) -> u64 {
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
