//! What `watch` shows: one line about all clients, kept up to date in place on a terminal, written anew once
//! a second elsewhere. Knows no socket.

use std::fmt::{self, Display, Formatter};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::wire::Progress;

/// Between two lines, on a terminal and elsewhere.
const IN_PLACE: Duration = Duration::from_millis(100);
const ANEW: Duration = Duration::from_secs(1);

/// The line.
#[derive(Debug)]
pub struct Line {
    on_terminal: bool,
    last: Option<Instant>,
}

impl Line {
    /// Not shown yet.
    pub fn new() -> Self {
        Self { on_terminal: io::stdout().is_terminal(), last: None }
    }

    /// Shows how things stand, if it is time to.
    pub fn show(&mut self, progress: &Progress) {
        let interval = if self.on_terminal { IN_PLACE } else { ANEW };
        if self.last.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.last = Some(Instant::now());
        // Carriage return and "erase to end of line" keep it one line.
        let line = match self.on_terminal {
            true => format!("\r{}\x1b[K", Standing(progress)),
            false => format!("{}\n", Standing(progress)),
        };
        let mut out = io::stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }

    /// Leaves it on the screen.
    pub fn end(&self) {
        if self.on_terminal {
            let _ = io::stdout().write_all(b"\n");
        }
    }
}

struct Standing<'a>(&'a Progress);

impl Display for Standing<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Progress { open, units, lost, longest_wait, .. } = self.0;
        let (open, lost, counter) = (Grouped(*open), Grouped(*lost), Grouped(*units));
        write!(
            f,
            "{open} clients, {lost} lost, longest pause {} ms, counter {counter}",
            longest_wait.as_millis()
        )
    }
}

/// A number with a comma between thousands.
struct Grouped(u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (n, digit) in digits.chars().enumerate() {
            if n > 0 && (digits.len() - n).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_reads_well() {
        let longest_wait = Duration::from_micros(31_400);
        let progress = Progress { open: 1_000, units: 1_234_567, longest_wait, ..Progress::default() };
        let line = Standing(&progress).to_string();
        assert_eq!(line, "1,000 clients, 0 lost, longest pause 31 ms, counter 1,234,567");
        assert_eq!(Grouped(999).to_string(), "999");
    }
}
