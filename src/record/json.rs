//! Records as JSON text. Each request waits for two of them, and `serde_json` looks at every byte of every key and
//! word; here keys are taken as they are and words are looked at eight bytes at a time.

use std::fmt;

use serde::Serialize;
use serde::Serializer;
use serde::ser;
use serde::ser::Impossible;

/// A value that the records do not have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct JsonError(String);

impl ser::Error for JsonError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

fn unused<T>() -> Result<T, JsonError> {
    Err(JsonError("records have no such value".to_owned()))
}

/// Adds a value to `out`, without blanks. Floating numbers, bytes and enums with data are no values of records.
pub(super) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), JsonError> {
    value.serialize(Json { out })
}

struct Json<'o> {
    out: &'o mut Vec<u8>,
}

/// Whether one of eight bytes has to be escaped: a control character, a quote, a backslash.
fn has_special(eight: [u8; 8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let word = u64::from_ne_bytes(eight);
    // A byte is zero if taking one from it borrows from its highest bit, which it did not have.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let below_blank = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
    (below_blank | zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\')))) != 0
}

fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some(last) = bytes.last_chunk::<8>() else {
        return !bytes.iter().any(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\');
    };
    // The last eight overlap those before them.
    let (eights, _) = bytes.as_chunks::<8>();
    !eights.iter().fold(has_special(*last), |is_special, eight| is_special | has_special(*eight))
}

impl Json<'_> {
    fn text(self, text: &str) -> Result<(), JsonError> {
        if !is_plain(text) {
            return serde_json::to_writer(self.out, text).map_err(|error| JsonError(error.to_string()));
        }
        self.out.reserve(text.len() + 2);
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
        Ok(())
    }

    fn plain(self, text: &str) -> Result<(), JsonError> {
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// What is between braces or brackets: fields with commas between them.
struct Fields<'o> {
    out: &'o mut Vec<u8>,
    end: u8,
    is_first: bool,
}

impl<'o> Fields<'o> {
    fn begin(out: &'o mut Vec<u8>, begin: u8, end: u8) -> Self {
        out.push(begin);
        Self { out, end, is_first: true }
    }

    fn next(&mut self) -> Json<'_> {
        if !std::mem::take(&mut self.is_first) {
            self.out.push(b',');
        }
        Json { out: self.out }
    }

    fn end(self) -> Result<(), JsonError> {
        self.out.push(self.end);
        Ok(())
    }
}

impl ser::SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = JsonError;

    /// A key is the name of a field, which has nothing to escape.
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), JsonError> {
        let Json { out } = self.next();
        out.reserve(key.len() + 3);
        out.push(b'"');
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        value.serialize(Json { out })
    }

    fn end(self) -> Result<(), JsonError> {
        Fields::end(self)
    }
}

impl ser::SerializeMap for Fields<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), JsonError> {
        key.serialize(self.next())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.out.push(b':');
        value.serialize(Json { out: self.out })
    }

    fn end(self) -> Result<(), JsonError> {
        Fields::end(self)
    }
}

impl ser::SerializeSeq for Fields<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        value.serialize(self.next())
    }

    fn end(self) -> Result<(), JsonError> {
        Fields::end(self)
    }
}

impl<'o> Serializer for Json<'o> {
    type Ok = ();
    type Error = JsonError;
    type SerializeSeq = Fields<'o>;
    type SerializeTuple = Impossible<(), JsonError>;
    type SerializeTupleStruct = Impossible<(), JsonError>;
    type SerializeTupleVariant = Impossible<(), JsonError>;
    type SerializeMap = Fields<'o>;
    type SerializeStruct = Fields<'o>;
    type SerializeStructVariant = Impossible<(), JsonError>;

    fn serialize_str(self, text: &str) -> Result<(), JsonError> {
        self.text(text)
    }

    /// A text that its type writes with nothing to escape: a time, a number.
    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<(), JsonError> {
        let text = value.to_string();
        self.text(&text)
    }

    fn serialize_bool(self, value: bool) -> Result<(), JsonError> {
        self.plain(if value { "true" } else { "false" })
    }

    fn serialize_u64(self, value: u64) -> Result<(), JsonError> {
        self.plain(itoa::Buffer::new().format(value))
    }

    fn serialize_u8(self, value: u8) -> Result<(), JsonError> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), JsonError> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), JsonError> {
        self.serialize_u64(value.into())
    }

    fn serialize_none(self) -> Result<(), JsonError> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), JsonError> {
        self.plain("null")
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), JsonError> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Fields<'o>, JsonError> {
        Ok(Fields::begin(self.out, b'[', b']'))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Fields<'o>, JsonError> {
        Ok(Fields::begin(self.out, b'{', b'}'))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'o>, JsonError> {
        Ok(Fields::begin(self.out, b'{', b'}'))
    }

    fn serialize_i8(self, _: i8) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_i16(self, _: i16) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_i32(self, _: i32) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_i64(self, _: i64) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_f32(self, _: f32) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_f64(self, _: f64) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_char(self, _: char) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), JsonError> {
        unused()
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, JsonError> {
        unused()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, JsonError> {
        unused()
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, JsonError> {
        unused()
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, JsonError> {
        unused()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Serialize)]
    struct Inner {
        word: String,
        number: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        left_out: Option<u16>,
    }

    #[derive(Debug, Serialize)]
    struct Record {
        text: String,
        flag: bool,
        none: Option<u32>,
        list: Vec<Inner>,
        id: uuid::Uuid,
        #[serde(flatten)]
        detail: std::collections::BTreeMap<String, Inner>,
    }

    prop_compose! {
        fn inner()(word in any::<String>(), number in any::<u64>(), left_out in any::<Option<u16>>()) -> Inner {
            Inner { word, number, left_out }
        }
    }

    prop_compose! {
        fn record()(
            text in "[\\x00-\\x7f\u{e9}\u{20ac}]{0,40}",
            flag in any::<bool>(),
            none in any::<Option<u32>>(),
            list in vec(inner(), 0..3),
            id in any::<u128>(),
            detail in btree_map(any::<String>(), inner(), 0..3),
        ) -> Record {
            Record { text, flag, none, list, id: uuid::Uuid::from_u128(id), detail }
        }
    }

    proptest! {
        #[test]
        fn records_are_written_as_serde_json_does(record in record()) {
            let mut ours = Vec::new();
            write(&mut ours, &record).unwrap();
            prop_assert_eq!(String::from_utf8(ours).unwrap(), serde_json::to_string(&record).unwrap());
        }
    }

    #[test]
    fn each_byte_in_each_place_is_told_from_those_that_are_escaped() {
        for byte in 0..0x80_u8 {
            for place in 0..20 {
                let mut text = vec![b'a'; 20];
                text[place] = byte;
                let text = String::from_utf8(text).unwrap();
                let is_special = byte < 0x20 || byte == b'"' || byte == b'\\';
                assert_eq!(is_plain(&text), !is_special, "{byte:#x} at {place}");
            }
        }
    }
}
