//! Looking through the tables of all slots, which takes another thread some milliseconds; and the list of connections,
//! which is nothing but that.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use holdfast_shared::clock;
use mio::Waker;

use super::{Kind, Operation, Turn};
use crate::api::{Answer, ConnectionRow, ConnectionsQuery, Failure, Reply};
use crate::cluster::{Cluster, Tables};

/// A look through the tables, under way.
#[derive(Debug)]
pub(super) struct Search<T>(Receiver<io::Result<T>>);

impl<T: Send + 'static> Search<T> {
    /// Lets another thread `look`; `waker` wakes the loop when it has.
    pub(super) fn begin(
        cluster: &Cluster,
        waker: &Arc<Waker>,
        look: impl FnOnce(&Tables) -> io::Result<T> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = bounded(1);
        let (tables, waker) = (cluster.tables(), Arc::clone(waker));
        thread::Builder::new().name("search".to_owned()).spawn(move || {
            // Whoever wanted it may have gone.
            let _ = sender.send(look(&tables));
            if let Err(error) = waker.wake() {
                log::error!("cannot wake the supervisor's loop: {error}");
            }
        })?;
        Ok(Self(receiver))
    }

    /// What was found, once it is.
    pub(super) fn take(&self) -> Option<Result<T, Failure>> {
        match self.0.try_recv() {
            Ok(found) => Some(found.map_err(|error| unreadable(&error))),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                Some(Err(Failure::new(500, "the search for connections ended early")))
            }
        }
    }
}

/// What is said when the tables cannot be searched.
pub(super) fn unreadable(error: &io::Error) -> Failure {
    Failure::new(500, format!("cannot look through the connections: {error}"))
}

/// A list that somebody waits for.
#[derive(Debug)]
pub(super) struct List {
    search: Search<Vec<ConnectionRow>>,
    reply: Option<Reply>,
}

impl List {
    /// So many at a time.
    pub(super) const MOST: usize = 4;

    /// Makes the list that `query` asks for; who asked is told at once if that cannot be.
    pub(super) fn begin(
        cluster: &Cluster,
        waker: &Arc<Waker>,
        query: ConnectionsQuery,
        reply: Reply,
    ) -> Option<Self> {
        let search = Search::begin(cluster, waker, move |tables| {
            let found = tables.find(query.sort(), query.limit(), |found| found.is_asked_for(&query))?;
            let now_ms = clock::now_ms();
            Ok(found.iter().map(|found| found.row(now_ms)).collect())
        });
        match search {
            Ok(search) => Some(Self { search, reply: Some(reply) }),
            Err(error) => {
                reply.send(Err(unreadable(&error)));
                None
            }
        }
    }

    /// The way back to whoever asked.
    pub(super) fn into_reply(self) -> Option<Reply> {
        self.reply
    }
}

impl Operation for List {
    fn kind(&self) -> Option<Kind> {
        None
    }

    fn deadline(&self, _: &Cluster) -> Option<Duration> {
        None
    }

    fn turn(&mut self, _: &mut Cluster, _: Turn<'_>) -> bool {
        let Some(found) = self.search.take() else { return false };
        if let Some(reply) = self.reply.take() {
            reply.send(found.map(Answer::Connections));
        }
        true
    }
}
