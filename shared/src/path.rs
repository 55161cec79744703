//! The normal form of a path: what `security.path` and routes are compared in, so that two spellings of a path
//! cannot get different answers. Knows no rule about paths.

use std::borrow::Cow;

/// `path` with dot segments resolved, slashes merged and unreserved characters decoded, as nginx compares paths (its
/// `merge_slashes`) and RFC 3986, section 6.2.2, allows. Other escapes stay escapes, in upper case: `%2F` is a part
/// of a segment's name, not the end of one. `None` when it does not start with a slash or has a `%` that begins
/// no escape.
#[must_use]
pub fn normalise(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') {
        return None;
    }
    if !path.contains('%') && !path.contains("//") && !path.contains("/.") {
        return Some(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            // What is above the root is the root (RFC 3986, section 5.2.4).
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let mut normal: String = segments.iter().flat_map(|segment| ["/", segment]).collect();
    if normal.is_empty() || decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..") {
        normal.push('/');
    }
    Some(Cow::Owned(normal))
}

/// Decodes what need not be escaped (RFC 3986, section 2.3).
fn decode_unreserved(path: &str) -> Option<String> {
    let mut pieces = path.split('%');
    let mut decoded = pieces.next()?.to_owned();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let byte = u8::from_str_radix(digits, 16).ok()?;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            decoded.push(char::from(byte));
        } else {
            decoded.push('%');
            decoded.push_str(&digits.to_ascii_uppercase());
        }
        decoded.push_str(rest);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn different_spellings_are_one_path() {
        for (path, normal) in [
            ("/", "/"),
            ("/chat", "/chat"),
            ("/chat/", "/chat/"),
            ("/chat/../admin", "/admin"),
            ("/chat/%2e%2E/admin", "/admin"),
            ("/chat/.%2e/admin", "/admin"),
            ("/chat/./x/.", "/chat/x/"),
            ("/chat/x/..", "/chat/"),
            ("/..", "/"),
            ("/../../etc", "/etc"),
            ("//chat///room", "/chat/room"),
            ("//", "/"),
            ("/%63hat", "/chat"),
            ("/chat%2f..%2fadmin", "/chat%2F..%2Fadmin"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/..x/.y/...", "/..x/.y/..."),
            ("/%2525", "/%2525"),
        ] {
            assert_eq!(normalise(path).as_deref(), Some(normal), "{path}");
        }
        for path in ["", "chat", "/%", "/%4", "/%zz", "/%+1", "/a%"] {
            assert_eq!(normalise(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_its_own(path in "/([a.%/]|%2[eEfF]|%[46]1|\u{e9}){0,12}") {
            if let Some(normal) = normalise(&path) {
                prop_assert_eq!(normalise(&normal), Some(Cow::Borrowed(&*normal)));
                prop_assert!(normal.split('/').skip(1).all(|segment| segment != "." && segment != ".."));
                prop_assert!(!normal.contains("//"));
            }
        }
    }
}
