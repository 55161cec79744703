//! The thread's runtime: two sites, of which the admin one can get another listener, and their end.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::routes::{Loop, Routes};
use crate::host::http::{Accepting, Bounds, Deadlines, Listener, Site};

/// What clients of each listener may take.
pub const BOUNDS: Bounds = Bounds { connections: 64, head: 16 * 1024, body: 64 * 1024 };

/// How long answers on their way may take to be read once the thread is to end.
const GRACE: Duration = Duration::from_secs(1);

/// What the supervisor tells the thread.
#[derive(Debug)]
pub enum Message {
    /// Serve this admin listener instead of the present one, which listens no more.
    Admin(Option<std::net::TcpListener>),
    /// Finish what is being answered and end.
    Stop,
}

/// The thread's state.
pub struct Server {
    runtime: Runtime,
    control: Accepting,
    admin: Accepting,
    admin_site: Site<Routes>,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// Takes over bound, nonblocking listeners; to be run in a thread of its own.
    pub fn new(
        control: std::os::unix::net::UnixListener,
        admin: Option<std::net::TcpListener>,
        supervisor: &Loop,
        deadlines: Deadlines,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stopping, watcher) = watch::channel(false);
        let site = |name, routes| Site::new(name, routes, BOUNDS, deadlines, watcher.clone());
        let control_site = site("the control socket", Routes::control(supervisor.clone()));
        let admin_site = site("the admin address", Routes::admin(supervisor.clone()));
        let (control, admin) = {
            let _context = runtime.enter();
            let control = Accepting::start(Some(Listener::Unix(control)), &control_site)?;
            (control, Accepting::start(admin.map(Listener::Tcp), &admin_site)?)
        };
        Ok(Self { runtime, control, admin, admin_site, stopping })
    }

    /// Serves until told to stop, or until the supervisor's handle is dropped.
    pub fn run(self, mut inbox: UnboundedReceiver<Message>) {
        let Self { runtime, mut control, mut admin, admin_site, stopping } = self;
        runtime.block_on(async move {
            while let Some(Message::Admin(listener)) = inbox.recv().await {
                admin.end().await;
                match Accepting::start(listener.map(Listener::Tcp), &admin_site) {
                    Ok(accepting) => admin = accepting,
                    Err(error) => log::error!("cannot serve the new admin address: {error}"),
                }
            }
            control.end().await;
            admin.end().await;
            drop(admin_site);
            // Only fails without connections to tell.
            let _ = stopping.send(true);
            // Whoever has not read their answer by then will not get it.
            let _ = tokio::time::timeout(GRACE, stopping.closed()).await;
        });
    }
}
