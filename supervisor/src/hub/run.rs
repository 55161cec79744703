//! The loop of the hub: takes what slots have said, lets it count, wakes who is concerned; and hears from the supervisor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use holdfast_shared::channels::memory::{ChannelMemory, Word};
use holdfast_shared::channels::sleep;
use holdfast_shared::clock;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::codec;
use holdfast_shared::ipc::hub::{FromHub, HubEnd, HubReport, HubSettings, ToHub};
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::settings_memory;
use holdfast_shared::sys::descriptor;
use holdfast_shared::sys::shared_memory::Access;
use holdfast_worker::Program;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use serde::{Deserialize, Serialize};

use super::HubError;
use super::api::Keys;
use super::calls::Calls;
use super::desk::{Desk, DeskSettings, Now};
use super::reconnect::Search;
use super::rings::Rings;

const LINK: Token = Token(0);
const BELL: Token = Token(1);
const CALLS: Token = Token(2);

/// Between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long nothing is taken before it is looked again whether slots have caught up.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(1);

/// What a hub is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubStart {
    /// The link to the supervisor, by descriptor.
    pub link: RawFd,
    /// Where the next supervisor is found when this one is gone.
    pub reconnect_socket: PathBuf,
}

/// Serves until the supervisor says that it is to leave.
///
/// # Errors
/// See [`HubError`].
pub fn run(program: Program, start: HubStart) -> Result<(), HubError> {
    // Whoever can look into this process can write what all clients get.
    nix::sys::prctl::set_dumpable(false).map_err(|error| HubError::Hide(error.into()))?;
    let link = descriptor::claim(start.link)?;
    let mut hub = Hub::new(program, HubEnd::new(link), start.reconnect_socket)?;
    hub.say_hello();
    hub.serve()
}

/// The channel memory and what is done on it.
#[derive(Debug)]
struct Work {
    desk: Desk,
    memory: OwnedFd,
    bell: OwnedFd,
}

#[derive(Debug)]
struct Hub {
    program: Program,
    poll: Poll,
    link: Option<HubEnd>,
    search: Search,
    work: Option<Work>,
    rings: Rings,
    calls: Calls,
    settings: DeskSettings,
    reported: Duration,
    is_leaving: bool,
}

impl Hub {
    fn new(program: Program, link: HubEnd, reconnect_socket: PathBuf) -> Result<Self, HubError> {
        let poll = Poll::new().map_err(HubError::Poll)?;
        let waker = Waker::new(poll.registry(), CALLS).map_err(HubError::Poll)?;
        let hub = Self {
            program,
            poll,
            link: Some(link),
            search: Search::new(reconnect_socket),
            work: None,
            rings: Rings::default(),
            calls: Calls::new(waker),
            settings: DeskSettings::default(),
            reported: Duration::ZERO,
            is_leaving: false,
        };
        hub.watch_link().map_err(HubError::Poll)?;
        Ok(hub)
    }

    fn serve(&mut self) -> Result<(), HubError> {
        let mut events = Events::with_capacity(8);
        while !self.is_leaving {
            let now = clock::now();
            let next = self.turn(now);
            self.report(now);
            self.sleep(&mut events, next.unwrap_or_else(|| self.until_next(now)))?;
            self.hear();
            self.look_for_supervisor(now);
        }
        self.turn(clock::now());
        self.calls.stop();
        log::info!("the hub leaves");
        Ok(())
    }

    /// Takes some of what is there, and lets it count. Says how long may be slept, if not until something comes.
    fn turn(&mut self, now: Duration) -> Option<Duration> {
        let Some(Work { desk, .. }) = &mut self.work else { return None };
        desk.set_time(time(now));
        desk.memory().set(Word::HubAlive, clock::milliseconds(now));
        if self.rings.must_wait_for_slots(desk, now) {
            return Some(CATCH_UP_PAUSE);
        }
        let generation = desk.memory().get(Word::Generation);
        let is_more = self.rings.take(desk);
        desk.commit();
        self.rings.store_positions();
        self.calls.answer(desk, now);
        if desk.memory().get(Word::Generation) != generation {
            self.rings.wake_all();
        }
        let concerns_clients = desk.take_concern();
        self.rings.wake(desk, concerns_clients);
        is_more.then_some(Duration::ZERO)
    }

    /// Waits for something to do, for at most so long.
    fn sleep(&mut self, events: &mut Events, most: Duration) -> Result<(), HubError> {
        let Some(Work { desk, bell, .. }) = self.work.as_ref().filter(|_| !most.is_zero()) else {
            return wait(&mut self.poll, events, most);
        };
        let number = desk.memory().word(Word::HubSleep);
        sleep::fall_asleep(number);
        let most = if most > CATCH_UP_PAUSE && self.rings.has_messages() { Duration::ZERO } else { most };
        let waited = wait(&mut self.poll, events, most);
        sleep::wake_up(number);
        if events.iter().any(|event| event.token() == BELL) {
            sleep::hush(bell.as_fd());
        }
        waited
    }

    /// Hears what the supervisor says.
    fn hear(&mut self) {
        while let Some(link) = &mut self.link {
            let heard = link.flush().and_then(|()| link.receive_with());
            match heard {
                Ok(None) => return,
                Ok(Some((envelope, descriptors))) => {
                    if let Err(error) = self.on_message(&envelope.message, descriptors) {
                        log::error!("{error}");
                    }
                }
                Err(LinkError::Codec(error)) => log::error!("on the supervisor's link, passed over: {error}"),
                Err(error) => {
                    if !matches!(error, LinkError::Closed) {
                        log::error!("{error}");
                    }
                    log::warn!("the supervisor is gone; serving on, and looking for the next");
                    // Closing it takes it off the poll.
                    self.link = None;
                    self.search.begin(clock::now());
                }
            }
        }
    }

    fn on_message(&mut self, message: &ToHub, descriptors: Vec<OwnedFd>) -> Result<(), HubError> {
        let mut descriptors = descriptors.into_iter();
        match *message {
            ToHub::Memory => {
                let (memory, bell) = pair(&mut descriptors, "Memory")?;
                self.begin_work(memory, bell)?;
            }
            ToHub::Configure { generation, has_api } => {
                let settings = descriptors.next().ok_or(HubError::Missing { message: "Configure" })?;
                let error = self.configure(&settings, has_api, descriptors).err();
                self.tell(&FromHub::Applied { generation, error });
            }
            ToHub::Slot { slot } => {
                let (ring, bell) = pair(&mut descriptors, "Slot")?;
                self.add_slot(slot, ring, bell)?;
            }
            ToHub::SlotLost { slot } => self.lose_slot(slot),
            ToHub::AllSlots => {
                if let Some(work) = &mut self.work {
                    work.desk.set_all_slots();
                }
            }
            // What it means for clients is the workers' business.
            ToHub::Level { .. } => {}
            ToHub::Leave => self.is_leaving = true,
        }
        Ok(())
    }

    fn begin_work(&mut self, memory: OwnedFd, bell: OwnedFd) -> Result<(), HubError> {
        if self.work.is_some() {
            return Ok(());
        }
        let mapped = ChannelMemory::map(memory.as_fd(), Access::Write)?;
        // The one before may have died asleep.
        sleep::wake_up(mapped.word(Word::HubSleep));
        let mut desk = Desk::new(mapped, self.settings.clone(), time(clock::now()));
        desk.begin_generation();
        let registry = self.poll.registry();
        registry
            .register(&mut SourceFd(&bell.as_raw_fd()), BELL, Interest::READABLE)
            .map_err(HubError::Poll)?;
        self.work = Some(Work { desk, memory, bell });
        Ok(())
    }

    fn configure(
        &mut self,
        memory: &OwnedFd,
        has_api: bool,
        mut listeners: impl Iterator<Item = OwnedFd>,
    ) -> Result<(), String> {
        let settings = settings_memory::read_for_hub(memory.as_fd()).map_err(|error| error.to_string())?;
        let HubSettings { rules, max_connections_per_user, has_events, api_keys } = settings;
        self.settings = DeskSettings { rules, max_connections_per_user, has_events };
        if let Some(work) = &mut self.work {
            work.desk.configure(self.settings.clone());
        }
        let api = if has_api { listeners.next() } else { None };
        self.calls
            .serve(listeners.next(), api, Keys::new(api_keys))
            .map_err(|error| format!("cannot serve the API: {error}"))
    }

    fn add_slot(&mut self, slot: SlotId, ring: OwnedFd, bell: OwnedFd) -> Result<(), HubError> {
        let Some(work) = &mut self.work else { return Err(HubError::Missing { message: "Memory" }) };
        if self.rings.has(slot.0, ring.as_fd()) {
            return Ok(());
        }
        let redone = work.desk.add_slot(slot.0);
        self.rings.add(slot.0, ring, bell, redone)?;
        // Its worker names all that it has to this hub.
        self.rings.wake_all();
        Ok(())
    }

    fn lose_slot(&mut self, slot: SlotId) {
        let Some(Work { desk, .. }) = &mut self.work else { return };
        desk.commit();
        self.rings.store_positions();
        self.rings.take_all(slot.0, desk);
        self.rings.remove(slot.0);
        desk.lose_slot(slot.0);
        let concerns_clients = desk.take_concern();
        self.rings.wake(desk, concerns_clients);
    }

    /// Tells the supervisor who this is.
    pub(super) fn say_hello(&mut self) {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let version = self.program.version.to_owned();
        self.tell(&FromHub::Hello { pid, version, knows: codec::known::<ToHub>() });
    }

    fn tell(&mut self, message: &FromHub) {
        if let Some(link) = &mut self.link
            && let Err(error) = link.send(Incarnation::ANY, message)
            && !matches!(error, LinkError::Closed)
        {
            log::error!("{error}");
        }
    }

    fn report(&mut self, now: Duration) {
        if now < self.reported + REPORT_INTERVAL {
            return;
        }
        self.reported = now;
        let mut report = HubReport::default();
        if let Some(Work { desk, .. }) = &mut self.work {
            desk.tidy();
            let memory = desk.memory();
            (report.channels, report.subscriptions) = desk.counts();
            report.publications = memory.get(Word::Publications);
            report.queued_bytes = self.rings.queued_bytes();
            (report.api_requests, report.api_errors) = self.calls.counts();
            report.journal_age_ms = desk.journal_age_ms();
            report.journal_bytes = memory.journal_size();
            report.events_dropped = memory.get(Word::EventsDropped);
            report.slowest_slot_bytes = self.rings.slowest(memory);
            report.broken_rings = self.rings.broken();
        }
        self.tell(&FromHub::Report { report });
    }

    fn until_next(&self, now: Duration) -> Duration {
        let report = (self.reported + REPORT_INTERVAL).saturating_sub(now);
        let others = [self.search.pause(now), self.calls.pause(now)];
        others.into_iter().flatten().fold(report, Duration::min)
    }

    fn watch_link(&self) -> io::Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), LINK, Interest::READABLE)
    }

    /// Gives itself to the next supervisor, if there is none and it is time to look.
    fn look_for_supervisor(&mut self, now: Duration) {
        let Some(socket) = self.search.look(now) else { return };
        let mut link = HubEnd::new(socket);
        let slots: Vec<_> = self.rings.descriptors().collect();
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let offer = FromHub::Adopt { pid, slots: slots.iter().map(|&(slot, ..)| SlotId(slot)).collect() };
        let own = self.work.iter().flat_map(|work| [work.memory.as_fd(), work.bell.as_fd()]);
        let descriptors: Vec<_> = own.chain(slots.iter().flat_map(|&(_, ring, bell)| [ring, bell])).collect();
        match link.send_with(Incarnation::ANY, &offer, &descriptors) {
            Ok(()) => {
                self.link = Some(link);
                self.search.end();
                if let Err(error) = self.watch_link() {
                    log::error!("cannot hear the next supervisor: {error}");
                }
                log::info!("found the next supervisor");
                self.say_hello();
            }
            Err(error) => log::info!("{error}; going on without a supervisor, and trying again"),
        }
    }
}

/// A memory and a bell.
fn pair(
    descriptors: &mut impl Iterator<Item = OwnedFd>,
    message: &'static str,
) -> Result<(OwnedFd, OwnedFd), HubError> {
    descriptors.next().zip(descriptors.next()).ok_or(HubError::Missing { message })
}

fn wait(poll: &mut Poll, events: &mut Events, most: Duration) -> Result<(), HubError> {
    match poll.poll(events, Some(most)) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(HubError::Poll(error)),
        _ => Ok(()),
    }
}

fn time(monotonic: Duration) -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { wall_ms: clock::milliseconds(wall), monotonic }
}
