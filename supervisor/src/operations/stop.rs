//! The end, at once: workers tell their clients and leave; who has not left by then is killed.

use std::time::Duration;

use super::{Kind, Operation, Turn};
use crate::cluster::{Cluster, Phase};
use crate::host::notify;

/// How long workers get to tell their clients that it is over, before they are killed.
const GRACE: Duration = Duration::from_secs(1);

/// The service being stopped.
#[derive(Debug)]
pub(super) struct Stop {
    /// `None` once everything was killed.
    until: Option<Duration>,
}

impl Stop {
    pub(super) fn begin(cluster: &mut Cluster) -> Self {
        log::info!("stopping: {} connections are closed", cluster.connections());
        notify::stopping("stopping");
        cluster.begin_ending(Phase::Stopping);
        Self { until: Some(cluster.now() + GRACE) }
    }
}

impl Operation for Stop {
    fn kind(&self) -> Option<Kind> {
        Some(Kind::Stop)
    }

    fn deadline(&self, _: &Cluster) -> Option<Duration> {
        self.until
    }

    fn turn(&mut self, cluster: &mut Cluster, _: Turn<'_>) -> bool {
        if self.until.take_if(|until| cluster.now() >= *until).is_some() {
            cluster.abort();
        }
        // It ends with the process.
        false
    }
}
