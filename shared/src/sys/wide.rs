//! Work on long runs of bytes with the widest vectors this processor has. The compiler is told what it may
//! use; the code is plain Rust.

/// XORs `bytes` with the four bytes of `key`, over and over.
pub fn xor(bytes: &mut [u8], key: [u8; 4]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked; the function needs nothing else.
            unsafe { xor_avx2(bytes, key) };
            return;
        }
    }
    xor_portable(bytes, key);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn xor_avx2(bytes: &mut [u8], key: [u8; 4]) {
    xor_portable(bytes, key);
}

#[inline(always)]
fn xor_portable(bytes: &mut [u8], key: [u8; 4]) {
    let word = u64::from(u32::from_ne_bytes(key)) * 0x1_0000_0001;
    let (blocks, tail) = bytes.as_chunks_mut::<64>();
    for block in blocks {
        let (words, _) = block.as_chunks_mut::<8>();
        for bytes in words {
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
    }
    let (words, tail) = tail.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
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
                    xor(&mut bytes[start..], key);
                    assert_eq!(bytes, expected, "start {start}, length {length}");
                }
            }
        }
    }
}
