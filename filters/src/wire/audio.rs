//! How long an uploaded sound is: what calls that transcribe are paid by.

/// Bytes that a second of compressed audio is taken for: 128 kbit/s, as music is encoded. Speech often
/// takes less, so this guesses short rather than long.
const AUDIO_BYTES_PER_SECOND: u64 = 16_000;

/// The length of an audio file, milliseconds; at least one, so that no file is heard for nothing.
pub fn millis(file: &[u8]) -> u64 {
    wav_millis(file)
        .unwrap_or_else(|| (file.len() as u64).saturating_mul(1000) / AUDIO_BYTES_PER_SECOND)
        .max(1)
}

/// The length of a WAV file by its header, milliseconds. The header is the caller's word: one whose
/// numbers disagree with each other says nothing.
fn wav_millis(file: &[u8]) -> Option<u64> {
    let le32 = |at: usize| {
        file.get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_le_bytes)
            .map(u64::from)
    };
    if file.get(..4)? != b"RIFF" || file.get(8..12)? != b"WAVE" {
        return None;
    }
    let le16 = |at: usize| {
        file.get(at..at + 2)?
            .try_into()
            .ok()
            .map(u16::from_le_bytes)
            .map(u64::from)
    };
    let (mut at, mut bytes_per_second) = (12usize, 0u64);
    // Each step moves on by at least a chunk's head, so this ends.
    loop {
        let (id, len) = (file.get(at..at + 4)?, le32(at + 4)?);
        match id {
            b"fmt " => {
                // Players go by the sample rate, so the byte rate alone must not decide. A second
                // header would leave open which one counts.
                let by_samples = le32(at + 12)? * le16(at + 20)?;
                if bytes_per_second > 0 || by_samples != le32(at + 16)? {
                    return None;
                }
                bytes_per_second = by_samples;
            }
            b"data" => {
                let rest = (file.len() - at).saturating_sub(8) as u64;
                // Recorders that cannot go back to fill the length in leave 0 or all ones; both mean
                // up to the end.
                let there = if len == 0 { rest } else { len.min(rest) };
                return (bytes_per_second > 0).then(|| there.saturating_mul(1000) / bytes_per_second);
            }
            _ => {}
        }
        at = at.checked_add(8 + (len as usize) + (len as usize & 1))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_wav() {
        let mut wav =
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data".to_vec();
        wav.extend_from_slice(&16000u32.to_le_bytes());
        wav.extend(vec![0u8; 16000]);
        assert_eq!(wav_millis(&wav), Some(500));
        for cut in 0..44 {
            let _ = wav_millis(&wav[..cut]);
        }
        assert_eq!(wav_millis(b"ID3"), None);
        let mut open = wav.clone();
        open[40..44].copy_from_slice(&[0; 4]);
        assert_eq!(wav_millis(&open), Some(500), "an open end is the file's end");
    }

    #[test]
    fn a_wav_that_contradicts_itself_is_measured_by_its_size() {
        let mut wav =
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\x00\0\0\x7f\x02\0\x10\0data".to_vec();
        wav.extend_from_slice(&32_000u32.to_le_bytes());
        wav.extend(vec![0u8; 32_000]);
        assert_eq!(wav_millis(&wav), None, "a byte rate that makes an hour a second");
        assert_eq!(millis(&wav), 2002);
        assert_eq!(millis(&[0xff; 160_000]), 10_000);
        assert_eq!(millis(b""), 1);
    }
}
