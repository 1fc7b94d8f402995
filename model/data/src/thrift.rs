//! Walks Thrift's compact encoding, in which Parquet writes footers and page headers, without
//! building anything from it. The Parquet reader allocates what such a text claims, before it has
//! read it; so the claims are checked here first. Pure.
//!
//! Format: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

/// Deeper nesting than any footer has.
const DEPTH_MAX: u32 = 32;
/// Most elements of a list of structures: row groups of a file, columns of a row group.
const STRUCTS_MAX: usize = 100_000;

/// Types of the compact encoding.
pub(crate) const I32: u8 = 5;
pub(crate) const LIST: u8 = 9;
pub(crate) const STRUCT: u8 = 12;

/// A position in encoded bytes.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes consumed so far.
    pub(crate) fn consumed(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        if self.left() < count {
            return Err(format!("it ends {} bytes too early", count - self.left()));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number has more than 10 bytes".to_owned())
    }

    pub(crate) fn integer(&mut self) -> Result<i64, String> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Calls `field` for each field of a structure with its number and type; it must consume the
    /// value. Numbers must ascend, so that no field occurs twice: readers would differ in which
    /// they take.
    pub(crate) fn structure(
        &mut self,
        mut field: impl FnMut(&mut Self, i64, u8) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut last = i64::MIN;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            let (delta, kind) = (head >> 4, head & 15);
            let number = match delta {
                0 => self.integer()?,
                delta => last.max(0) + i64::from(delta),
            };
            if number <= last {
                return Err(format!("field {number} follows field {last}"));
            }
            last = number;
            field(self, number, kind)?;
        }
    }

    /// Type and number of the elements of a list or set, which must be able to exist.
    pub(crate) fn list(&mut self) -> Result<(u8, usize), String> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        let kind = head & 15;
        let max = match kind {
            STRUCT => self.left().min(STRUCTS_MAX),
            _ => self.left(),
        };
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok((kind, count)),
            _ => Err(format!(
                "a list claims {count} elements, at most {max} are possible"
            )),
        }
    }

    pub(crate) fn skip(&mut self, kind: u8) -> Result<(), String> {
        self.skip_at(kind, 0, false)
    }

    fn skip_at(&mut self, kind: u8, depth: u32, is_element: bool) -> Result<(), String> {
        if depth == DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
        }
        let depth = depth + 1;
        match kind {
            // In a list a truth value takes a byte; as a field it is in the type.
            1 | 2 if is_element => drop(self.byte()?),
            1 | 2 => {}
            3 => drop(self.byte()?),
            4..=6 => drop(self.varint()?),
            7 => drop(self.take(8)?),
            8 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                self.take(length)?;
            }
            LIST | 10 => {
                let (kind, count) = self.list()?;
                for _ in 0..count {
                    self.skip_at(kind, depth, true)?;
                }
            }
            11 => {
                let count = self.varint()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    for _ in 0..count {
                        self.skip_at(kinds >> 4, depth, true)?;
                        self.skip_at(kinds & 15, depth, true)?;
                    }
                }
            }
            STRUCT => self.structure(|at, _, kind| at.skip_at(kind, depth, false))?,
            13 => drop(self.take(16)?),
            other => return Err(format!("there is no type {other}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_of_every_type_are_skipped() {
        // 1: i32 -3; 2: list of 2 booleans; 3: binary "ab"; 5: struct {1: double}; 6: map of 1.
        let bytes = [
            &[0x15, 5, 0x19, 0x21, 1, 2, 0x18, 2, b'a', b'b', 0x2c, 0x17][..],
            &1f64.to_le_bytes(),
            &[0, 0x1b, 1, 0x55, 2, 4, 0, 99],
        ]
        .concat();
        let mut cursor = Cursor::new(&bytes);
        let mut found = Vec::new();
        cursor
            .structure(|at, number, kind| {
                found.push((number, kind));
                if number == 1 {
                    assert_eq!(at.integer()?, -3);
                    return Ok(());
                }
                at.skip(kind)
            })
            .unwrap();
        assert_eq!(found, [(1, 5), (2, 9), (3, 8), (5, 12), (6, 11)]);
        assert_eq!(cursor.consumed(), bytes.len() - 1);
    }

    #[test]
    fn impossible_claims_are_refused() {
        let refusal = |bytes: &[u8]| Cursor::new(bytes).skip(STRUCT).unwrap_err();
        let list = refusal(&[0x19, 0xf5, 0xff, 0xff, 0xff, 0xff, 7, 0]);
        assert!(list.contains("a list claims 2147483647 elements"), "{list}");
        let deep = refusal(&[0x1c; 1000]);
        assert!(deep.contains("deeper than 32"), "{deep}");
        let text = refusal(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert!(text.contains("too early"), "{text}");
        let twice = refusal(&[0x15, 2, 5, 2, 2, 0]);
        assert!(twice.contains("field 1 follows field 1"), "{twice}");
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut cursor = Cursor::new(&bytes);
            if cursor.skip(STRUCT).is_ok() {
                prop_assert!(cursor.consumed() <= bytes.len());
            }
        }
    }
}
