//! The header fields of a request, looked up by name. Judges none of them.

use httparse::Header;

/// The header fields of a request.
pub(super) struct Headers<'a>(pub(super) &'a [Header<'a>]);

impl<'a> Headers<'a> {
    /// All values under `name`, in order, without the white space around them.
    pub(super) fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let named = self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    }

    /// The value under `name`; an error if there is more than one.
    pub(super) fn single(&self, name: &'static str) -> Result<Option<&'a [u8]>, ()> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(()) } else { Ok(first) }
    }

    /// Whether the comma-separated lists under `name` have `token` among them, in whatever case.
    pub(super) fn lists(&self, name: &'static str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether the request says that a body follows. A length we cannot read counts as one.
    pub(super) fn announce_body(&self) -> bool {
        self.all("transfer-encoding").next().is_some()
            || self.all("content-length").any(|length| length != b"0")
    }
}
