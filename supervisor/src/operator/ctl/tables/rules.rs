//! Who is let in, as text for people.

use super::super::human;
use super::table;
use crate::api::{BanRow, Explanation, RuleRow};

/// Why an address would be let in or refused.
pub(super) fn explanation(explanation: &Explanation) -> String {
    let mut lines = vec![match explanation.verdict.as_str() {
        "admitted" => format!("{} would be admitted", explanation.address),
        "waits" => format!("{} would wait for a place", explanation.address),
        reason => format!("{} would be refused: {reason}", explanation.address),
    }];
    if explanation.exempt {
        lines.push("exempt: it has no limit and no rate of its own".to_owned());
    }
    if explanation.trusted_proxy {
        lines.push("a trusted proxy: the addresses that it names count, and not its own".to_owned());
    }
    if let Some(ban) = &explanation.ban {
        lines.push(format!("banned as {}, {}", ban.network, time(ban)));
    }
    let row = |rule: &RuleRow| {
        let limit = rule.limit.map_or_else(|| "-".to_owned(), human::count);
        [rule.rule.clone(), limit, human::count(rule.value), rule.verdict.clone()]
    };
    lines.push(table(["RULE", "LIMIT", "NOW", "VERDICT"], explanation.rules.iter().map(row)).trim_fmt());
    lines.join("\n")
}

/// Which networks are banned.
pub(super) fn bans(bans: &[BanRow]) -> String {
    if bans.is_empty() {
        return "nobody is banned".to_owned();
    }
    table(["NETWORK", "FOR"], bans.iter().map(|ban| [ban.network.clone(), time(ban)])).trim_fmt()
}

fn time(ban: &BanRow) -> String {
    ban.seconds_left.map_or_else(|| "until it is unbanned".to_owned(), human::seconds)
}
