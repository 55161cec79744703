//! Addresses, networks, origins, paths and what is chosen by name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};

use super::{Problem, Problems, list};
use crate::config::{Balance, ForwardingHeader, RefusalMode, Shed, Value};
use crate::ipc::reconnect::MAX_RUN_DIR_BYTES;
use crate::path::normalise;

const ADDRESS_ALLOWED: &str = "ADDRESS:PORT, such as \"0.0.0.0:8080\" or \"[::]:8080\"";

fn address(value: &Value) -> Result<SocketAddr, Problem> {
    let parsed = match value {
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    parsed.ok_or_else(|| Problem::new(format!("{value} is not an address with a port"), ADDRESS_ALLOWED))
}

/// At least one address.
pub(in crate::config) fn listen(value: &Value) -> Result<Vec<SocketAddr>, Problems> {
    let addresses = list(value, address)?;
    if addresses.is_empty() {
        return Err(Problem::new("no address", format!("one or a list of {ADDRESS_ALLOWED}")).into());
    }
    Ok(addresses)
}

/// An address, or the empty string for none.
pub(in crate::config) fn optional_address(value: &Value) -> Result<Option<SocketAddr>, Problem> {
    if *value == Value::text("") {
        return Ok(None);
    }
    address(value)
        .map(Some)
        .map_err(|problem| Problem { allowed: format!("{ADDRESS_ALLOWED}, or \"\" for off"), ..problem })
}

/// Networks; a bare address is the network of that one address, and an IPv6-mapped one an IPv4 network.
pub(in crate::config) fn networks(value: &Value) -> Result<Vec<IpNet>, Problems> {
    list(value, network)
}

fn network(value: &Value) -> Result<IpNet, Problem> {
    let parsed = match value {
        Value::Text(text) => text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)),
        _ => None,
    };
    let Some(network) = parsed else {
        return Err(Problem::new(
            format!("{value} is not a network"),
            "an address or a CIDR, such as \"10.0.0.0/8\" or \"2001:db8::/32\"",
        ));
    };
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return mapped_network(value, v4, v6.prefix_len());
    }
    without_host_bits(value, network)
}

/// The IPv4 network that one in mapped form stands for: addresses are compared in their own form, so that it
/// would never match.
fn mapped_network(value: &Value, address: Ipv4Addr, prefix: u8) -> Result<IpNet, Problem> {
    let network = prefix.checked_sub(96).and_then(|prefix| Ipv4Net::new(address, prefix).ok());
    let network = network.ok_or_else(|| {
        Problem::new(
            format!("{value} is wider than all IPv4 addresses, which ::ffff:0:0/96 stands for"),
            "an IPv4 network, such as \"127.0.0.0/8\", and an IPv6 network beside it where one is meant too",
        )
    })?;
    without_host_bits(value, network.into())
}

/// Cutting the bits off silently would trust or exempt more than was written.
fn without_host_bits(value: &Value, network: IpNet) -> Result<IpNet, Problem> {
    if network == network.trunc() {
        return Ok(network);
    }
    Err(Problem::new(
        format!("{value} has address bits beyond its prefix"),
        format!("\"{}\", or \"{}\" for the one address", network.trunc(), network.addr()),
    ))
}

/// Origins as browsers serialise them (RFC 6454, section 6.2).
pub(in crate::config) fn origins(value: &Value) -> Result<Vec<String>, Problems> {
    list(value, origin)
}

fn origin(value: &Value) -> Result<String, Problem> {
    let problem = || {
        Problem::new(
            format!("{value} is not an origin"),
            "SCHEME://HOST or SCHEME://HOST:PORT without a path, such as \"https://example.org\", or \"null\"",
        )
    };
    let Value::Text(text) = value else { return Err(problem()) };
    if text == "null" {
        return Ok(text.clone());
    }
    let origin = text.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://").ok_or_else(problem)?;
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let authority_fits = authority.starts_with(|c: char| c != ':')
        && authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
    if !scheme_fits || !authority_fits {
        return Err(problem());
    }
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    Ok(origin.strip_suffix(default_port).unwrap_or(&origin).to_owned())
}

/// The path of upgrade requests in its normal form, without a slash at its end.
pub(in crate::config) fn path(value: &Value) -> Result<String, Problem> {
    let normal = match value {
        Value::Text(text)
            if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#') =>
        {
            normalise(text)
        }
        _ => None,
    };
    let Some(normal) = normal else {
        return Err(Problem::new(
            format!("{value} is not a request path"),
            "a path that starts with \"/\", as it stands in the request: no spaces, no query",
        ));
    };
    let trimmed = normal.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}

/// A directory, or the empty string for the usual places.
pub(in crate::config) fn run_dir(value: &Value) -> Result<Option<PathBuf>, Problem> {
    let allowed =
        || format!("a directory of at most {MAX_RUN_DIR_BYTES} bytes, or \"\" for the usual places");
    match value {
        Value::Text(text) if text.is_empty() => Ok(None),
        Value::Text(text) if text.contains('\0') => {
            Err(Problem::new(format!("{value} contains a zero byte"), allowed()))
        }
        Value::Text(text) if text.len() > MAX_RUN_DIR_BYTES => {
            Err(Problem::new(format!("{} bytes are too long for the sockets in it", text.len()), allowed()))
        }
        Value::Text(text) => Ok(Some(PathBuf::from(text))),
        _ => Err(Problem::new(format!("{value} is not a directory"), allowed())),
    }
}

pub(in crate::config) fn show_run_dir(run_dir: Option<&Path>) -> Value {
    Value::text(run_dir.map_or_else(String::new, |path| path.display().to_string()))
}

pub(in crate::config) fn balance(value: &Value) -> Result<Balance, Problem> {
    let choices = [Balance::Kernel, Balance::LeastConnections, Balance::SourceAddress];
    choices.into_iter().find(|&balance| show_balance(balance) == *value).ok_or_else(|| {
        Problem::new(
            format!("{value} is not a way to balance"),
            "\"kernel\", \"least-connections\" or \"source-address\"",
        )
    })
}

pub(in crate::config) fn shed(value: &Value) -> Result<Shed, Problem> {
    [Shed::None, Shed::Idlest].into_iter().find(|&shed| show_shed(shed) == *value).ok_or_else(|| {
        Problem::new(format!("{value} is not a way to shed connections"), "\"none\" or \"idlest\"")
    })
}

pub(in crate::config) fn show_shed(shed: Shed) -> Value {
    Value::text(match shed {
        Shed::None => "none",
        Shed::Idlest => "idlest",
    })
}

pub(in crate::config) fn show_balance(balance: Balance) -> Value {
    Value::text(match balance {
        Balance::Kernel => "kernel",
        Balance::LeastConnections => "least-connections",
        Balance::SourceAddress => "source-address",
    })
}

pub(in crate::config) fn forwarding_header(value: &Value) -> Result<ForwardingHeader, Problem> {
    let choices = [ForwardingHeader::XForwardedFor, ForwardingHeader::Forwarded];
    choices.into_iter().find(|&header| show_forwarding_header(header) == *value).ok_or_else(|| {
        Problem::new(
            format!("{value} is not a header that addresses are read from"),
            "\"x-forwarded-for\" or \"forwarded\"",
        )
    })
}

pub(in crate::config) fn show_forwarding_header(header: ForwardingHeader) -> Value {
    Value::text(match header {
        ForwardingHeader::XForwardedFor => "x-forwarded-for",
        ForwardingHeader::Forwarded => "forwarded",
    })
}

pub(in crate::config) fn refusal_mode(value: &Value) -> Result<RefusalMode, Problem> {
    let choices = [RefusalMode::Status, RefusalMode::Close];
    choices
        .into_iter()
        .find(|&mode| show_refusal_mode(mode) == *value)
        .ok_or_else(|| Problem::new(format!("{value} is not a way to refuse"), "\"status\" or \"close\""))
}

pub(in crate::config) fn show_refusal_mode(mode: RefusalMode) -> Value {
    Value::text(match mode {
        RefusalMode::Status => "status",
        RefusalMode::Close => "close",
    })
}

pub(in crate::config) fn boolean(value: &Value) -> Result<bool, Problem> {
    match value {
        Value::Boolean(boolean) => Ok(*boolean),
        _ => Err(Problem::new(format!("{value} is neither yes nor no"), "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_networks_become_the_ipv4_networks_that_they_stand_for() {
        let read = |text: &str| networks(&Value::text(text)).map(|networks| networks[0].to_string());
        for (text, network) in [
            ("::ffff:127.0.0.0/104", "127.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(read(text).unwrap(), network, "{text}");
        }
        for (text, what, allowed) in [
            ("::ffff:127.0.0.0/80", "wider than all IPv4 addresses", "an IPv4 network"),
            ("::ffff:127.0.0.1/104", "address bits beyond", "\"127.0.0.0/8\", or \"127.0.0.1\""),
        ] {
            let problem = &read(text).unwrap_err().0[0];
            assert!(problem.what.contains(what) && problem.allowed.contains(allowed), "{problem:?}");
        }
    }

    #[test]
    fn paths_are_kept_in_their_normal_form() {
        for (text, kept) in [("//chat/./x/", "/chat/x"), ("/%63hat", "/chat"), ("/..", "/")] {
            assert_eq!(path(&Value::text(text)).unwrap(), kept);
        }
        assert!(path(&Value::text("/%")).is_err() && path(&Value::text("chat")).is_err());
    }
}
