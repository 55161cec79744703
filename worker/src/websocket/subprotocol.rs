//! The subprotocols that a request offers (RFC 6455, section 11.3.4). Chooses none.

use super::headers::Headers;

/// What is offered, in the client's order; an error if something among it is not a name.
pub(super) fn offered(headers: &Headers<'_>) -> Result<Vec<String>, &'static str> {
    let mut names = Vec::new();
    for name in headers.all("sec-websocket-protocol").flat_map(|line| line.split(|&byte| byte == b',')) {
        let name = name.trim_ascii();
        // RFC 9110, section 5.6.1: empty list elements count for nothing.
        if name.is_empty() {
            continue;
        }
        if !name.iter().all(|&byte| is_token_byte(byte)) {
            return Err("Sec-WebSocket-Protocol has a name that is not a token");
        }
        names.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(names)
}

/// RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use httparse::Header;

    use super::*;

    #[test]
    fn offers_are_read_in_the_order_of_the_client() {
        let read = |lines: &[&str]| {
            let headers: Vec<_> = lines
                .iter()
                .map(|line| Header { name: "sec-websocket-protocol", value: line.as_bytes() })
                .collect();
            offered(&Headers(&headers))
        };
        assert_eq!(read(&["mqtt"]).unwrap(), ["mqtt"]);
        assert_eq!(read(&["b, a", " c,,"]).unwrap(), ["b", "a", "c"]);
        assert_eq!(
            read(&["graphql-transport-ws,\tGraphql-WS"]).unwrap(),
            ["graphql-transport-ws", "Graphql-WS"]
        );
        assert!(read(&[]).unwrap().is_empty() && read(&[""]).unwrap().is_empty());
        for line in ["a b", "\"mqtt\"", "a/b", "a;b", "caf\u{e9}", "a:b"] {
            assert!(read(&[line]).is_err(), "{line}");
        }
    }
}
