//! `holdfast ctl upgrade`: asks for it, then watches how far it is until it is over. The supervisor that was asked is
//! replaced meanwhile, so nobody may answer for a moment.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{CtlCommand, CtlError, Response, client, print, tables};
use crate::api::{UpgradeReport, UpgradeState};
use crate::operator::control::socket_path;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// How long nobody may answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks for an upgrade and prints what becomes of it: progress as it comes and a summary, or, with `json`, the
/// last report alone.
pub(super) fn run(run_dir: &Path, json: bool) -> Result<(), CtlError> {
    let path = socket_path(run_dir);
    let begun = client::exchange(&path, &(&CtlCommand::Upgrade { status: false }).into())?;
    let mut watch = Watch { path: &path, said: Said::default(), json };
    watch.take(&begun)?;
    let mut answered = Instant::now();
    loop {
        std::thread::sleep(PAUSE);
        match client::exchange(&path, &(&CtlCommand::Upgrade { status: true }).into()) {
            Ok(response) if response.status == 503 && answered.elapsed() < PATIENCE => {}
            Ok(response) => {
                answered = Instant::now();
                if let Some(end) = watch.take(&response)? {
                    return watch.end(&response, end);
                }
            }
            Err(CtlError::Connect { .. } | CtlError::Talk { .. }) if answered.elapsed() < PATIENCE => {}
            Err(error) => return Err(error),
        }
    }
}

struct Watch<'a> {
    path: &'a Path,
    said: Said,
    json: bool,
}

/// What was printed last, so that it is printed once.
#[derive(Debug, Default)]
struct Said {
    state: UpgradeState,
    done: usize,
}

impl Watch<'_> {
    /// Looks at an answer and says what is new in it. Returns the report if it is the last one.
    fn take(&mut self, response: &Response) -> Result<Option<UpgradeReport>, CtlError> {
        if let super::Verdict::Failure(error) = super::judge(&CtlCommand::Upgrade { status: true }, response)
        {
            return Err(CtlError::Refused { status: response.status, error });
        }
        let understand = |error: serde_json::Error| CtlError::Understand {
            path: self.path.to_owned(),
            reason: error.to_string(),
        };
        let report: UpgradeReport = serde_json::from_str(&response.body).map_err(understand)?;
        let news = self.said.news(&report);
        if !self.json {
            news.iter().try_for_each(|line| print(line))?;
        }
        let is_over = matches!(report.state, UpgradeState::Done | UpgradeState::Failed | UpgradeState::None);
        Ok(is_over.then_some(report))
    }

    fn end(&self, response: &Response, report: UpgradeReport) -> Result<(), CtlError> {
        if self.json {
            print(&response.body)?;
        } else {
            print(&tables::upgrade(&report))?;
        }
        match report.state {
            UpgradeState::Done => Ok(()),
            _ => Err(CtlError::UpgradeFailed(
                report.reason.unwrap_or_else(|| "the supervisor knows nothing of an upgrade".to_owned()),
            )),
        }
    }
}

impl Said {
    fn news(&mut self, report: &UpgradeReport) -> Vec<String> {
        let mut news = Vec::new();
        if report.state == UpgradeState::TakingOver && self.state != report.state {
            news.push(format!("version {} -> {}: the new supervisor takes over", report.from, report.to));
        }
        let has_taken_over = self.state == UpgradeState::TakingOver && self.state != report.state;
        if let (true, Some(takeover)) = (has_taken_over, report.takeover_ms) {
            news.push(format!("supervisor replaced, new clients waited {takeover:.1} ms at most"));
        }
        let done: Vec<_> = report.slots.iter().filter(|slot| slot.done).collect();
        for slot in done.iter().skip(self.done) {
            news.push(format!(
                "slot {} replaced ({} of {})",
                slot.result.slot,
                done.len(),
                report.slots.len()
            ));
        }
        (self.state, self.done) = (report.state, done.len());
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{RestartedSlot, UpgradedSlot};

    #[test]
    fn every_step_is_said_once() {
        let mut said = Said::default();
        let slot = |slot: u16, done| UpgradedSlot {
            done,
            result: RestartedSlot { slot, ..RestartedSlot::default() },
            ..UpgradedSlot::default()
        };
        let report = |state, takeover_ms, done: [bool; 2]| UpgradeReport {
            state,
            takeover_ms,
            from: "1".to_owned(),
            to: "2".to_owned(),
            slots: vec![slot(0, done[0]), slot(1, done[1])],
            ..UpgradeReport::default()
        };
        let taking_over = report(UpgradeState::TakingOver, None, [false, false]);
        assert_eq!(said.news(&taking_over), ["version 1 -> 2: the new supervisor takes over"]);
        assert_eq!(said.news(&taking_over), [] as [String; 0]);
        let rolling = report(UpgradeState::Rolling, Some(7.25), [true, false]);
        assert_eq!(said.news(&rolling).len(), 2);
        assert_eq!(said.news(&rolling), [] as [String; 0]);
        let done = report(UpgradeState::Done, Some(7.25), [true, true]);
        assert_eq!(said.news(&done), ["slot 1 replaced (2 of 2)"]);
    }
}
