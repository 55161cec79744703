//! Executing another program in this process, the part of it that is the loop's: everybody who waits is answered,
//! the control thread makes way, and signals wait for the new program. If it cannot be executed, all goes on.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use holdfast_shared::clock::{self, milliseconds};
use holdfast_shared::ipc::reconnect::ReconnectListener;

use super::Supervisor;
use crate::api::Failure;
use crate::host::launch::OURSELVES;
use crate::host::{notify, signals};
use crate::operations::upgrade::replace::{ExecuteError, Handoff, execute};
use crate::operations::upgrade::{Candidate, Departure, Record};

impl Supervisor {
    /// Does what an upgrade asks for. Returns also when a program was to be executed and could not be; everything is as it
    /// was then.
    pub(super) fn depart(&mut self, departure: Departure) {
        match departure {
            Departure::Stay if self.is_closed => self.open_again(),
            Departure::Stay | Departure::Wait => {}
            Departure::Close => {
                self.turn_away_the_waiting();
                self.control.leave();
                self.is_closed = true;
            }
            Departure::Execute(candidate) => {
                notify::reloading();
                let error = self.try_execute(&candidate);
                notify::ready("the upgrade failed; serving as before");
                self.open_again();
                self.operations.execution_failed(&self.cluster, &error.to_string());
            }
        }
    }

    fn open_again(&mut self) {
        self.is_closed = false;
        match self.control.start_again(Arc::clone(&self.place.waker), self.place.program.version) {
            Ok(requests) => self.requests = requests,
            Err(error) => log::error!("the control socket is gone: {error}"),
        }
    }

    fn try_execute(&mut self, candidate: &Candidate) -> ExecuteError {
        let doing = "keep signals back";
        if let Err(source) = signals::block() {
            return ExecuteError::Prepare { doing, source };
        }
        // Those that come from here on are the new program's. Those that came before are ours.
        self.on_signals();
        let error = match self.prepare(&candidate.record) {
            _ if self.cluster.phase().is_ending() => ExecuteError::Ending,
            Ok((handoff, _listener, _ourselves)) => execute(&candidate.program, &self.place.launch, &handoff),
            Err(error) => error,
        };
        if let Err(source) = signals::unblock() {
            log::error!("cannot take signals any more: {source}");
        }
        error
    }

    /// What is left to the next program, and what of it is held open here.
    fn prepare(&self, record: &Record) -> Result<(Handoff, ReconnectListener, File), ExecuteError> {
        let run_dir = self.cluster.run_dir();
        // Slots find it at the very moment they lose us.
        let listener = ReconnectListener::open(run_dir.path())?;
        let doing = "open the program that runs";
        let ourselves = File::open(OURSELVES).map_err(|source| ExecuteError::Prepare { doing, source })?;
        let (control, admin) = self.control.sockets().descriptors();
        let handoff = Handoff {
            from: record.from.clone(),
            path: self.place.launch.path.clone(),
            run_dir: run_dir.path().to_owned(),
            started_at: record.started_at,
            began_ms: milliseconds(record.began),
            left_ms: milliseconds(clock::now()),
            failed: None,
            control: Some(control.as_raw_fd()),
            admin: admin.map(|admin| admin.as_raw_fd()),
            reconnect: Some(listener.as_fd().as_raw_fd()),
            lock: Some(run_dir.supervisor_lock().as_raw_fd()),
            previous: Some(ourselves.as_raw_fd()),
        };
        Ok((handoff, listener, ourselves))
    }

    /// Nobody gets an answer from a program that is gone.
    fn turn_away_the_waiting(&mut self) {
        let waiting = self.figures.take_waiting().chain(self.operations.take_waiting());
        let unheard = self.requests.try_iter().map(|request| request.reply);
        for reply in waiting.chain(unheard) {
            reply.send(Err(Failure::new(503, "the supervisor is being replaced; ask again")));
        }
        // Who asks from here on is answered as ever, until the control thread has ended.
    }
}
