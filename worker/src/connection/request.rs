//! From a request to an open connection, or a refusal: reading it is `websocket::handshake`'s business,
//! deciding the application's and the supervisor's; here is what follows from either.

use holdfast_shared::reason::Rejection;
use holdfast_shared::route;
use holdfast_shared::table::{Flags, Phase};

use super::client::Client;
use super::input::Read;
use super::{Clients, Key};
use crate::app::{Context, protocol_id};
use crate::websocket::handshake::{self, Progress, Request, Upgrade};
use crate::websocket::refusal::{Availability, Refusal};

impl Clients {
    /// Reads a piece of a request.
    pub(super) fn read_request(&mut self, key: Key) -> Read {
        // The scratch buffer leaves the worker for the time of this call, so that both can be borrowed.
        let mut scratch = std::mem::take(&mut self.scratch);
        let read = self.connections.receive(key, &mut scratch);
        if let Read::Last(length) | Read::Some(length) = read {
            self.take_request(key, &scratch[..length]);
        }
        self.scratch = scratch;
        read
    }

    fn take_request(&mut self, key: Key, bytes: &[u8]) {
        let Some(record) = self.connections.get(key) else { return };
        let peer = record.address();
        // A request that comes in one piece is read where it lies; one that comes in several is gathered.
        let mut gathered = match self.connections.heap_state(key) {
            Some(heap) => std::mem::take(&mut heap.request),
            None => Vec::new(),
        };
        let request = if gathered.is_empty() {
            bytes
        } else {
            gathered.extend_from_slice(bytes);
            &gathered
        };
        match handshake::read(request, peer, &self.policy) {
            Progress::Incomplete => {
                let kept = if gathered.is_empty() { bytes.to_vec() } else { gathered };
                self.keep_request(key, kept);
            }
            Progress::Upgrade(upgrade) => {
                let head = request.get(upgrade.head.clone()).unwrap_or_default();
                let frames = request.get(upgrade.head.end..).unwrap_or_default();
                if !frames.is_empty() {
                    self.keep_request(key, frames.to_vec());
                }
                if upgrade.is_ignored_proxy {
                    self.ignored_proxies.note(upgrade.address);
                }
                self.connections.keep_accept_key(key, &upgrade);
                match self.ask_app(key, head, &upgrade) {
                    Ok(()) => self.await_admission(key),
                    Err(refusal) => self.connections.refuse(key, &refusal),
                }
            }
            Progress::Health { head_only, .. } => {
                let response = self.availability.response(self.connections.date(), head_only);
                self.connections.respond(key, &response);
            }
            Progress::Refused(refusal) => self.connections.refuse(key, &refusal),
        }
    }

    fn keep_request(&mut self, key: Key, request: Vec<u8>) {
        if let Some(heap) = self.connections.heap_state_or_new(key) {
            heap.request = request;
        }
    }

    /// The request is valid: is there a protocol for its path, and does its application let the client in?
    fn ask_app(&mut self, key: Key, head: &[u8], upgrade: &Upgrade) -> Result<(), Refusal> {
        let Upgrade { path, subprotocols: offered, .. } = upgrade;
        let (protocol, by_route, is_required, above) = match &*self.connections.settings.routes {
            // A supervisor that knows no routes.
            [] => (0, None, false, 0),
            routes => {
                let route = route::find(routes, path).ok_or(Refusal::NO_ROUTE)?;
                let protocol = protocol_id(&route.protocol);
                (protocol, route.choose(offered), route.subprotocol_required, route.path.len())
            }
        };
        let by_route = by_route.map(str::to_owned);
        let below = path.get(above..).unwrap_or_default().trim_start_matches('/');
        if let Some(record) = self.connections.get_mut(key) {
            record.set_address(upgrade.address);
            record.protocol = protocol;
        }
        let (answer, by_app) = match self.turned_away() {
            Some(reason) => (Err(Refusal::admission(reason)), None),
            None => {
                self.request_of_app(key, protocol, &Request { head, path, below, subprotocols: offered })?
            }
        };
        // A client fails a connection that names what it did not offer (RFC 6455, section 4.1).
        let chosen = by_app.filter(|name| offered.contains(name)).or(by_route);
        match chosen {
            Some(name) => self.connections.keep_subprotocol(key, &name),
            None if is_required && answer.is_ok() => return Err(Refusal::NO_SUBPROTOCOL),
            None => {}
        }
        answer
    }

    /// Why nobody is asked about a request, if so.
    fn turned_away(&self) -> Option<Rejection> {
        let pending = self.connections.pending();
        if self.availability == Availability::Draining {
            Some(Rejection::Draining)
        } else if pending > self.connections.settings.max_pending_handshakes {
            // It has one of the places that are kept for health checks.
            Some(Rejection::PendingHandshakes)
        } else {
            None
        }
    }

    /// What the application says to a request, and the subprotocol that it chooses.
    fn request_of_app(
        &mut self,
        key: Key,
        protocol: u16,
        request: &Request<'_>,
    ) -> Result<(Result<(), Refusal>, Option<String>), Refusal> {
        let app = self.apps.get(protocol).ok_or(Refusal::NO_ROUTE)?;
        let mut client = Client::new(&mut self.connections, key);
        let mut context = Context::new(&mut client, &mut self.out);
        let answer = app.request(request, &mut context);
        let chosen = context.take_subprotocol();
        // It is not open yet: nothing that was sent goes out.
        let _ = context.finish();
        Ok((answer, chosen))
    }

    /// The application lets it in: asks the supervisor, and waits.
    fn await_admission(&mut self, key: Key) {
        let deadline_ms = self.connections.verdict_deadline_ms();
        self.connections.enter(key, Phase::AwaitingAdmission, deadline_ms);
        self.asking.push(key);
    }

    /// The supervisor lets this client in.
    pub(crate) fn admit(&mut self, key: Key) {
        self.connections.set_busy(key);
        self.connections.take_switching(key, &mut self.out);
        let now_ms = self.connections.now_ms;
        let ping_due_ms = now_ms + self.connections.random_ping_delay_ms();
        if let Some(record) = self.connections.get_mut(key) {
            // It is read up to the end once more.
            record.flags.set(Flags::READ_ENDED, false);
            record.seen_ms = now_ms;
            record.active_ms = now_ms;
            record.ping_due_ms = ping_due_ms;
        }
        self.connections.mark_admitted(key);
        self.connections.enter(key, Phase::Open, u64::MAX);
        self.connections.arm_open(key);
        self.connections.write(key, &self.out);
        self.out.clear();
        if let Some(record) = self.connections.get_mut(key) {
            record.flags.set(Flags::OPENED, true);
        }
        self.tell_app(key, |app, context| app.opened(context));
        if let Some(notice) = self.notice() {
            self.tell_app(key, |app, context| app.degraded(&notice, context));
        }
        let glued = self.connections.heap_state(key).map(|heap| std::mem::take(&mut heap.request));
        if let Some(mut glued) = glued.filter(|glued| !glued.is_empty()) {
            self.take_frames(key, &mut glued);
        }
        self.read_waiting_input(key);
        self.connections.settle(key);
    }

    /// The supervisor turns this client away.
    pub(crate) fn refuse(&mut self, key: Key, reason: Rejection) {
        self.connections.set_busy(key);
        if let Some(record) = self.connections.get_mut(key) {
            record.flags.set(Flags::READ_ENDED, false);
            if reason == Rejection::MaxConnectionsPerAddress {
                let address = record.address();
                self.ignored_proxies.on_limit(address, self.connections.now_ms);
            }
        }
        self.connections.refuse(key, &Refusal::admission(reason));
        self.read_waiting_input(key);
        self.connections.settle(key);
    }

    /// What came while the client awaited admission made its event then; none will come again for it.
    fn read_waiting_input(&mut self, key: Key) {
        let Some(record) = self.connections.get_mut(key) else { return };
        let input_waits = record.flags.contains(Flags::INPUT_WAITS);
        record.flags.set(Flags::INPUT_WAITS, false);
        if input_waits {
            // Up to the end, should that have come as well.
            self.read(key, true);
        }
    }
}
