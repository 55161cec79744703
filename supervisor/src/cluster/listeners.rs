//! The listening sockets: for each address a SO_REUSEPORT group with one socket per slot. Made once, before
//! any worker, and never closed between workers: closing the last copy of one would reset the clients queued
//! on it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use holdfast_shared::id::SlotId;
use holdfast_shared::sys::listener::{AcceptQueue, accept_queue};
use nix::sys::socket::{Backlog, listen};
use socket2::{Domain, Protocol, Socket, Type};

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else does.
    #[error(
        "cannot listen on {address}: the port is taken; `ss -ltnp 'sport = :{}'` names who has it. \
         Stop that, or listen elsewhere (listen, --listen or PORT)", address.port()
    )]
    Taken { address: SocketAddr },
    /// Ports below 1024 are privileged.
    #[error(
        "cannot listen on {address}: no right to use a port below 1024; grant CAP_NET_BIND_SERVICE \
         (AmbientCapabilities= in the systemd unit) or listen on a higher port (listen, --listen or PORT)"
    )]
    Forbidden { address: SocketAddr },
    /// The machine does not have the address.
    #[error("cannot listen on {address}: this machine has no such address; `ip address` lists those it has")]
    NoSuchAddress { address: SocketAddr },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other { address: SocketAddr, source: io::Error },
}

/// All listening sockets.
#[derive(Debug)]
pub struct Listeners {
    addresses: Vec<SocketAddr>,
    /// By slot, then by address.
    sockets: Vec<Vec<Socket>>,
    /// The slot of each place in a group, which is what the kernel's steering goes by.
    places: Option<Vec<usize>>,
}

impl Listeners {
    /// Listens on every address, with one socket for each of `slots`.
    ///
    /// # Errors
    /// See [`ListenError`]; nothing stays behind.
    pub fn bind(addresses: &[SocketAddr], slots: u16, backlog: u32) -> Result<Self, ListenError> {
        let mut bound = Vec::new();
        let mut sockets: Vec<Vec<Socket>> = (0..slots).map(|_| Vec::new()).collect();
        for &address in addresses {
            let explain = |source| explain(address, source);
            refuse_if_taken(address).map_err(explain)?;
            // With port 0 the first socket learns the port, and the others join it there.
            let mut address = address;
            for of_slot in &mut sockets {
                let socket = bind_one(address, backlog).map_err(explain)?;
                if let Some(actual) = socket.local_addr().map_err(explain)?.as_socket() {
                    address = actual;
                }
                of_slot.push(socket);
            }
            bound.push(address);
        }
        Ok(Self { addresses: bound, sockets, places: Some((0..usize::from(slots)).collect()) })
    }

    /// Goes on with the sockets of earlier slots, all of which listen on `addresses`, and joins new ones to
    /// their groups for those of `slots` that bring none. `places` is what was known of the groups.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub(crate) fn adopt(
        addresses: &[SocketAddr],
        mut adopted: BTreeMap<usize, Vec<Socket>>,
        slots: usize,
        backlog: u32,
        places: Option<Vec<usize>>,
    ) -> Result<Self, ListenError> {
        let left: Vec<usize> = adopted.keys().copied().collect();
        let mut places = places.and_then(|places| without_the_closed(places, &left));
        let mut sockets = Vec::new();
        for slot in 0..slots {
            sockets.push(match adopted.remove(&slot) {
                Some(sockets) => sockets,
                None => {
                    places.iter_mut().for_each(|places| places.push(slot));
                    let bind = |&address| bind_one(address, backlog).map_err(|error| explain(address, error));
                    addresses.iter().map(bind).collect::<Result<_, _>>()?
                }
            });
        }
        let listeners = Self { addresses: addresses.to_vec(), sockets, places };
        if let Err(error) = listeners.set_backlog(backlog) {
            log::error!("cannot set the backlog of adopted listeners: {error}");
        }
        Ok(listeners)
    }

    /// Joins the sockets of `count` more slots to the groups.
    ///
    /// # Errors
    /// See [`ListenError`]; nothing has changed then.
    pub(crate) fn open(&mut self, count: usize, backlog: u32) -> Result<(), ListenError> {
        let bind = |&address| bind_one(address, backlog).map_err(|error| explain(address, error));
        let all = |_| self.addresses.iter().map(bind).collect::<Result<Vec<_>, _>>();
        let new = (0..count).map(all).collect::<Result<Vec<_>, _>>()?;
        for sockets in new {
            let slot = self.sockets.len();
            self.places.iter_mut().for_each(|places| places.push(slot));
            self.sockets.push(sockets);
        }
        Ok(())
    }

    /// Closes our copies of the last slot's sockets. Whoever still queues there is reset.
    pub(crate) fn close_last(&mut self) {
        if self.sockets.pop().is_some() {
            let left: Vec<usize> = (0..self.sockets.len()).collect();
            self.places = self.places.take().and_then(|places| without_the_closed(places, &left));
        }
    }

    /// The slot of each place in the groups, if it is known.
    pub(crate) fn places(&self) -> Option<&[usize]> {
        self.places.as_deref()
    }

    /// The addresses, with the ports the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The sockets of one slot.
    pub fn of_slot(&self, slot: SlotId) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.get(usize::from(slot.0)).into_iter().flatten().map(|socket| socket.as_fd())
    }

    /// One socket of each address's group, standing for all of it.
    pub fn groups(&self) -> impl Iterator<Item = (SocketAddr, BorrowedFd<'_>)> {
        self.addresses.iter().copied().zip(self.of_slot(SlotId(0)))
    }

    /// How many clients wait on a slot's listeners, and how many may.
    #[must_use]
    pub fn accept_queue(&self, slot: SlotId) -> AcceptQueue {
        let queues = self.of_slot(slot).filter_map(|socket| accept_queue(socket.as_raw_fd()).ok());
        queues.fold(AcceptQueue::default(), |sum, queue| AcceptQueue {
            length: sum.length + queue.length,
            limit: sum.limit + queue.limit,
        })
    }

    /// Sets how many clients each socket may queue, on the living sockets.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        for socket in self.sockets.iter().flatten() {
            listen(socket, kernel_backlog(backlog))?;
        }
        Ok(())
    }
}

/// What is left of the groups when the sockets of all but the slots in `left` are closed. The kernel puts the
/// last socket of a group into the place of one that is closed (`__reuseport_detach_sock`), so with several
/// closed it depends on their order, which nobody saw: then there is no telling.
fn without_the_closed(mut places: Vec<usize>, left: &[usize]) -> Option<Vec<usize>> {
    let closed: Vec<usize> = (0..places.len()).filter(|&place| !left.contains(&places[place])).collect();
    match closed[..] {
        [] => {}
        [place] => drop(places.swap_remove(place)),
        _ => return None,
    }
    (places.len() == left.len()).then_some(places)
}

/// A socket of ours would join the group of another server of the same user instead of failing. One without
/// SO_REUSEPORT fails whenever anybody listens there.
fn refuse_if_taken(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let probe = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    probe.set_reuse_address(true)?;
    if address.is_ipv6() {
        probe.set_only_v6(true)?;
    }
    probe.bind(&address.into())
}

fn bind_one(address: SocketAddr, backlog: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it: replies leave at once, and nobody has to set it for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    listen(&socket, kernel_backlog(backlog))?;
    Ok(socket)
}

/// The kernel cuts it to net.core.somaxconn by itself.
fn kernel_backlog(backlog: u32) -> Backlog {
    i32::try_from(backlog)
        .ok()
        .and_then(|backlog| Backlog::new(backlog).ok())
        .unwrap_or(Backlog::MAXALLOWABLE)
}

fn explain(address: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken { address },
        io::ErrorKind::PermissionDenied => ListenError::Forbidden { address },
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress { address },
        _ => ListenError::Other { address, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_PORT: &str = "127.0.0.1:0";

    #[test]
    fn all_slots_share_the_port_the_kernel_chose() {
        let listeners = Listeners::bind(&[ANY_PORT.parse().unwrap()], 3, 16).unwrap();
        assert_ne!(listeners.addresses()[0].port(), 0);
        assert_eq!(listeners.sockets.len(), 3);
        assert_eq!(listeners.accept_queue(SlotId(0)), AcceptQueue { length: 0, limit: 16 });
        listeners.set_backlog(8).unwrap();
        assert_eq!(listeners.accept_queue(SlotId(2)).limit, 8);
    }

    #[test]
    fn the_places_of_a_group_follow_the_one_that_is_closed() {
        let places = |left: &[usize]| without_the_closed(vec![0, 1, 2, 3], left);
        assert_eq!(places(&[0, 1, 2, 3]), Some(vec![0, 1, 2, 3]));
        assert_eq!(places(&[0, 2, 3]), Some(vec![0, 3, 2]));
        assert_eq!(places(&[0, 1, 2]), Some(vec![0, 1, 2]));
        assert_eq!(places(&[2, 3]), None);
        assert_eq!(places(&[0, 1, 2, 3, 4]), None);
    }

    #[test]
    fn new_sockets_join_adopted_ones_behind_them() {
        let mut first = Listeners::bind(&[ANY_PORT.parse().unwrap()], 3, 16).unwrap();
        let kept = [(0, first.sockets.remove(0)), (2, first.sockets.remove(1))];
        let (addresses, places) = (first.addresses.clone(), first.places.clone());
        drop(first);
        let listeners = Listeners::adopt(&addresses, kept.into(), 4, 16, places).unwrap();
        assert_eq!(listeners.places(), Some(&[0, 2, 1, 3][..]));
        assert!((0..4).all(|slot| listeners.accept_queue(SlotId(slot)).limit == 16));
    }

    #[test]
    fn slots_come_and_go_at_the_end() {
        let mut listeners = Listeners::bind(&[ANY_PORT.parse().unwrap()], 1, 16).unwrap();
        listeners.open(2, 8).unwrap();
        assert_eq!((listeners.places(), listeners.accept_queue(SlotId(2)).limit), (Some(&[0, 1, 2][..]), 8));
        listeners.close_last();
        listeners.close_last();
        assert_eq!((listeners.places(), listeners.sockets.len()), (Some(&[0][..]), 1));
    }

    #[test]
    fn a_port_in_use_is_refused_even_when_its_owner_would_share_it() {
        let first = Listeners::bind(&[ANY_PORT.parse().unwrap()], 1, 16).unwrap();
        let error = Listeners::bind(first.addresses(), 1, 16).unwrap_err();
        assert!(matches!(error, ListenError::Taken { .. }));
        assert!(error.to_string().contains("ss -ltnp"), "{error}");
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let error = Listeners::bind(&["192.0.2.1:0".parse().unwrap()], 1, 16).unwrap_err();
        assert!(matches!(error, ListenError::NoSuchAddress { .. }));
    }
}
