//! Event files of TensorBoard: records (`tensorflow/core/lib/io/record_writer.cc`) of the protobuf
//! message `tensorflow.Event` (`tensorflow/core/util/event.proto`), of which scalars need five
//! fields. Pure.

use prost::Message;

/// CRC-32C's polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// What a record's check sum is rotated by and added to.
const MASK: u32 = 0xa282_ead8;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// An event file in memory.
#[derive(Debug, Default)]
pub(super) struct EventFile {
    bytes: Vec<u8>,
}

impl EventFile {
    pub(super) fn new(wall_time: f64) -> Self {
        let mut file = Self::default();
        file.push(&Event {
            wall_time,
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::default()
        });
        file
    }

    /// Adds the scalars of one step.
    #[allow(clippy::cast_possible_truncation)] // TensorBoard has single precision.
    pub(super) fn scalars(&mut self, wall_time: f64, step: u64, scalars: &[(String, f64)]) {
        let values = scalars.iter().map(|(tag, value)| Value {
            tag: tag.clone(),
            simple_value: *value as f32,
        });
        self.push(&Event {
            wall_time,
            step: i64::try_from(step).unwrap_or(i64::MAX),
            file_version: None,
            summary: Some(Summary {
                value: values.collect(),
            }),
        });
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn push(&mut self, event: &Event) {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        self.bytes.extend(length);
        self.bytes.extend(masked(crc32c(&length)).to_le_bytes());
        self.bytes.extend(&data);
        self.bytes.extend(masked(crc32c(&data)).to_le_bytes());
    }
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            crc = (crc >> 1) ^ carry;
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn check_sums_are_those_of_the_format() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_file_is_records_of_events() {
        let mut file = EventFile::new(5.0);
        file.scalars(6.5, 7, &[("loss/total".to_owned(), 0.25)]);
        let mut rest = file.bytes();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            assert_eq!(after[..4], masked(crc32c(length)).to_le_bytes());
            let size = u64::from_le_bytes(length.try_into().unwrap());
            let (data, after) = after[4..].split_at(usize::try_from(size).unwrap());
            assert_eq!(after[..4], masked(crc32c(data)).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            rest = &after[4..];
        }
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((events[1].step, events[1].wall_time), (7, 6.5));
        let value = &events[1].summary.as_ref().unwrap().value[0];
        assert_eq!(
            (value.tag.as_str(), value.simple_value),
            ("loss/total", 0.25)
        );
    }
}
