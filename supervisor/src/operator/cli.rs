//! The command line of `holdfast`: which roles there are and what each takes. Parses and explains; does
//! nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use holdfast_shared::config::{API_KEY_VARIABLE, ENVIRONMENT, FlagValue, Inputs, Value};
use holdfast_shared::secret::Secret;
use holdfast_worker::Program;
use holdfast_worker::keeper::KeeperStart;

use crate::hub::HubStart;
use crate::operator::ctl::CtlRequest;

/// What the process is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Start the server in the foreground (the default)
    Run(RunArguments),
    /// Hold one slot's descriptors; started by the supervisor only
    #[command(hide = true)]
    Keeper(KeeperArguments),
    /// Be the hub of channels; started by the supervisor
    #[command(hide = true)]
    Hub(HubArguments),
    /// Say what this program is, if it would start; asked by the one it is to replace
    #[command(hide = true)]
    Probe(RunArguments),
    /// Validate the configuration that `run` with the same flags would have: exit 0, or 2 with every error
    Check(RunArguments),
    /// Ask or steer the running server
    Ctl(CtlArguments),
}

#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    about = "A pre-fork WebSocket server whose clients do not notice operations",
    after_help = "Without a configuration file everything has a working default. Flags win over the environment \
                  (PORT, WORKERS, BACKLOG, MAX_CONNECTIONS, MAX_PER_IP), which wins over the file.\n\n\
                  Exit codes: 0 clean, 1 failure at run time, 2 bad usage or configuration.",
    args_conflicts_with_subcommands = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

/// Arguments of `holdfast run`. Values stay text: the configuration reads, checks and reports them, together
/// with those of file and environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct RunArguments {
    /// Configuration file (TOML); without one the defaults hold
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to serve; may be repeated [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,
    /// Number of workers, or "auto" for one per CPU [default: auto]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Most connections over all workers, or "auto" for what the host carries up to 100000 [default: auto]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<String>,
    /// Most connections of one client address, 0 for no limit [default: 100]
    #[arg(long, value_name = "N")]
    pub max_connections_per_address: Option<String>,
    /// Directory of the control socket [default: /run/holdfast, else $XDG_RUNTIME_DIR/holdfast, else
    /// /tmp/holdfast-UID]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<String>,
    /// Address for metrics and health, or "" for off [default: 127.0.0.1:8404]
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin: Option<String>,
    /// Set any key of the configuration, such as timeouts.idle=5m; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
}

/// Arguments of `holdfast keeper`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct KeeperArguments {
    /// What it is started with, in JSON
    #[arg(value_name = "JSON", value_parser = keeper_start)]
    pub start: KeeperStart,
}

/// Arguments of `holdfast hub`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HubArguments {
    /// What it is started with, in JSON
    #[arg(value_name = "JSON", value_parser = hub_start)]
    pub start: HubStart,
}

fn hub_start(text: &str) -> Result<HubStart, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn keeper_start(text: &str) -> Result<KeeperStart, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Arguments of `holdfast ctl`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CtlArguments {
    /// Directory of the control socket [default: /run/holdfast, else $XDG_RUNTIME_DIR/holdfast, else
    /// /tmp/holdfast-UID]
    // clap hands global arguments up to the parent by id, where `run` has a --run-dir of its own.
    #[arg(id = "ctl_run_dir", long = "run-dir", value_name = "DIR", global = true)]
    pub run_dir: Option<PathBuf>,
    /// Answer in JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What to ask or do.
    #[command(subcommand)]
    pub request: CtlRequest,
}

/// What this process, a program of `version`, was asked to be. Bad usage, `--help` and `--version` print and
/// exit here (2, 0, 0).
#[must_use]
pub fn parse(version: &'static str) -> Command {
    parse_from(version, std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// As [`parse`], from `arguments`, of which the first is the program's name.
///
/// # Errors
/// Bad usage, and `--help` and `--version`: clap's error knows what to print and how to exit.
pub fn parse_from<A>(
    version: &'static str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<Command, clap::Error>
where
    A: Into<OsString> + Clone,
{
    let matches = CommandLine::command().version(version).try_get_matches_from(arguments)?;
    let CommandLine { command, run } = CommandLine::from_arg_matches(&matches)?;
    Ok(command.unwrap_or(Command::Run(run)))
}

/// What the configuration is made from in this process's environment.
#[must_use]
pub fn inputs(program: Program, arguments: &RunArguments) -> Inputs {
    Inputs {
        file: arguments.config.clone(),
        environment: environment(),
        flags: flags(arguments),
        api_key: std::env::var_os(API_KEY_VARIABLE)
            .filter(|key| !key.is_empty())
            .map(|key| Secret::new(key.into_vec())),
        protocols: program.protocols.iter().map(|protocol| protocol.name).collect(),
    }
}

fn environment() -> Vec<(String, String)> {
    let set = |name: &str| Some((name.to_owned(), std::env::var_os(name)?.to_string_lossy().into_owned()));
    ENVIRONMENT.iter().filter_map(|(name, _)| set(name)).collect()
}

fn flags(arguments: &RunArguments) -> Vec<FlagValue> {
    let flag = |key: &str, value, flag: &str| FlagValue { key: key.to_owned(), value, flag: flag.to_owned() };
    let text = |given: &Option<String>| given.as_deref().map(Value::text);
    let number = |given: &Option<String>| given.as_deref().map(Value::parse);
    let listen = (!arguments.listen.is_empty())
        .then(|| Value::List(arguments.listen.iter().map(|address| Value::text(&**address)).collect()));
    let named = [
        ("listen", listen, "--listen"),
        ("workers", number(&arguments.workers), "--workers"),
        ("run_dir", text(&arguments.run_dir), "--run-dir"),
        ("limits.max_connections", number(&arguments.max_connections), "--max-connections"),
        (
            "limits.max_connections_per_address",
            number(&arguments.max_connections_per_address),
            "--max-connections-per-address",
        ),
        ("admin.listen", text(&arguments.admin), "--admin"),
    ];
    let named = named.into_iter().filter_map(|(key, value, name)| Some(flag(key, value?, name)));
    let set =
        arguments.set.iter().map(|(key, value)| flag(key, Value::parse(value), &format!("--set {key}")));
    named.chain(set).collect()
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE, such as timeouts.idle=5m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use holdfast_shared::config::{MaxConnections, Workers, load};

    use super::*;
    use crate::api::{Command as CtlCommand, DrainOrder, LimitsOrder, Step};

    fn parse(line: &str) -> Result<Command, clap::Error> {
        parse_from("1.2.3", std::iter::once("holdfast").chain(line.split_whitespace()))
    }

    fn run(line: &str) -> RunArguments {
        match parse(line) {
            Ok(Command::Run(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn flags_alone(line: &str) -> Inputs {
        Inputs { flags: flags(&run(line)), ..Inputs::default() }
    }

    #[test]
    fn the_definition_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn run_is_the_default() {
        assert_eq!(run(""), RunArguments::default());
        let line = "--config a.toml --listen 127.0.0.1:1 --listen [::1]:2 --workers 3 --set backlog=9";
        assert_eq!(run(line), run(&format!("run {line}")));
        assert_eq!(run(line).listen, ["127.0.0.1:1", "[::1]:2"]);
    }

    #[test]
    fn ctl_options_stand_before_or_after_the_request() {
        let expected = Command::Ctl(CtlArguments {
            run_dir: Some(PathBuf::from("/x")),
            json: true,
            request: CtlRequest::Supervisor(CtlCommand::Totals),
        });
        for line in [
            "ctl --run-dir /x --json totals",
            "ctl totals --json --run-dir /x",
            "ctl --json totals --run-dir=/x",
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn every_request_has_its_word() {
        for (word, request) in [
            ("totals", CtlCommand::Totals),
            ("workers", CtlCommand::Workers),
            ("config", CtlCommand::Config),
            ("limits", CtlCommand::Limits(LimitsOrder::SHOW)),
            ("health", CtlCommand::Health),
            ("metrics", CtlCommand::Metrics),
            ("reload", CtlCommand::Reload),
            ("restart", CtlCommand::Restart { slot: None }),
            ("restart 3", CtlCommand::Restart { slot: Some(3) }),
            ("upgrade", CtlCommand::Upgrade { status: false }),
            ("upgrade --status", CtlCommand::Upgrade { status: true }),
            ("rebalance", CtlCommand::Rebalance),
            ("drain", CtlCommand::Drain(DrainOrder::new(Step::Begin))),
            ("drain --pause", CtlCommand::Drain(DrainOrder::new(Step::Pause))),
            ("drain --resume", CtlCommand::Drain(DrainOrder::new(Step::Resume))),
            ("stop", CtlCommand::Stop),
        ] {
            let request = CtlRequest::Supervisor(request);
            let expected = Command::Ctl(CtlArguments { run_dir: None, json: false, request });
            assert_eq!(parse(&format!("ctl {word}")).unwrap(), expected);
        }
    }

    #[test]
    fn channels_have_theirs() {
        for (line, is_right) in [
            ("publish chat:42 {}", true),
            ("publish chat:42", true),
            ("channels --prefix chat: --cursor a --limit 7", true),
            ("presence chat:42", true),
            ("history chat:42 --since 3 --limit 7", true),
            ("publish", false),
            ("publish @events 1", false),
            ("history a --since -1", false),
            ("channels --limit 0", false),
        ] {
            let asked = parse(&format!("ctl {line}"));
            let is_channels =
                matches!(asked, Ok(Command::Ctl(CtlArguments { request: CtlRequest::Channels(_), .. })));
            assert_eq!(is_channels, is_right, "{line}: {asked:?}");
        }
    }

    #[test]
    fn keeper_takes_its_slot_and_stays_out_of_the_help() {
        let line = r#"keeper {"slot":3,"last_incarnation":7,"link":10,"table":11,"lock":12,"reconnect_socket":"/x","listeners":[13]}"#;
        let Ok(Command::Keeper(arguments)) = parse(line) else { panic!("{line}: {:?}", parse(line)) };
        assert_eq!((arguments.start.slot.0, arguments.start.listeners), (3, vec![13]));
        assert!(parse("keeper").is_err() && parse("keeper {}").is_err());
        assert!(!CommandLine::command().render_long_help().to_string().contains("keeper"));
    }

    #[test]
    fn probe_and_check_take_what_run_takes() {
        let line = "--config a.toml --listen 127.0.0.1:1 --set backlog=9";
        assert_eq!(parse(&format!("probe {line}")).unwrap(), Command::Probe(run(line)));
        assert_eq!(parse(&format!("check {line}")).unwrap(), Command::Check(run(line)));
        assert!(!CommandLine::command().render_long_help().to_string().contains("probe"));
    }

    #[test]
    fn bad_usage_exits_with_two() {
        for line in [
            "--frobnicate",
            "ctl",
            "ctl dance",
            "--set workers",
            "--set =4",
            "--workers",
            "ctl drain --pause --resume",
            "ctl drain --pause --duration 1s",
            "ctl drain --duration 30",
            "--workers 2 check",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
        assert_eq!(parse("--help").unwrap_err().kind(), ErrorKind::DisplayHelp);
        let version = parse("--version").unwrap_err();
        assert_eq!((version.exit_code(), version.to_string()), (0, "holdfast 1.2.3\n".to_owned()));
    }

    #[test]
    fn flags_reach_the_configuration_under_their_names() {
        let effective = load(&flags_alone(
            "--listen 127.0.0.1:0 --workers auto --max-connections 500 --max-connections-per-address 0 \
             --run-dir 2026 --admin= --set timeouts.idle=0s --set workers=2",
        ))
        .unwrap();
        let config = &effective.config;
        assert_eq!(config.listen, ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(config.workers, Workers::Count(2));
        assert_eq!(config.limits.max_connections, MaxConnections::Count(500));
        assert_eq!(config.limits.max_connections_per_address, None);
        assert_eq!(config.run_dir, Some(PathBuf::from("2026")));
        assert_eq!(config.admin.listen, None);
        assert_eq!(config.timeouts.idle, None);
        assert_eq!(effective.source("limits.max_connections").to_string(), "flag --max-connections");
        assert_eq!(effective.source("workers").to_string(), "flag --set workers");
    }

    #[test]
    fn a_bad_flag_is_named_in_the_error() {
        let error = load(&flags_alone("--workers many --set limits.soft_connection=4")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "flag --set limits.soft_connection: limits.soft_connection: unknown key; did you mean \
             limits.soft_connections?\nflag --workers: workers: \"many\" is not a whole number; allowed: \"auto\" \
             or a whole number from 1 to 1024"
        );
    }
}
