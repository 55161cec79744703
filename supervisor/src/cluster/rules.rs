//! What an operator asks and says about who is let in: why an address would be refused, and which networks are banned.

use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::reason::Rejection;
use ipnet::IpNet;

use super::Cluster;
use super::ledger::{MOST_BANS, Rule, Until};
use crate::api::{BanRow, Explanation, Failure, RuleRow};

impl Cluster {
    /// What every rule of admission says about one more connection of `address`.
    pub(crate) fn explain(&self, address: IpAddr) -> Explanation {
        let address = address.to_canonical();
        let rules: Vec<Rule> = self.ledger.rules(address).collect();
        let refusal = rules.iter().find(|rule| rule.is_refused);
        let ban = self.ledger.bans.of(address, self.now);
        let room = self.waiting_row(refusal.map(|rule| rule.reason));
        let waits = room.as_ref().is_some_and(|room| room.verdict == "waits");
        Explanation {
            address: address.to_string(),
            verdict: match refusal {
                _ if waits => "waits",
                None => "admitted",
                Some(rule) => rule.reason.name(),
            }
            .to_owned(),
            exempt: self.ledger.is_exempt(address),
            trusted_proxy: self.config().proxy.trusted.iter().any(|network| network.contains(&address)),
            ban: ban.map(|(network, until)| self.ban_row(network, until)),
            rules: rules
                .iter()
                .map(|rule| RuleRow {
                    rule: rule.reason.name().to_owned(),
                    limit: rule.limit,
                    value: rule.value,
                    verdict: if rule.is_refused { "refused" } else { "passed" }.to_owned(),
                })
                .chain(room)
                .collect(),
        }
    }

    /// Who is refused for nothing but the cap may wait, if there is a waiting room.
    fn waiting_row(&self, refusal: Option<Rejection>) -> Option<RuleRow> {
        let (places, waiting) = (self.waiting_room.places(), self.waiting_room.len());
        let verdict = match refusal {
            None => "passed",
            Some(Rejection::MaxConnections) if waiting < places => "waits",
            Some(_) => "refused",
        };
        (places > 0).then(|| RuleRow {
            rule: "waiting_room".to_owned(),
            limit: Some(places as u64),
            value: waiting as u64,
            verdict: verdict.to_owned(),
        })
    }

    /// Lets nobody in from `network` any more, for this time or until it is unbanned. Those who are in stay.
    pub(crate) fn ban(&mut self, network: IpNet, time: Option<Duration>) -> Result<Vec<BanRow>, Failure> {
        let until = time.map(|time| self.now.saturating_add(time));
        let before = self.ledger.bans.until(network, self.now);
        if !self.ledger.bans.ban(network, until, self.now) {
            let error = format!("{MOST_BANS} networks are banned already; unban some, or name larger ones");
            return Err(Failure::new(409, error));
        }
        let written = self.ban_file.ban(network, until);
        if let Err(error) = written.and_then(|()| self.ban_file.shrink(&self.ledger.bans, self.now)) {
            self.ledger.bans.unban(network);
            if let Some(until) = before {
                let _ = self.ledger.bans.ban(network, until, self.now);
            }
            return Err(Failure::new(
                500,
                format!("cannot write the bans down, nothing has changed: {error}"),
            ));
        }
        log::warn!("banned {network}{}", time.map_or_else(String::new, |time| format!(" for {time:?}")));
        Ok(self.bans())
    }

    /// Lets clients of exactly this network in again.
    pub(crate) fn unban(&mut self, network: IpNet) -> Result<Vec<BanRow>, Failure> {
        let Some(until) = self.ledger.bans.until(network, self.now) else {
            let error = format!("{network} is not banned; `holdfast ctl bans` shows which networks are");
            return Err(Failure::new(404, error));
        };
        self.ledger.bans.unban(network);
        if let Err(error) = self.ban_file.unban(network) {
            let _ = self.ledger.bans.ban(network, until, self.now);
            return Err(Failure::new(
                500,
                format!("cannot write the bans down, nothing has changed: {error}"),
            ));
        }
        log::warn!("unbanned {network}");
        Ok(self.bans())
    }

    /// All networks that are banned.
    pub(crate) fn bans(&self) -> Vec<BanRow> {
        let all = self.ledger.bans.all(self.now);
        all.into_iter().map(|(network, until)| self.ban_row(network, until)).collect()
    }

    fn ban_row(&self, network: IpNet, until: Until) -> BanRow {
        let seconds_left = until.map(|until| until.saturating_sub(self.now).as_secs_f64());
        BanRow { network: network.to_string(), seconds_left }
    }
}
