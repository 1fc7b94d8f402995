//! Whether a JPEG is there to its end: all its markers, all bits of all coefficients that its scans
//! announce, and, if asked, all blocks of each scan. Tools that repair a cut file write the end
//! marker after what they have, so the marker alone proves little. Pure, no pixels.

use super::huffman::{Bits, Table};

/// Spectral coefficients of a block.
const COEFFICIENTS: usize = 64;
/// The bit of a coefficient that no scan has sent.
const NOT_SENT: u8 = u8::MAX;
const NO_END: &str = "it ends before its end-of-image marker";

/// A component of a frame.
struct Component {
    id: u8,
    /// Blocks of a unit of interleaved scans, across and down.
    across: usize,
    down: usize,
    /// The lowest bit that a scan has sent, by coefficient.
    lowest_bit: [u8; COEFFICIENTS],
    /// The coefficients of each block that are not zero so far, a bit each. Scans that refine them
    /// have a bit for each of these. Only in progressive frames.
    nonzero: Vec<u64>,
}

/// What the markers have said so far.
#[derive(Default)]
struct Walk {
    progressive: bool,
    width: usize,
    height: usize,
    components: Vec<Component>,
    /// Huffman tables of DC and AC, by number.
    tables: [[Option<Table>; 4]; 2],
    /// Units between restart markers; 0: none.
    restart: usize,
}

/// One scan: its components with their tables of DC and AC, and the coefficients that it sends.
struct Scan {
    components: Vec<(usize, usize, usize)>,
    first: usize,
    last: usize,
    /// The bit that an earlier scan has sent; 0: none has.
    high: u8,
    low: u8,
}

/// Finds the end of the image. With `blocks`, counts the blocks of each scan, which takes about as
/// long as a third of decoding.
///
/// # Errors
/// What is missing.
pub(super) fn end_of_jpeg(bytes: &[u8], blocks: bool) -> Result<usize, String> {
    let mut walk = Walk::default();
    let mut at = 2;
    loop {
        let (marker, after) = next_marker(bytes, at)?;
        at = after;
        if marker == 0xd9 {
            walk.all_sent()?;
            return Ok(at);
        }
        // Restart markers, the start of an image and TEM have no length.
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let segment = segment(bytes, at)?;
        at += 2 + segment.len();
        match marker {
            0xc4 => walk.read_tables(segment),
            0xc8 | 0xcc => {}
            0xc0..=0xcf => walk.read_frame(marker, segment),
            0xdd => {
                walk.restart = segment
                    .first_chunk()
                    .map_or(0, |it| u16::from_be_bytes(*it).into())
            }
            0xda => {
                let end = end_of_scan(bytes, at);
                if let Some(scan) = walk.read_scan(segment) {
                    if blocks {
                        walk.check_blocks(&scan, &bytes[at..end])?;
                    }
                    walk.note_sent(&scan);
                }
                at = end;
            }
            _ => {}
        }
    }
}

/// The next marker at or after `at`, and the offset after it. Bytes before a marker are skipped, as
/// libjpeg does.
fn next_marker(bytes: &[u8], at: usize) -> Result<(u8, usize), String> {
    let mut rest = at;
    loop {
        let tail = bytes.get(rest..).unwrap_or_default();
        let found = tail.iter().position(|byte| *byte == 0xff);
        rest += found.ok_or(NO_END)? + 1;
        match bytes.get(rest) {
            None => return Err(NO_END.to_owned()),
            Some(0x00) => rest += 1,
            // Markers may be preceded by any number of fill bytes.
            Some(0xff) => {}
            Some(marker) => return Ok((*marker, rest + 1)),
        }
    }
}

/// The content of a segment, after its length.
fn segment(bytes: &[u8], at: usize) -> Result<&[u8], String> {
    let cut = || format!("it ends inside the segment at byte {at}");
    let length = bytes.get(at..at + 2).ok_or_else(cut)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        return Err(format!("the segment at byte {at} has length {length}"));
    }
    bytes.get(at + 2..at + length).ok_or_else(cut)
}

/// The offset of the first marker that is not part of the scan's data.
fn end_of_scan(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    loop {
        let tail = bytes.get(at..).unwrap_or_default();
        match tail.iter().position(|byte| *byte == 0xff) {
            None => return bytes.len(),
            Some(offset) => match bytes.get(at + offset + 1) {
                Some(0x00 | 0xd0..=0xd7) => at += offset + 2,
                Some(0xff) => at += offset + 1,
                _ => return at + offset,
            },
        }
    }
}

impl Walk {
    fn read_frame(&mut self, marker: u8, segment: &[u8]) {
        let Some([_, h1, h0, w1, w0, _]) = segment.first_chunk() else {
            return;
        };
        self.progressive = marker == 0xc2;
        self.components.clear();
        self.height = u16::from_be_bytes([*h1, *h0]).into();
        self.width = u16::from_be_bytes([*w1, *w0]).into();
        // Lossless and hierarchical frames have other scans, and arithmetic codes no blocks that
        // can be counted. The decoder refuses these, and images of this size, by name.
        let largest = super::raw::LARGEST_SIDE as usize;
        if !matches!(marker, 0xc0..=0xc2) || self.width.max(self.height) > largest {
            return;
        }
        let component = |it: &[u8]| Component {
            id: it[0],
            across: usize::from(it[1] >> 4).max(1),
            down: usize::from(it[1] & 0x0f).max(1),
            lowest_bit: [NOT_SENT; COEFFICIENTS],
            nonzero: Vec::new(),
        };
        self.components = segment[6..].chunks_exact(3).map(component).collect();
    }

    fn read_tables(&mut self, mut segment: &[u8]) {
        while let Some((kind, rest)) = segment.split_first() {
            let Some((counts, rest)) = rest.split_first_chunk::<16>() else {
                return;
            };
            let total: usize = counts.iter().map(|it| usize::from(*it)).sum();
            let Some((symbols, rest)) = rest.split_at_checked(total) else {
                return;
            };
            let slot = self.tables.get_mut(usize::from(kind >> 4));
            let slot = slot.and_then(|it| it.get_mut(usize::from(kind & 0x0f)));
            if let Some(slot) = slot {
                *slot = Table::new(counts, symbols);
            }
            segment = rest;
        }
    }

    fn read_scan(&self, header: &[u8]) -> Option<Scan> {
        let count = usize::from(*header.first()?);
        let [first, last, bits] = *header.get(1 + 2 * count..)?.first_chunk()?;
        let named = header[1..].chunks_exact(2).take(count).map(|it| {
            let index = self
                .components
                .iter()
                .position(|component| component.id == it[0])?;
            Some((index, usize::from(it[1] >> 4), usize::from(it[1] & 0x0f)))
        });
        Some(Scan {
            components: named.collect::<Option<_>>()?,
            first: first.into(),
            last: usize::from(last).min(COEFFICIENTS - 1),
            high: bits >> 4,
            low: bits & 0x0f,
        })
    }

    fn note_sent(&mut self, scan: &Scan) {
        for (index, _, _) in &scan.components {
            let lowest_bit = &mut self.components[*index].lowest_bit;
            if let Some(band) = lowest_bit.get_mut(scan.first..=scan.last) {
                band.iter_mut().for_each(|bit| *bit = (*bit).min(scan.low));
            }
        }
    }

    fn all_sent(&self) -> Result<(), String> {
        for component in &self.components {
            let id = component.id;
            let missing = component.lowest_bit.iter().filter(|it| **it != 0).count();
            if missing == COEFFICIENTS {
                return Err(format!("no scan has component {id} to its last bit"));
            }
            if missing > 0 {
                return Err(format!(
                    "its scans do not complete {missing} of 64 coefficients of component {id}"
                ));
            }
        }
        Ok(())
    }

    /// The units of a scan, and the blocks of each with their tables.
    fn units(&self, scan: &Scan) -> (usize, Vec<(usize, usize)>) {
        let most = |of: fn(&Component) -> usize| self.components.iter().map(of).max().unwrap_or(1);
        let (across, down) = (most(|it| it.across), most(|it| it.down));
        if let [(index, dc, ac)] = scan.components[..] {
            // A scan of one component has only the blocks that show something of the image.
            let component = &self.components[index];
            let wide = (self.width * component.across).div_ceil(across).div_ceil(8);
            let high = (self.height * component.down).div_ceil(down).div_ceil(8);
            return (wide * high, vec![(dc, ac)]);
        }
        let units = self.width.div_ceil(8 * across) * self.height.div_ceil(8 * down);
        let blocks = scan.components.iter().flat_map(|(index, dc, ac)| {
            let component = &self.components[*index];
            std::iter::repeat_n((*dc, *ac), component.across * component.down)
        });
        (units, blocks.collect())
    }

    /// Counts the blocks of a scan.
    fn check_blocks(&mut self, scan: &Scan, data: &[u8]) -> Result<(), String> {
        let (units, blocks) = self.units(scan);
        // A scan of AC coefficients has one component.
        let mut nonzero = match scan.components[..] {
            [(index, ..)] if self.progressive && scan.first > 0 => {
                std::mem::take(&mut self.components[index].nonzero)
            }
            _ => Vec::new(),
        };
        if self.progressive && scan.first > 0 {
            nonzero.resize(units, 0);
        }
        let read = self.read_units(scan, data, (units, &blocks), &mut nonzero);
        if let [(index, ..)] = scan.components[..] {
            self.components[index].nonzero = nonzero;
        }
        match read {
            Err(unit) => Err(format!(
                "a scan ends after {unit} of {units} units of blocks"
            )),
            Ok(()) => Ok(()),
        }
    }

    /// Skips all units of a scan.
    ///
    /// # Errors
    /// The number of units that are there. A scan without its tables is left to the decoder.
    fn read_units(
        &self,
        scan: &Scan,
        data: &[u8],
        (units, blocks): (usize, &[(usize, usize)]),
        nonzero: &mut [u64],
    ) -> Result<(), usize> {
        let table = |kind: usize, number: usize| self.tables[kind].get(number)?.as_ref();
        let mut bits = Bits::new(data);
        // Blocks that a run of progressive AC has already ended.
        let mut ended = 0usize;
        for unit in 0..units {
            if self.restart > 0 && unit > 0 && unit % self.restart == 0 {
                bits.restart();
                ended = 0;
            }
            for (dc, ac) in blocks {
                let (dc, ac) = (table(0, *dc), table(1, *ac));
                let band = scan.first..=scan.last;
                let read = match (self.progressive, scan.first > 0, scan.high > 0) {
                    (false, _, _) => {
                        let (Some(dc), Some(ac)) = (dc, ac) else {
                            return Ok(());
                        };
                        bits.skip_block(dc, ac)
                    }
                    (true, false, true) => bits.skip(1),
                    (true, false, false) => {
                        let Some(dc) = dc else { return Ok(()) };
                        bits.skip_difference(dc)
                    }
                    (true, true, refines) => {
                        let Some(ac) = ac else { return Ok(()) };
                        let nonzero = &mut nonzero[unit];
                        if refines {
                            bits.refine_band(ac, band, &mut ended, nonzero)
                        } else {
                            bits.skip_band(ac, band, &mut ended, nonzero)
                        }
                    }
                };
                read.ok_or(unit)?;
            }
        }
        Ok(())
    }
}
