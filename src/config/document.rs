//! Mirror of `sidecar.yaml`: what may stand in it. Keys of type [`Later`] are known, and refused.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::IgnoredAny;

use crate::policy::Durability;
use crate::policy::Enforcement;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Id;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::record::log::OnFailure;
use crate::yaml::List;
use crate::yaml::Section;
use crate::yaml::Spanned;

/// A setting that this version does not have yet: a file that has it is refused, never half obeyed.
pub(super) type Later = Option<Spanned<IgnoredAny>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) service: Section<Service>,
    pub(super) workers: Section<Spanned<u16>>,
    pub(super) policy: Section<PolicyFile>,
    pub(super) enforcement: Section<Enforcement>,
    pub(super) listeners: Section<List<Listener>>,
    pub(super) upstreams: Section<List<Upstream>>,
    pub(super) identity: Section<List<Spanned<Identity>>>,
    pub(super) routes: Section<List<Route>>,
    pub(super) probes: Section<List<Spanned<String>>>,
    pub(super) decision_log: Section<Spanned<DecisionLog>>,
    pub(super) health: Section<Health>,
    pub(super) admin: Later,
    pub(super) limits: Section<Limits>,
    pub(super) drain_timeout: Section<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Id,
    pub(super) storage_location: Location,
    pub(super) instance: Option<Id>,
    pub(super) caller: Later,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFile {
    pub(super) file: Spanned<String>,
    pub(super) public_key: Later,
    pub(super) baseline: Later,
    pub(super) max_age: Later,
    pub(super) on_stale: Later,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    Ingress,
    Egress,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) name: Spanned<Id>,
    pub(super) address: Spanned<String>,
    pub(super) upstream: Spanned<Id>,
    pub(super) direction: Option<Spanned<Way>>,
    pub(super) tls: Later,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    Http1,
    Http2,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    pub(super) name: Spanned<Id>,
    pub(super) address: Spanned<String>,
    pub(super) protocol: Option<Spanned<Protocol>>,
    pub(super) tls: Later,
    pub(super) storage_location: Option<Location>,
    pub(super) recipient: Later,
    pub(super) connect_timeout: Option<Span>,
    pub(super) response_timeout: Option<Span>,
    pub(super) idle_timeout: Option<Span>,
    pub(super) max_connections: Later,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) certificate: Later,
    pub(super) token: Later,
    pub(super) forwarded_certificate: Later,
    pub(super) header: Option<Header>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) name: Spanned<String>,
    pub(super) trusted_peers: List<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) path: Spanned<String>,
    pub(super) methods: Option<List<Spanned<String>>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) customer: Option<Spanned<Take>>,
    pub(super) subscriber: Option<Spanned<Take>>,
    pub(super) purpose: Option<Spanned<Take>>,
    pub(super) operation: Option<Spanned<Operation>>,
    pub(super) data_categories: Option<List<DataCategory>>,
    pub(super) subscriber_data: Option<Spanned<bool>>,
    pub(super) upgrade: Later,
    pub(super) body_limit: Later,
    pub(super) response_timeout: Later,
}

/// A constant is a scalar; a fact of the request is `{from: …, name: …}`.
pub(super) enum Take {
    Constant(String),
    From(From, Option<String>),
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum From {
    Path,
    Query,
    Context,
    Claim,
}

impl<'de> Deserialize<'de> for Take {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            from: From,
            name: Option<String>,
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Take;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a constant, or `{from: path, name: …}`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Take, E> {
                Ok(Take::Constant(text.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Take, A::Error> {
                let fields = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Take::From(fields.from, fields.name))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecisionLog {
    pub(super) file: Option<LogFile>,
    #[serde(default)]
    pub(super) stdout: bool,
    pub(super) durability: Option<Spanned<Durability>>,
    pub(super) timeout: Option<Span>,
    #[serde(default)]
    pub(super) on_failure: OnFailure,
    pub(super) signing_key: Later,
    pub(super) checkpoint_every: Later,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogFile {
    pub(super) path: String,
    pub(super) rotate_bytes: Later,
    pub(super) rotate_after: Later,
    pub(super) keep: Later,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    pub(super) address: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) header_bytes: Option<Spanned<Size>>,
    pub(super) headers: Option<Spanned<usize>>,
    pub(super) header_timeout: Option<Span>,
    pub(super) connections: Option<Spanned<usize>>,
    pub(super) idle_timeout: Later,
    pub(super) concurrent_requests: Later,
    pub(super) streams: Later,
}

/// A length of time: a whole number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// A number of bytes: a whole number, alone or with `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) usize);

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let millis = number_and_unit(text).and_then(|(number, unit)| {
            let scale: u64 = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            number.checked_mul(scale)
        });
        match millis {
            Some(millis) if millis > 0 => Ok(Self(Duration::from_millis(millis))),
            Some(_) | None => Err(format!(
                "`{text}` is not a length of time\nwrite a whole number above 0 with `ms`, `s`, `m`, `h` or `d`, such as `30s`"
            )),
        }
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = number_and_unit(text).and_then(|(number, unit)| {
            let scale: u64 = match unit {
                "" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                _ => return None,
            };
            usize::try_from(number.checked_mul(scale)?).ok()
        });
        bytes.map(Self).ok_or_else(|| {
            format!("`{text}` is not a size\nwrite a whole number of bytes, or one with `KiB`, `MiB` or `GiB`")
        })
    }
}

macro_rules! decoded_from_text {
    ($($term:ty: $expecting:literal),*) => {$(
        impl<'de> Deserialize<'de> for $term {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $term;
                    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                        out.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$term, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    )*};
}

decoded_from_text!(Span: "a length of time such as `30s`", Size: "a size such as `64KiB`");
