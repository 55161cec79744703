//! The program that an upgrade leads to: echoes, and calls itself another version. A copy of it may have a behaviour,
//! which are the bytes behind its last "behaviour:": what is wrong with it, and where.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::ExitCode;

use holdfast_supervisor::Program;
use holdfast_worker::app::{App, Echo, Protocol};

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-next");

const MARK: &[u8] = b"behaviour:";

/// More bytes than a behaviour has.
const TAIL: i64 = 64;

/// The end of our own file: programs may have more bytes than their headers speak of.
fn behaviour() -> String {
    let mut tail = Vec::new();
    if let Ok(mut file) = File::open("/proc/self/exe")
        && file.seek(SeekFrom::End(-TAIL)).is_ok()
    {
        // What cannot be read is no behaviour.
        let _ = file.read_to_end(&mut tail);
    }
    let place = tail.windows(MARK.len()).rposition(|window| window == MARK);
    let behaviour = place.and_then(|place| tail.get(place + MARK.len()..)).unwrap_or_default();
    String::from_utf8_lossy(behaviour).into_owned()
}

fn app() -> Box<dyn App> {
    if behaviour() == "worker-crashes" {
        std::process::abort();
    }
    Box::new(Echo)
}

#[allow(clippy::print_stdout, reason = "a probe is answered on standard output")]
fn main() -> ExitCode {
    let behaviour = behaviour();
    let role = std::env::args().nth(1).unwrap_or_default();
    match (role.as_str(), behaviour.as_str()) {
        ("probe", "refuses") => {
            eprintln!("this program wants a full moon");
            ExitCode::from(2)
        }
        ("probe", "layout") => {
            println!(
                r#"{{"version":"{VERSION}","formats":[{{"name":"connection table","version":99,"reads_since":99}}]}}"#
            );
            ExitCode::SUCCESS
        }
        ("probe", "bad-answer") => {
            println!("hello");
            ExitCode::SUCCESS
        }
        ("probe", "crashes") => std::process::abort(),
        ("probe", "hangs") => loop {
            std::thread::park();
        },
        _ => holdfast_supervisor::main(Program {
            version: VERSION,
            protocols: &[Protocol { name: "echo", app }],
        }),
    }
}
