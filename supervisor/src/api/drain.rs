//! What an operator may say about a drain, on the command line and over the control socket: begin, pause or
//! resume it, and in what time. Reads and writes words; knows nothing of the drain there is.

use std::time::Duration;

use holdfast_shared::config::{self, FlagValue, Inputs, Value};

use super::{Failure, Query};

/// An order to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct DrainOrder {
    /// Tell nobody to go until --resume, and still let nobody in
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Go on with a paused drain, in the time that was left
    #[arg(long)]
    resume: bool,
    /// Tell the last client so much later, such as 5m, instead of after drain.duration or what is left of it
    #[arg(long, value_name = "D", value_parser = parse_duration, conflicts_with = "pause")]
    pub duration: Option<Duration>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Begin one.
    Begin,
    /// Hold the one under way.
    Pause,
    /// Go on with the one that is held.
    Resume,
}

impl DrainOrder {
    /// An order that says nothing of the time.
    #[must_use]
    pub const fn new(step: Step) -> Self {
        Self { pause: matches!(step, Step::Pause), resume: matches!(step, Step::Resume), duration: None }
    }

    /// What is to be done.
    #[must_use]
    pub fn step(self) -> Step {
        match (self.pause, self.resume) {
            (true, _) => Step::Pause,
            (false, true) => Step::Resume,
            (false, false) => Step::Begin,
        }
    }

    /// Its path on the control socket.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self.step() {
            Step::Begin => "/drain",
            Step::Pause => "/drain/pause",
            Step::Resume => "/drain/resume",
        }
    }

    /// Path and query.
    #[must_use]
    pub fn target(self) -> String {
        match self.duration {
            Some(duration) => format!("{}?duration={}ms", self.path(), duration.as_millis()),
            None => self.path().to_owned(),
        }
    }

    /// The order with what a query says of its time.
    ///
    /// # Errors
    /// 400 when `duration` is none.
    pub fn with_query(self, query: &mut Query) -> Result<Self, Failure> {
        match self.step() {
            Step::Pause => Ok(self),
            Step::Begin | Step::Resume => {
                Ok(Self { duration: query.take("duration", parse_duration)?, ..self })
            }
        }
    }
}

/// As the configuration reads `drain.duration`, with its words if it cannot.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let value =
        FlagValue { key: "drain.duration".to_owned(), value: Value::text(text), flag: "duration".to_owned() };
    let inputs = Inputs { flags: vec![value], ..Inputs::default() };
    config::load(&inputs).map(|effective| effective.config.drain.duration).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_query(step: Step, text: &str) -> Result<DrainOrder, Failure> {
        let mut query = Query::parse("/drain", text);
        let order = DrainOrder::new(step).with_query(&mut query)?;
        query.end()?;
        Ok(order)
    }

    #[test]
    fn a_query_says_how_long() {
        let minute = with_query(Step::Begin, "duration=1m").unwrap();
        assert_eq!(minute.duration, Some(Duration::from_mins(1)));
        assert_eq!(minute.target(), "/drain?duration=60000ms");
        assert_eq!(with_query(Step::Begin, "duration=60000ms"), Ok(minute));
        assert_eq!(with_query(Step::Begin, ""), Ok(DrainOrder::new(Step::Begin)));
        assert_eq!(with_query(Step::Resume, "duration=0s").unwrap().step(), Step::Resume);
    }

    #[test]
    fn what_is_not_understood_is_400_and_says_why() {
        for (step, query, why) in [
            (Step::Begin, "duration=", "drain.duration"),
            (Step::Begin, "duration=30", "no unit"),
            (Step::Begin, "duration=-1s", "drain.duration"),
            (Step::Begin, "duration=900h", "1day"),
            (Step::Resume, "pause", "no such field"),
            (Step::Pause, "duration=1s", "no such field"),
        ] {
            let failure = with_query(step, query).unwrap_err();
            assert_eq!(failure.status, 400, "{query}");
            assert!(failure.error.contains(why), "{query}: {failure}");
        }
    }
}
