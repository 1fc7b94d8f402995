//! Whether an image file is there to its end. Decoders are forgiving: they fill what is missing
//! with grey, and say nothing. So the file is walked by its own marks: here the chunks of PNG and
//! WebP, in [`super::jpeg`] the markers and scans of JPEG. Pure, no pixels.

/// Finds the end of the image.
///
/// # Errors
/// What is missing.
pub(super) fn end_of_png(bytes: &[u8]) -> Result<usize, String> {
    let mut at = 8;
    loop {
        let header = bytes.get(at..at + 8);
        let header = header.ok_or("it ends before its IEND chunk")?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let name = String::from_utf8_lossy(&header[4..8]).into_owned();
        // Length, name and check sum are twelve bytes.
        let next = at.checked_add(length).and_then(|it| it.checked_add(12));
        let next = next.filter(|next| *next <= bytes.len());
        let missing = || format!("its {name} chunk at byte {at} ends after the file");
        at = next.ok_or_else(missing)?;
        if name == "IEND" {
            return Ok(at);
        }
    }
}

/// As [`end_of_png`], for a RIFF file.
pub(super) fn end_of_webp(bytes: &[u8]) -> Result<usize, String> {
    let word = |at: usize| {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(word) as usize)
    };
    let claimed = word(4).ok_or("it ends inside its header")?;
    let end = claimed.saturating_add(8);
    if end > bytes.len() {
        let found = bytes.len();
        return Err(format!("it has {found} of {end} bytes"));
    }
    let mut at = 12;
    while at + 8 <= end {
        let length = word(at + 4).ok_or("it ends inside the header of a chunk")?;
        // Chunks begin at even offsets. The pad byte of the last one is sometimes left out.
        at = at.saturating_add(8).saturating_add(length);
        if at > end {
            return Err(format!("a chunk of {length} bytes ends after the file"));
        }
        at += at % 2;
    }
    Ok(end)
}
