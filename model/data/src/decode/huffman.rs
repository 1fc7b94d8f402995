//! Huffman codes of JPEG (ITU-T T.81, annexes C and F), as far as needed to count blocks: values
//! are skipped, not computed.

use std::ops::RangeInclusive;

/// Longest code.
const LONGEST: usize = 16;
/// Codes of up to this length are looked up at once.
const SHORT: usize = 9;

/// A table of codes.
pub(super) struct Table {
    /// Length and symbol by the next [`SHORT`] bits; length 0: the code is longer.
    short: Vec<(u8, u8)>,
    /// The first code of each length, the index of its symbol, and the number of codes.
    long: [(u32, usize, u32); LONGEST + 1],
    symbols: Vec<u8>,
}

impl Table {
    /// None: the counts are those of no code.
    pub(super) fn new(counts: &[u8; LONGEST], symbols: &[u8]) -> Option<Self> {
        let mut table = Self {
            short: vec![(0, 0); 1 << SHORT],
            long: [(0, 0, 0); LONGEST + 1],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=LONGEST {
            let count = u32::from(counts[length - 1]);
            table.long[length] = (code, index, count);
            for _ in 0..count {
                if code >> length != 0 {
                    return None;
                }
                if length <= SHORT {
                    let first = (code as usize) << (SHORT - length);
                    let same = &mut table.short[first..first + (1 << (SHORT - length))];
                    same.fill((length as u8, symbols[index]));
                }
                (code, index) = (code + 1, index + 1);
            }
            code <<= 1;
        }
        Some(table)
    }

    /// The length and the symbol of the code at the start of these 16 bits.
    fn look_up(&self, next: u32) -> Option<(u32, u8)> {
        let (length, symbol) = self.short[(next >> (LONGEST - SHORT)) as usize];
        if length > 0 {
            return Some((length.into(), symbol));
        }
        (SHORT + 1..=LONGEST).find_map(|length| {
            let (first, index, count) = self.long[length];
            let offset = (next >> (LONGEST - length)).checked_sub(first)?;
            let symbol = (offset < count).then(|| self.symbols[index + offset as usize])?;
            Some((length as u32, symbol))
        })
    }
}

/// The bits of a scan. Every function returns None if they end before.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            buffer: 0,
            count: 0,
        }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let (byte, length) = match (self.data.get(self.at), self.data.get(self.at + 1)) {
                (None, _) => return,
                (Some(0xff), Some(0x00)) => (0xff, 2),
                // A restart marker, or a fill byte before it.
                (Some(0xff), _) => return,
                (Some(byte), _) => (*byte, 1),
            };
            self.at += length;
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    pub(super) fn skip(&mut self, bits: u32) -> Option<()> {
        if self.count < bits {
            self.fill();
        }
        self.count = self.count.checked_sub(bits)?;
        Some(())
    }

    /// A number of up to 16 bits.
    fn number(&mut self, bits: u32) -> Option<u32> {
        self.skip(bits)?;
        let mask = (1u64 << bits) - 1;
        Some((self.buffer >> self.count & mask) as u32)
    }

    fn symbol(&mut self, table: &Table) -> Option<u8> {
        if self.count < LONGEST as u32 {
            self.fill();
        }
        // Missing bits are read as ones, which no code is made of.
        let padding = (LONGEST as u32).saturating_sub(self.count);
        let padded = (self.buffer << padding) | ((1u64 << padding) - 1);
        let rest = self.count.saturating_sub(LONGEST as u32);
        let (length, symbol) = table.look_up((padded >> rest & 0xffff) as u32)?;
        self.skip(length)?;
        Some(symbol)
    }

    /// Skips a block of a sequential scan.
    pub(super) fn skip_block(&mut self, dc: &Table, ac: &Table) -> Option<()> {
        self.skip_difference(dc)?;
        self.skip_band(ac, 1..=63, &mut 0, &mut 0)
    }

    /// Skips a DC value.
    pub(super) fn skip_difference(&mut self, dc: &Table) -> Option<()> {
        let size = self.symbol(dc)?;
        self.skip(u32::from(size).min(16))
    }

    /// Skips the AC values of a block. `ended` is the number of following blocks that have none,
    /// which only progressive scans announce. `nonzero` gets a bit for each coefficient that is not
    /// zero.
    pub(super) fn skip_band(
        &mut self,
        ac: &Table,
        band: RangeInclusive<usize>,
        ended: &mut usize,
        nonzero: &mut u64,
    ) -> Option<()> {
        if *ended > 0 {
            *ended -= 1;
            return Some(());
        }
        let mut at = *band.start();
        while at <= *band.end() {
            let symbol = self.symbol(ac)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 0x0f));
            match (run, size) {
                (15, 0) => at += 16,
                (_, 0) => {
                    *ended = (1usize << run) - 1 + self.number(run)? as usize;
                    return Some(());
                }
                _ => {
                    at += run as usize;
                    // Only a damaged file has one after the band.
                    *nonzero |= 1u64.checked_shl(at as u32).unwrap_or(0);
                    at += 1;
                    self.skip(size)?;
                }
            }
        }
        Some(())
    }

    /// Skips the bits that a scan adds to the AC values of a block: one for each value that is not
    /// zero already, and those of values that begin here (T.81, G.1.2.3).
    pub(super) fn refine_band(
        &mut self,
        ac: &Table,
        band: RangeInclusive<usize>,
        ended: &mut usize,
        nonzero: &mut u64,
    ) -> Option<()> {
        let mut at = *band.start();
        while *ended == 0 && at <= *band.end() {
            let symbol = self.symbol(ac)?;
            let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 0x0f);
            if size == 0 && zeros < 15 {
                *ended = (1usize << zeros) + self.number(zeros)? as usize;
                break;
            }
            // The sign of the value that begins.
            self.skip(u32::from(size > 0))?;
            let begin = at;
            for next in begin..=*band.end() {
                at = next + 1;
                let bit = 1u64 << next;
                if *nonzero & bit != 0 {
                    self.skip(1)?;
                } else if zeros > 0 {
                    zeros -= 1;
                } else {
                    *nonzero |= if size > 0 { bit } else { 0 };
                    break;
                }
            }
        }
        if *ended > 0 {
            *ended -= 1;
            let is_nonzero = |at: usize| *nonzero & (1u64 << at) != 0;
            for _ in (at..=*band.end()).filter(|at| is_nonzero(*at)) {
                self.skip(1)?;
            }
        }
        Some(())
    }

    /// Moves behind the next restart marker.
    pub(super) fn restart(&mut self) {
        (self.buffer, self.count) = (0, 0);
        while let Some(byte) = self.data.get(self.at) {
            self.at += 1;
            if *byte == 0xff
                && self
                    .data
                    .get(self.at)
                    .is_some_and(|it| (0xd0..=0xd7).contains(it))
            {
                self.at += 1;
                return;
            }
        }
    }
}
