//! `holdfast-chaos`: a server of its own, clients of every behaviour, and faults without end; see the library's
//! `chaos`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use holdfast_tests::chaos::{self, Plan};

/// Plays faults against a Holdfast full of clients and checks that nothing is lost that need not be.
#[derive(Debug, Parser)]
#[command(name = "holdfast-chaos", version, max_term_width = 120)]
struct Cli {
    /// Determines which faults come in which order [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long to go on
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(20..=8_000))]
    clients: u16,
    /// Slots of the server
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// The server program [default: the one built from here]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// The `holdfast-next` to upgrade to and back from [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    next: Option<PathBuf>,
}

fn main() {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..=u64::from(u32::MAX)));
    eprintln!("seed {seed}");
    // Where a panic aborts, no destructor ends the processes.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        eprintln!("{}FAILED with seed {seed}", chaos::clean_up());
    }));
    let Cli { duration, clients, workers, program, next, .. } = cli;
    let beside = || std::env::current_exe().unwrap_or_default().with_file_name("holdfast-next");
    let next = next.unwrap_or_else(beside);
    let plan = Plan { program, next, seed, duration, clients: usize::from(clients), workers };
    let summary = chaos::run(&plan);
    let _ = write!(std::io::stdout(), "\n{summary}");
}
