//! JSON Schemas of our own files and records, from the types that read and write them.

use schemars::JsonSchema;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::Transform;
use schemars::transform::transform_subschemas;
use serde_json::Value;
use serde_json::json;

/// What may stand in a YAML file that `T` is read from: draft 2020-12, and any scalar is text.
#[must_use]
pub fn of_file<T: JsonSchema>(title: &str) -> Schema {
    let settings = SchemaSettings::draft2020_12().with_transform(Ours).with_transform(AnyScalar);
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    schema
}

/// What holds of all that we read and write: a key that is there has a value, never null, and a number is
/// told by its bounds, not by the name of a Rust type.
#[derive(Clone, Debug)]
pub struct Ours;

impl Transform for Ours {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [kind] = types.as_slice() {
                let kind = kind.clone();
                schema.insert("type".to_owned(), kind);
            }
        }
        if schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
            schema.remove("format");
        }
        if let Some(Value::Array(words)) = schema.get_mut("enum") {
            words.retain(|word| !word.is_null());
        }
        if let Some(Value::Array(kinds)) = schema.get_mut("anyOf") {
            kinds.retain(|kind| *kind != json!({"type": "null"}));
            if let [Value::Object(only)] = kinds.as_slice() {
                let only = only.clone();
                schema.remove("anyOf");
                only.into_iter().for_each(|(key, value)| {
                    schema.ensure_object().entry(key).or_insert(value);
                });
            }
        }
        transform_subschemas(self, schema);
    }
}

/// A scalar is text until somebody says what it should be: where any text may stand, so may `1.10` and `true`.
#[derive(Clone, Debug)]
struct AnyScalar;

impl Transform for AnyScalar {
    fn transform(&mut self, schema: &mut Schema) {
        let is_closed = ["const", "enum", "pattern"].iter().any(|key| schema.get(*key).is_some());
        if !is_closed && schema.get("type").is_some_and(|kind| kind == "string") {
            schema.insert("type".to_owned(), json!(["string", "number", "boolean"]));
        }
        transform_subschemas(self, schema);
    }
}
