//! A server whose clients have something to lose: each has a counter and a nickname, which outlive whatever
//! happens to the server, and can write to another by name.
//!
//! ```text
//! count            one more               COUNT NICKNAME
//! nick NAME        a new nickname         COUNT NICKNAME
//! to NAME TEXT     to a client of this    sent, or nobody; the other gets NICKNAME: TEXT
//!                  worker by its nickname
//! ```

use std::collections::HashMap;
use std::process::ExitCode;

use holdfast_supervisor::Program;
use holdfast_worker::app::{App, CloseReason, Context, Key, Message, MessageKind, Protocol};

/// What is kept for a client.
struct Session {
    count: u64,
    nickname: String,
}

impl Session {
    fn of(context: &Context<'_>) -> Self {
        let session = context.session();
        let (count, nickname) = session.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let nickname = String::from_utf8_lossy(nickname).into_owned();
        Self { count: u64::from_le_bytes(*count), nickname }
    }

    fn keep(&self, context: &mut Context<'_>) {
        let bytes = [&self.count.to_le_bytes(), self.nickname.as_bytes()].concat();
        if let Err(error) = context.set_session(&bytes) {
            context.close(1011, &error.to_string());
        }
    }
}

/// Knows its clients by name. What it knows dies with its worker, and is learnt again from their sessions.
#[derive(Default)]
struct Memory {
    clients: HashMap<String, Key>,
}

impl Memory {
    fn answer(&mut self, text: &str, context: &mut Context<'_>) -> String {
        let mut session = Session::of(context);
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "count" => session.count += 1,
            "nick" => {
                self.clients.remove(&session.nickname);
                rest.clone_into(&mut session.nickname);
                self.clients.insert(session.nickname.clone(), context.key());
            }
            "to" => {
                let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let message = format!("{}: {text}", session.nickname);
                let is_sent = self
                    .clients
                    .get(name)
                    .is_some_and(|&key| context.send_to(key, MessageKind::Text, message.as_bytes()));
                return if is_sent { "sent" } else { "nobody" }.to_owned();
            }
            _ => {}
        }
        session.keep(context);
        format!("{} {}", session.count, session.nickname)
    }

    fn forget(&mut self, context: &Context<'_>) {
        self.clients.remove(&Session::of(context).nickname);
    }
}

impl App for Memory {
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        let text = String::from_utf8_lossy(message.payload()).into_owned();
        let answer = self.answer(&text, context);
        context.send(MessageKind::Text, answer.as_bytes());
    }

    fn closed(&mut self, _reason: CloseReason, context: &mut Context<'_>) {
        self.forget(context);
    }

    fn resumed(&mut self, context: &mut Context<'_>) {
        self.clients.insert(Session::of(context).nickname, context.key());
    }

    fn moved(&mut self, context: &mut Context<'_>) {
        self.forget(context);
    }
}

fn main() -> ExitCode {
    let version = concat!(env!("CARGO_PKG_VERSION"), "-memory");
    let protocols = &[Protocol { name: "memory", app: || Box::new(Memory::default()) }];
    holdfast_supervisor::main(Program { version, protocols })
}
