//! What the API asks the loop: it is carried out between batches, and answered when it counts. Those who wait for an event
//! are kept until there is one.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mio::Waker;

use super::api::{Answer, ApiError, Command, EventsQuery, Inbox, Keys, Reply, Server};
use super::desk::Desk;
use crate::host::http::Listener;

/// Somebody who waits for an event.
#[derive(Debug)]
struct Waiting {
    query: EventsQuery,
    until: Duration,
    reply: Reply,
}

/// The API, and what it has asked.
#[derive(Debug)]
pub(super) struct Calls {
    waker: Arc<Waker>,
    server: Option<(Server, Inbox)>,
    waiting: Vec<Waiting>,
}

impl Calls {
    pub(super) fn new(waker: Waker) -> Self {
        Self { waker: waker.into(), server: None, waiting: Vec::new() }
    }

    /// Serves on these listeners from now on, whoever shows one of `keys`.
    pub(super) fn serve(
        &mut self,
        local: Option<OwnedFd>,
        public: Option<OwnedFd>,
        keys: Keys,
    ) -> io::Result<()> {
        let public = public.map(Listener::from_descriptor).transpose()?;
        if let Some((server, _)) = &self.server {
            server.set_keys(keys);
            server.set_listener(public);
            if let Some(local) = local {
                server.set_local_listener(Listener::from_descriptor(local)?);
            }
        } else if let Some(local) = local {
            let local = Listener::from_descriptor(local)?;
            self.server = Some(Server::start(local, public, keys, Arc::clone(&self.waker))?);
        }
        Ok(())
    }

    /// Carries out what was asked, and answers. No batch may be under way.
    pub(super) fn answer(&mut self, desk: &mut Desk, now: Duration) {
        let Some((_, inbox)) = &self.server else { return };
        let mut answers: Vec<(Reply, Result<Answer, ApiError>)> = Vec::new();
        for call in inbox.take() {
            match call.command {
                Command::Events(query) if !query.wait.is_zero() => {
                    self.waiting.push(Waiting { query, until: now + query.wait, reply: call.reply });
                }
                command => answers.push((call.reply, desk.execute(&command))),
            }
        }
        desk.commit();
        let last = desk.last_event();
        let is_over = |of: &mut Waiting| last > of.query.after || now >= of.until || !of.reply.is_wanted();
        for Waiting { query, reply, .. } in self.waiting.extract_if(.., is_over) {
            answers.push((reply, desk.execute(&Command::Events(query))));
        }
        for (reply, answer) in answers {
            reply.send(answer);
        }
    }

    /// How long the next that waits may still wait.
    pub(super) fn pause(&self, now: Duration) -> Option<Duration> {
        self.waiting.iter().map(|waiting| waiting.until.saturating_sub(now)).min()
    }

    /// Requests, and those of them that were refused or failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        let counts = self.server.as_ref().map(|(server, _)| server.counts().read());
        let of = |wanted: fn(&str) -> bool| -> u64 {
            counts.iter().flatten().filter(|(name, _)| wanted(name)).map(|(_, count)| count).sum()
        };
        (of(|_| true), of(|name| name != "succeeded"))
    }

    /// Ends the API's thread. Whoever waits is told that the hub leaves.
    pub(super) fn stop(&mut self) {
        self.waiting.clear();
        if let Some((server, inbox)) = self.server.take() {
            drop(inbox);
            server.stop();
        }
    }
}
