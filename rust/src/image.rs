//! Reads the size of a picture from its file's header, so that a wrong shape is found before anybody decodes it.

use crate::tensor::Encoding;

/// Height, width and channels according to the file itself.
pub(crate) fn shape(encoding: Encoding, file: &[u8]) -> Result<[usize; 3], String> {
    let shape = match encoding {
        Encoding::Raw => return Err("encoding is RAW, which has no header".to_owned()),
        Encoding::Jpeg => jpeg_shape(file),
        Encoding::Png => png_shape(file),
    };
    shape.ok_or_else(|| match encoding {
        Encoding::Png => "encoding is PNG, but the bytes are no 8-bit grey, RGB or RGBA PNG file".to_owned(),
        _ => "encoding is JPEG, but the bytes are no JPEG file with its size in the header".to_owned(),
    })
}

/// Signature, then the IHDR chunk: length, type, width, height, depth, colour type.
fn png_shape(file: &[u8]) -> Option<[usize; 3]> {
    if !file.starts_with(b"\x89PNG\r\n\x1a\n") || file.get(12..16)? != b"IHDR" {
        return None;
    }
    let number = |at: usize| Some(u32::from_be_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    let channels = match (*file.get(24)?, *file.get(25)?) {
        (0..=8, 0) => 1,
        (0..=8, 2 | 3) => 3, // a palette is decoded to RGB
        (0..=8, 6) => 4,
        _ => return None,
    };
    Some([number(20)?, number(16)?, channels])
}

/// Walks the segments up to the first start of frame: length, precision, height, width, components.
fn jpeg_shape(file: &[u8]) -> Option<[usize; 3]> {
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
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                return Some([number(at + 5)?, number(at + 7)?, usize::from(*file.get(at + 9)?)]);
            }
            0xd8..=0xda => return None,
            _ => at += 2 + number(at + 2).filter(|&length| length >= 2)?,
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
        assert_eq!(shape(Encoding::Png, &png_header(48, 64)), Ok([48, 64, 3]));
        assert!(shape(Encoding::Png, &png_header(48, 64)[..25]).is_err());
        assert!(shape(Encoding::Png, b"no picture at all").is_err());
    }

    #[test]
    fn jpeg_with_segments_before_the_frame() {
        let mut file = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xff, 0xc4, 0, 2];
        file.extend([0xff, 0xc2, 0, 11, 8, 0, 48, 0, 64, 1, 1, 0x11, 0]);
        assert_eq!(shape(Encoding::Jpeg, &file), Ok([48, 64, 1]));
        for length in 0..file.len() - 3 {
            assert!(shape(Encoding::Jpeg, &file[..length]).is_err());
        }
        assert!(shape(Encoding::Jpeg, &[0xff, 0xd8, 0xff, 0xda]).is_err());
        assert!(shape(Encoding::Jpeg, &[0xff, 0xd8, 0xff, 0xe0, 0, 0, 0, 0]).is_err());
    }
}
