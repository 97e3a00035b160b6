//! Reads the size of a picture from its file's header, so that a wrong shape is found before anybody decodes it.

use crate::tensor::Encoding;

/// Height and width according to the file itself.
pub(crate) fn size(encoding: Encoding, file: &[u8]) -> Result<(usize, usize), String> {
    let (name, size) = match encoding {
        Encoding::Raw => return Err("raw bytes have no header".to_owned()),
        Encoding::Jpeg => ("JPEG", jpeg_size(file)),
        Encoding::Png => ("PNG", png_size(file)),
    };
    size.ok_or_else(|| format!("the bytes are not a whole {name} header"))
}

/// Signature, then the IHDR chunk: length, type, width, height.
fn png_size(file: &[u8]) -> Option<(usize, usize)> {
    if !file.starts_with(b"\x89PNG\r\n\x1a\n") || file.get(12..16)? != b"IHDR" {
        return None;
    }
    let number = |at: usize| Some(u32::from_be_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    Some((number(20)?, number(16)?))
}

/// Walks the segments up to the first start of frame: length, precision, height, width.
fn jpeg_size(file: &[u8]) -> Option<(usize, usize)> {
    let number = |at: usize| Some(usize::from(u16::from_be_bytes(file.get(at..at.checked_add(2)?)?.try_into().ok()?)));
    if !file.starts_with(&[0xff, 0xd8]) {
        return None;
    }
    let mut at = 2;
    loop {
        if *file.get(at)? != 0xff {
            return None;
        }
        let marker = *file.get(at + 1)?;
        match marker {
            0xff => at += 1, // fill byte
            0x01 | 0xd0..=0xd7 => at += 2,
            // Start of frame of any process; C4, C8 and CC share the range and mean other things.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => return Some((number(at + 5)?, number(at + 7)?)),
            0xd8 | 0xd9 | 0xda => return None,
            _ => at += 2 + number(at + 2)?.max(2),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn png_header(height: u32, width: u32) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        file.extend(width.to_be_bytes());
        file.extend(height.to_be_bytes());
        file.extend([8, 2, 0, 0, 0]);
        file
    }

    #[test]
    fn png() {
        assert_eq!(size(Encoding::Png, &png_header(48, 64)), Ok((48, 64)));
        assert!(size(Encoding::Png, &png_header(48, 64)[..20]).is_err());
        assert!(size(Encoding::Png, b"no picture at all").is_err());
    }

    #[test]
    fn jpeg_with_segments_before_the_frame() {
        let mut file = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xff, 0xc4, 0, 2];
        file.extend([0xff, 0xc2, 0, 11, 8, 0, 48, 0, 64, 1, 1, 0x11, 0]);
        assert_eq!(size(Encoding::Jpeg, &file), Ok((48, 64)));
        for length in 0..file.len() - 5 {
            let _ = size(Encoding::Jpeg, &file[..length]); // no prefix may panic
        }
        assert!(size(Encoding::Jpeg, &[0xff, 0xd8, 0xff, 0xda]).is_err());
    }
}
