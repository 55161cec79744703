//! UTF-8 that arrives in pieces: finds the first bad byte in the piece that brings it, wherever code points
//! are cut. Keeps at most the three bytes of an unfinished code point, never the text.

/// Text that can never become valid UTF-8, whatever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidUtf8;

const SHORT: usize = 128;

/// Whether `text`, all of it, is UTF-8. The fast way for text that came in one piece.
#[inline]
pub(super) fn is_valid(text: &[u8]) -> bool {
    // Short texts are mostly ASCII, and looking for that costs less than calling anybody.
    text.len() <= SHORT && text.is_ascii() || simdutf8::basic::from_utf8(text).is_ok()
}

/// Checks text piece by piece.
#[derive(Debug, Default)]
pub(super) struct PiecewiseUtf8 {
    /// The bytes of a code point whose end has not come.
    unfinished: [u8; 3],
    length: u8,
}

impl PiecewiseUtf8 {
    /// Whether the text so far ends with a whole code point.
    pub(super) fn is_complete(&self) -> bool {
        self.length == 0
    }

    /// Takes the next piece of the text.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let rest = self.finish_code_point(piece)?;
        match simdutf8::compat::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(InvalidUtf8),
            Err(error) => {
                self.keep(&rest[error.valid_up_to()..]);
                Ok(())
            }
        }
    }

    /// Completes the code point left over from earlier pieces; returns what follows it.
    fn finish_code_point<'a>(&mut self, piece: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        let mut rest = piece;
        while self.length > 0 {
            let Some((&byte, after)) = rest.split_first() else { break };
            rest = after;
            let held = usize::from(self.length);
            let mut code_point = [0; 4];
            code_point[..held].copy_from_slice(&self.unfinished[..held]);
            code_point[held] = byte;
            match std::str::from_utf8(&code_point[..=held]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => self.keep(&code_point[..=held]),
            }
        }
        Ok(rest)
    }

    /// Remembers an unfinished code point. The decoders call nothing longer than three bytes unfinished.
    fn keep(&mut self, bytes: &[u8]) {
        for (slot, byte) in self.unfinished.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        self.length = u8::try_from(bytes.len()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The number of bytes after which the validator gives up, if it does.
    fn fails_after(text: &[u8]) -> Option<usize> {
        let mut utf8 = PiecewiseUtf8::default();
        text.iter().position(|byte| utf8.push(&[*byte]).is_err()).map(|at| at + 1)
    }

    #[test]
    fn the_first_impossible_byte_is_found() {
        for (text, expected) in [
            (&b"plain"[..], None),
            ("κόσμε 🦀".as_bytes(), None),
            (b"\x80", Some(1)),
            (b"\xff", Some(1)),
            (b"\xc0\xaf", Some(1)),         // overlong
            (b"\xc3\x28", Some(2)),         // no continuation
            (b"\xe0\x80\x80", Some(2)),     // overlong
            (b"\xed\xa0\x80", Some(2)),     // surrogate
            (b"\xf0\x80\x80\x80", Some(2)), // overlong
            (b"\xf4\x90\x80\x80", Some(2)), // above U+10FFFF
            (b"\xf0\x9f\xa6\x28", Some(4)),
            (b"ok\xe2\x82\xac\xe2\x28", Some(7)),
        ] {
            assert_eq!(fails_after(text), expected, "{text:x?}");
        }
    }

    #[test]
    fn an_unfinished_code_point_is_neither_valid_nor_invalid() {
        for text in [&b"\xc3"[..], b"\xe2\x82", b"\xf0\x9f\xa6", b"abc\xf4\x8f"] {
            let mut utf8 = PiecewiseUtf8::default();
            assert_eq!(utf8.push(text), Ok(()));
            assert!(!utf8.is_complete(), "{text:x?}");
            assert!(!is_valid(text));
        }
    }

    proptest! {
        #[test]
        fn pieces_agree_with_the_whole(
            chunks in prop::collection::vec(prop_oneof![
                8 => prop::collection::vec(any::<char>(), 0..40).prop_map(|s| s.into_iter().collect::<String>().into_bytes()),
                1 => prop::collection::vec(any::<u8>(), 0..3),
            ], 0..6),
            sizes in prop::collection::vec(1usize..90, 1..8),
        ) {
            let text = chunks.concat();
            let mut utf8 = PiecewiseUtf8::default();
            let (mut rest, mut sizes) = (&text[..], sizes.iter().cycle());
            let mut verdict = Ok(());
            while !rest.is_empty() && verdict.is_ok() {
                let (piece, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                verdict = utf8.push(piece);
                rest = after;
            }
            let whole = std::str::from_utf8(&text);
            prop_assert_eq!(verdict.is_ok() && utf8.is_complete(), whole.is_ok());
            prop_assert_eq!(verdict.is_err(), whole.is_err_and(|e| e.error_len().is_some()));
        }
    }
}
