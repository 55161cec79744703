//! One running Holdfast: its processes, run directory, control socket and log. Whatever a test does, they are
//! gone after it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::PATIENCE;
use crate::control::{Control, Totals};
use crate::http::Response;
use crate::process;
use crate::watch::Watched;

/// The mark by which a test finds its processes, also those whose parent is dead. Its value is the test's own
/// directory.
const MARK: &str = "HOLDFAST_TEST_RUN";

/// How long a poll of the control socket rests between two questions.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// Values that let a test end soon, unless its config file says otherwise: clients of a test seldom answer a
/// close.
const QUICK_END: [(&str, &str); 2] = [("drain.duration", "100ms"), ("timeouts.close", "500ms")];

/// A test that fills the server expects echoes and nothing but them, unless its config file says otherwise.
const NOT_DEGRADED: [(&str, &str); 2] =
    [("degraded.notify_clients", "false"), ("degraded.messages_per_second", "0")];

/// Environment variables that configure Holdfast and may be set where the tests run.
const CONFIGURING: [&str; 6] =
    ["PORT", "WORKERS", "BACKLOG", "MAX_CONNECTIONS", "MAX_PER_IP", "NOTIFY_SOCKET"];

/// How to start a Holdfast.
#[derive(Debug, Clone, Default)]
pub struct Options {
    program: Option<PathBuf>,
    config: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    descriptor_limit: Option<u32>,
    run_dir: Option<PathBuf>,
    default_addresses: bool,
}

impl Options {
    /// With this config file (TOML). Listen and admin addresses on ports of the kernel's choice, and a run
    /// directory, are given as flags.
    #[must_use]
    pub fn config(text: &str) -> Self {
        Self { config: text.to_owned(), default_addresses: true, ..Self::default() }
    }

    /// This server program (a test's `CARGO_BIN_EXE_...`) instead of `holdfast`.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// One more command line argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// At most this many descriptors per process, soft and hard.
    #[must_use]
    pub fn descriptor_limit(mut self, limit: u32) -> Self {
        self.descriptor_limit = Some(limit);
        self
    }

    /// This run directory instead of a fresh one.
    #[must_use]
    pub fn run_dir(mut self, run_dir: &Path) -> Self {
        self.run_dir = Some(run_dir.to_owned());
        self
    }

    /// No `--listen` and `--admin` flags: the config file, the environment or the arguments say where.
    #[must_use]
    pub fn own_addresses(mut self) -> Self {
        self.default_addresses = false;
        self
    }
}

/// A started supervisor, which may not be ready yet.
pub struct Starting {
    process: Watched,
    directory: TempDir,
    run_dir: PathBuf,
}

/// A Holdfast that has said `ready`.
pub struct Holdfast {
    starting: Starting,
    addresses: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    control: Control,
}

impl Starting {
    /// Starts `holdfast run` and does not wait.
    ///
    /// # Panics
    /// When the binary cannot be built or started.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let directory =
            tempfile::Builder::new().prefix("holdfast-test.").tempdir().expect("a temporary directory");
        let run_dir = options.run_dir.clone().unwrap_or_else(|| directory.path().join("run"));
        let config = directory.path().join("holdfast.toml");
        fs::write(&config, &options.config).expect("write the config file");
        let program = options.program.as_deref().unwrap_or_else(|| binary());
        let mut command = command(program, options.descriptor_limit);
        command.arg("run").arg("--config").arg(&config).arg("--run-dir").arg(&run_dir);
        if options.default_addresses {
            command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        }
        // A program of the test's own may be older than these keys.
        let not_degraded = NOT_DEGRADED.iter().filter(|_| options.program.is_none());
        for (key, value) in QUICK_END.iter().chain(not_degraded) {
            if !options.config.contains(key) {
                command.arg("--set").arg(format!("{key}={value}"));
            }
        }
        command
            .args(&options.arguments)
            .env(MARK, directory.path())
            .envs(options.environment.iter().cloned());
        Self { process: Watched::spawn(&mut command), directory, run_dir }
    }

    /// Waits for `ready`.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn ready(self) -> Holdfast {
        let line = self.process.wait_for_line("ready listen=");
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default()
        };
        let addresses: Vec<SocketAddr> = field("listen")
            .split(',')
            .map(|address| address.parse().expect("an address in the ready line"))
            .collect();
        let admin = field("admin").parse().ok();
        let control = Control::new(&self.run_dir);
        Holdfast { addresses, admin, control, starting: self }
    }

    /// Waits for it to give up, and returns how and its log.
    #[must_use]
    pub fn wait_for_exit(&self) -> (ExitStatus, String) {
        let status = self.process.wait_for_exit();
        (status, self.process.lines().join("\n"))
    }

    /// The process under watch.
    #[must_use]
    pub fn process(&self) -> &Watched {
        &self.process
    }

    /// Its run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Its config file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("holdfast.toml")
    }

    /// Every process of this Holdfast that runs now: supervisor, keepers, workers.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        process::marked(MARK, &self.mark())
    }

    fn mark(&self) -> String {
        self.directory.path().to_string_lossy().into_owned()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.process.tail());
        }
        process::kill_marked(MARK, &self.mark());
    }
}

impl std::ops::Deref for Holdfast {
    type Target = Starting;

    fn deref(&self) -> &Starting {
        &self.starting
    }
}

impl Holdfast {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get there.
    #[must_use]
    pub fn start(options: &Options) -> Self {
        Starting::new(options).ready()
    }

    /// Starts one with this config file.
    ///
    /// # Panics
    /// When it does not get there.
    #[must_use]
    pub fn with(config: &str) -> Self {
        Self::start(&Options::config(config))
    }

    /// The first listen address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All listen addresses.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The admin address.
    ///
    /// # Panics
    /// When it is off.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("an admin address")
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The totals now.
    ///
    /// # Panics
    /// When they are refused.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.control.totals()
    }

    /// Waits until the totals are as wanted, and returns them.
    ///
    /// # Panics
    /// When the supervisor ends, or patience does.
    pub fn wait_until(&self, what: &str, mut wanted: impl FnMut(&Totals) -> bool) -> Totals {
        self.poll(what, || self.totals(), |totals| wanted(totals))
    }

    /// Waits until the workers are as wanted, and returns them.
    ///
    /// # Panics
    /// When the supervisor ends, or patience does.
    pub fn wait_for_workers(&self, what: &str, mut wanted: impl FnMut(&[Totals]) -> bool) -> Vec<Totals> {
        self.poll(what, || self.control.workers(), |workers: &Vec<Totals>| wanted(workers))
    }

    /// Asks again and again until the answer is as wanted, and returns it.
    ///
    /// # Panics
    /// When the supervisor ends, or patience does.
    pub fn poll<T: std::fmt::Debug>(
        &self,
        what: &str,
        ask: impl Fn() -> T,
        mut wanted: impl FnMut(&T) -> bool,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask();
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}; last answer: {answer:?}");
            self.process.pause(POLL_PAUSE, what);
        }
    }

    /// The worker pids now, by slot.
    ///
    /// # Panics
    /// When a slot has none at the moment.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<Pid> {
        self.control.workers().iter().map(|worker| pid_of(worker, "pid")).collect()
    }

    /// Replaces the config file, so that nobody reads half of it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) {
        let new = self.config_path().with_extension("new");
        fs::write(&new, text).expect("write the config file");
        fs::rename(new, self.config_path()).expect("replace the config file");
    }

    /// Replaces the config file and asks for a reload over the control socket.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn reload(&self, text: &str) -> Response {
        self.write_config(text);
        self.control.post("/reload")
    }

    /// Runs `holdfast ctl` against it: whether that went well, and all that it printed.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> (bool, String) {
        let run_dir = self.run_dir().to_str().expect("a path in UTF-8");
        let (status, out, errors) = run(&[&["ctl", "--run-dir", run_dir], arguments].concat());
        (status.success(), out + &errors)
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Memory of all its processes, shared pages counted once.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.processes().into_iter().map(process::pss).sum()
    }

    /// As [`Holdfast::memory`], but without the pages of files.
    #[must_use]
    pub fn data_memory(&self) -> u64 {
        self.processes().into_iter().map(process::data_pss).sum()
    }

    /// Ends it the clean way, by SIGTERM, and checks that nothing is left.
    ///
    /// # Panics
    /// When it ends otherwise.
    pub fn stop(self) {
        self.signal(Signal::SIGTERM);
        let status = self.process.wait_for_exit();
        assert!(status.success(), "{status}\n{}", self.process.tail());
        assert_eq!(self.processes(), [], "processes left behind\n{}", self.process.tail());
        let tail = self.process.tail();
        for trouble in ["panicked", "fatal runtime error", "cannot send on the link"] {
            assert!(!tail.contains(trouble), "the end was not clean\n{tail}");
        }
    }
}

/// The process id at `name` of a worker's entry.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn pid_of(worker: &Totals, name: &str) -> Pid {
    Pid::from_raw(i32::try_from(worker.number(name)).expect("a pid fits"))
}

/// Kills a slot's keeper and its worker, so that neither can take the other's place.
///
/// # Panics
/// When it has none at the moment, or one of them is gone.
pub fn kill_slot(worker: &Totals) {
    let (keeper, worker) = (pid_of(worker, "keeper_pid"), pid_of(worker, "pid"));
    for (pid, signal) in [(worker, Signal::SIGSTOP), (keeper, Signal::SIGKILL), (worker, Signal::SIGKILL)] {
        nix::sys::signal::kill(pid, signal).expect("a process to kill");
    }
}

/// Runs `holdfast` with these arguments to its end, and returns its exit status, standard output and standard
/// error.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> (ExitStatus, String, String) {
    let output = command(binary(), None).args(arguments).output().expect("run holdfast");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

/// `program`, in an environment that configures nothing.
fn command(program: &Path, descriptor_limit: Option<u32>) -> Command {
    let mut command = match descriptor_limit {
        None => Command::new(program),
        // The shell lowers the limit of itself, then becomes Holdfast: nothing runs between fork and exec.
        Some(limit) => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\"")).arg(program);
            shell
        }
    };
    for variable in CONFIGURING {
        command.env_remove(variable);
    }
    command.env("RUST_BACKTRACE", "1");
    command
}

/// The binary under test, built once per test process with the profile of the tests.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let build = escargot::CargoBuild::new().manifest_path(manifest).package("holdfast").bin("holdfast");
        let build = if cfg!(debug_assertions) { build.features("test-hooks") } else { build.release() };
        build.run().expect("build holdfast").path().to_owned()
    })
}
