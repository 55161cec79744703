//! Work on long runs of bytes with the widest vectors this processor has. The compiler is told what it may
//! use; the code is plain Rust.

/// XORs `bytes` with the four bytes of `key`, over and over. Says whether all of them are ASCII now: seen in
/// passing, that costs nothing.
pub fn xor(bytes: &mut [u8], key: [u8; 4]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked; the function needs nothing else.
            return unsafe { xor_avx2(bytes, key) };
        }
    }
    xor_portable(bytes, key)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn xor_avx2(bytes: &mut [u8], key: [u8; 4]) -> bool {
    xor_portable(bytes, key)
}

#[inline(always)]
fn xor_portable(bytes: &mut [u8], key: [u8; 4]) -> bool {
    let wide: [u8; 64] = std::array::from_fn(|i| key[i % 4]);
    let mut seen = [0; 64];
    let (blocks, tail) = bytes.as_chunks_mut::<64>();
    for block in blocks {
        for ((byte, key), seen) in block.iter_mut().zip(&wide).zip(&mut seen) {
            *byte ^= key;
            *seen |= *byte;
        }
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
        seen[0] |= *byte;
    }
    seen.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_equals_byte_by_byte() {
        let key = [0x12, 0xf4, 0x00, 0x9c];
        for start in 0..9 {
            for length in 0..300 {
                let original: Vec<u8> = (0u8..=255).cycle().take(start + length).collect();
                let mut expected = original.clone();
                for (byte, key) in expected[start..].iter_mut().zip(key.iter().cycle()) {
                    *byte ^= key;
                }
                for xor in [xor, xor_portable] {
                    let mut bytes = original.clone();
                    let is_ascii = xor(&mut bytes[start..], key);
                    assert_eq!(bytes, expected, "start {start}, length {length}");
                    assert_eq!(is_ascii, bytes[start..].is_ascii(), "start {start}, length {length}");
                }
            }
        }
    }

    #[test]
    fn one_byte_that_is_not_ascii_is_seen_wherever_it_is() {
        for length in [1, 63, 64, 65, 200] {
            for odd in 0..length {
                let mut bytes = vec![b'a'; length];
                assert!(xor(&mut bytes, [0; 4]));
                bytes[odd] = 0x80;
                assert!(!xor(&mut bytes, [0; 4]), "byte {odd} of {length}");
            }
        }
    }
}
