//! Starting the service: everything that can be wrong is found out here, in the order an operator would want
//! to hear of it, before any process is made. A start that cannot work stops at once, with the reason and the
//! remedy.

use holdfast_shared::config::{Effective, Inputs};
use holdfast_worker::Program;
use nix::sys::prctl;

use crate::cluster::Foundation;
use crate::cluster::listeners::Listeners;
use crate::cluster::state::State;
use crate::host::capacity::{self, Demand};
use crate::host::kernel;
use crate::host::launch::{InheritedSockets, Launch};
use crate::host::run_dir::RunDir;
use crate::host::signals::Signals;
use crate::operations::adoption;
use crate::operations::upgrade::ReceivedHandoff;
use crate::supervisor::{Origin, Supervisor, SupervisorError};

/// Prepares the service of `program` that `effective` describes; `inputs` is where it came from, to be read again on
/// reload, `launch` how the process was started, and `handoff` what an earlier program in it has left.
///
/// # Errors
/// See [`SupervisorError`]; nothing stays behind.
pub(crate) fn prepare(
    program: Program,
    inputs: Inputs,
    effective: Effective,
    launch: Launch,
    mut handoff: Option<&mut ReceivedHandoff>,
) -> Result<Supervisor, SupervisorError> {
    let config = &effective.config;
    let slots = capacity::workers(config.workers);
    let descriptors = kernel::raise_descriptor_limit().map_err(|error| SupervisorError::Kernel {
        doing: "raise the descriptor limit",
        source: error.into(),
    })?;
    let descriptors = u32::try_from(descriptors).unwrap_or(u32::MAX);
    let capacity = capacity::plan(Demand::of(config, slots, descriptors))?;
    let (mut run_dir, sockets, listener) = match &mut handoff {
        Some(handoff) => {
            let run_dir = RunDir::inherit(&handoff.run_dir, handoff.lock.take())?;
            (run_dir, std::mem::take(&mut handoff.sockets), handoff.reconnect.take())
        }
        None => (RunDir::acquire(config.run_dir.as_deref())?, InheritedSockets::default(), None),
    };
    // From here on a signal waits for the loop.
    let signals = Signals::install()
        .map_err(|source| SupervisorError::Kernel { doing: "install signal handlers", source })?;
    let adopted = if run_dir.is_inhabited() { adoption::gather(&mut run_dir, listener)? } else { Vec::new() };
    let adopted_hub = adoption::gather_hub(run_dir.path());
    let slots = adoption::slots(slots, &adopted);
    let capacity =
        if adopted.is_empty() { capacity } else { capacity::plan(Demand::of(config, slots, descriptors))? };
    let mut state = State::open(run_dir.path(), slots.into(), !adopted.is_empty())?;
    let mut adopted = adopted;
    let listeners = if adopted.is_empty() {
        Listeners::bind(&config.listen, slots, config.backlog)?
    } else {
        adoption::listeners(config, slots, &mut adopted, &state)?
    };
    state.set_places(listeners.places());
    // The workers of a keeper that dies become ours to wait for: only then is it known that their descriptors
    // are closed.
    prctl::set_child_subreaper(true).map_err(|error| SupervisorError::Kernel {
        doing: "become the reaper of workers without a keeper",
        source: error.into(),
    })?;
    log::info!(
        "holdfast {}: {slots} workers, {descriptors} descriptors each, up to {} connections, \
         up to {} MiB buffered for them by each worker",
        program.version,
        capacity.max_connections,
        capacity.buffered_per_worker >> 20
    );
    let handoff = handoff.as_deref();
    let origin = Origin { program, launch, inputs, signals, handoff, sockets };
    let foundation = Foundation {
        effective,
        descriptors,
        capacity,
        run_dir,
        state,
        listeners,
        slots,
        adopted,
        adopted_hub,
        is_upgrade: handoff.is_some(),
    };
    Supervisor::new(origin, foundation)
}

/// What is said when the process ends with a failure.
#[must_use]
pub(crate) fn explain(error: &SupervisorError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
