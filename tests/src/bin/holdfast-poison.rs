//! A server with an application that some messages are fatal to: everything is echoed, but for "poison"
//! (ends the process), "panic" (the same, by way of a panic) and "wedge" (never returns).

use std::process::ExitCode;

use holdfast_supervisor::Program;
use holdfast_worker::app::{App, Context, Message, Protocol};

/// Echo, until it swallows the wrong thing.
struct Delicate;

impl App for Delicate {
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        match message.payload() {
            b"poison" => std::process::abort(),
            b"panic" => panic!("as asked for"),
            b"wedge" => loop {
                std::hint::spin_loop();
            },
            _ => context.send_back(message),
        }
    }
}

fn main() -> ExitCode {
    let version = concat!(env!("CARGO_PKG_VERSION"), "-poison");
    holdfast_supervisor::main(Program {
        version,
        protocols: &[Protocol { name: "echo", app: || Box::new(Delicate) }],
    })
}
