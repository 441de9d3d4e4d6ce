//! Mirror of `sidecar.yaml`: what may stand in it. Keys of type [`Later`] are known, and refused.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use schemars::transform::Transform;
use schemars::transform::transform_subschemas;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::IgnoredAny;
use serde_json::json;

use super::policy::PolicyFile;
use super::tls::CertificateWay;
use super::tls::ListenerTls;
use super::tls::UpstreamTls;
use crate::identify::key_set::Algorithm;
use crate::policy::Durability;
use crate::policy::Enforcement;
use crate::policy::terms::DataCategory;
use crate::policy::terms::Id;
use crate::policy::terms::Location;
use crate::policy::terms::Operation;
use crate::record::log::OnFailure;
use crate::schema;
use crate::yaml::List;
use crate::yaml::Section;
use crate::yaml::Spanned;
use crate::yaml::decoded_from_text;

/// A setting that this version does not have yet: a file that has it is refused, never half obeyed.
pub(super) type Later = Option<Spanned<IgnoredAny>>;

/// The settings of one sidecar. Check them with `dpa-sidecar check sidecar.yaml`.
///
/// `${NAME}` and `${NAME:-default}` are read from the environment, in any value of this file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// What stands behind the sidecar.
    pub(super) service: Section<Service>,
    /// Threads that take requests. Default: 4, or the number of processors if there are fewer.
    #[schemars(default, range(min = 1))]
    pub(super) workers: Section<Spanned<u16>>,
    /// The agreement as data.
    pub(super) policy: Section<PolicyFile>,
    /// Whether denied requests are refused; `observe` wins over the policy. Default: enforce.
    #[schemars(default)]
    pub(super) enforcement: Section<Enforcement>,
    /// Where requests come in.
    #[schemars(length(min = 1))]
    pub(super) listeners: Section<List<Listener>>,
    /// The services that requests are sent on to.
    pub(super) upstreams: Section<List<Upstream>>,
    /// How callers are told. Nobody is believed without it.
    #[schemars(length(min = 1))]
    pub(super) identity: Section<List<Spanned<Identity>>>,
    /// What paths mean. The most specific path wins; without a match a request is refused.
    #[schemars(length(min = 1))]
    pub(super) routes: Section<List<Route>>,
    /// Exact paths that pass with GET and HEAD, outside the agreement. Default: none.
    #[schemars(default)]
    pub(super) probes: Section<List<Spanned<String>>>,
    /// Where records go: to a file, to standard output, or both.
    pub(super) decision_log: Section<Spanned<DecisionLog>>,
    /// The listener of `/livez`, `/readyz` and `/metrics`. Default: none.
    #[schemars(default)]
    pub(super) health: Section<Health>,
    /// The listener of `/config_dump` and `/policy`, for a person on this machine. Default: none.
    #[schemars(default)]
    pub(super) admin: Section<Admin>,
    /// Headers to the service and to callers.
    #[schemars(default)]
    pub(super) headers: Section<Headers>,
    /// How much the sidecar takes.
    #[schemars(default)]
    pub(super) limits: Section<Limits>,
    /// After SIGTERM: how long requests under way may take. Default: 25s.
    #[schemars(default)]
    pub(super) drain_timeout: Section<Span>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    /// Stands in every record.
    pub(super) name: Id,
    /// Where the service keeps its data.
    pub(super) storage_location: Location,
    /// Stands in every record. Default: the host name.
    pub(super) instance: Option<Id>,
    /// Who the service is in the policy when it asks subprocessors: the id of a caller. Needed with
    /// `direction: egress`.
    pub(super) caller: Option<Spanned<Id>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// Somebody asks the service.
    Ingress,
    /// The service asks a subprocessor: the upstream's `recipient`.
    Egress,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// For the operational log.
    pub(super) name: Spanned<Id>,
    /// IP address and port, such as `127.0.0.1:8080`, or `unix:` and the path of a socket, from the folder of this file.
    pub(super) address: Spanned<String>,
    /// The name of an upstream.
    pub(super) upstream: Spanned<Id>,
    /// Who asks whom. Default: ingress.
    pub(super) direction: Option<Spanned<Way>>,
    /// TLS. Default: none, requests come in clear.
    pub(super) tls: Option<ListenerTls>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: over TLS by ALPN, in clear without asking. For gRPC.
    Http2,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    /// What a listener names.
    pub(super) name: Spanned<Id>,
    /// `HOST:PORT` of the service or of the subprocessor, or `unix:` and the path of a socket, from the folder of this
    /// file.
    pub(super) address: Spanned<String>,
    /// What the service speaks. Default: http1.
    pub(super) protocol: Option<Spanned<Protocol>>,
    /// TLS. Default: none, requests go on in clear.
    pub(super) tls: Option<UpstreamTls>,
    /// Where this upstream keeps its data. Default: `service.storage_location`.
    pub(super) storage_location: Option<Location>,
    /// The subprocessor that this upstream is, by its id in the policy: for a listener with `direction: egress`.
    pub(super) recipient: Option<Spanned<Id>>,
    /// How long a connection may take to stand, and how long a request waits for a free one. Default: 1s.
    pub(super) connect_timeout: Option<Span>,
    /// How long until the head of the answer is there, and between two pieces of its body. Default: 30s; for gRPC, which
    /// has deadlines of its own, 1h.
    pub(super) response_timeout: Option<Span>,
    /// How long an unused connection is kept; less than the service's own idle timeout. Default: 15s.
    pub(super) idle_timeout: Option<Span>,
    /// Connections of the whole process to this service; more requests wait. Default: 256.
    #[schemars(range(min = 1))]
    pub(super) max_connections: Option<Spanned<usize>>,
    /// Bytes of the head of an answer. Default: 16KiB.
    pub(super) header_bytes: Option<Spanned<Size>>,
}

/// One way in which a caller proves who it is: exactly one of these keys.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct Identity {
    /// The client certificate of the connection.
    pub(super) certificate: Option<Spanned<CertificateWay>>,
    /// A signed token (JWT) in `Authorization: Bearer`.
    pub(super) token: Option<Spanned<Token>>,
    /// The header `X-Forwarded-Client-Cert`, as Envoy writes it. It never reaches the service.
    pub(super) forwarded_certificate: Option<ForwardedCertificate>,
    /// A header whose word is taken from trusted peers.
    pub(super) header: Option<Header>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForwardedCertificate {
    /// Proxies whose word is taken for it: networks such as `127.0.0.1/32`, or identities that their own certificates
    /// prove, such as `spiffe://mesh.example/ns/edge/sa/gateway`.
    #[schemars(length(min = 1))]
    pub(super) trusted_peers: List<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    /// What stands in `iss` of its tokens, to the letter. Each issuer has one entry.
    pub(super) issuer: Spanned<String>,
    /// What `aud` of its tokens has to name.
    #[schemars(length(min = 1))]
    pub(super) audience: Spanned<String>,
    /// How it signs.
    #[schemars(length(min = 1))]
    pub(super) algorithms: List<Algorithm>,
    /// Its public keys, a JWK Set; the path counts from the folder of this file. This or `jwks_url`.
    pub(super) jwks_file: Option<Spanned<String>>,
    /// Where it shows its public keys: `https`, or `http` from this machine. This or `jwks_file`.
    pub(super) jwks_url: Option<Spanned<String>>,
    /// Certificates (PEM) of the authorities that the server of `jwks_url` is believed by. Default: the system's.
    pub(super) jwks_ca: Option<Spanned<String>>,
    /// Claims that say something about a request. Default: none.
    pub(super) claims: Option<ClaimNames>,
    /// Whether tokens are passed on to the service. Default: false.
    pub(super) forward: Option<Spanned<bool>>,
}

/// Names of claims; none is asked by default.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimNames {
    /// What for: text. Used by routes that take the purpose from `claim`.
    #[schemars(length(min = 1))]
    pub(super) purpose: Option<Spanned<String>>,
    /// For whom: text, or a list. Used by routes that take the customer from `claim`.
    #[schemars(length(min = 1))]
    pub(super) customer: Option<Spanned<String>>,
    /// On which instruction: text.
    #[schemars(length(min = 1))]
    pub(super) instruction: Option<Spanned<String>>,
    /// Where the caller is: an ISO 3166 code. For callers of the policy without a `location`.
    #[schemars(length(min = 1))]
    pub(super) location: Option<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// The name of the header, such as `DPA-Caller`. It never reaches the service.
    pub(super) name: Spanned<String>,
    /// Peers whose word is taken for it: networks such as `127.0.0.1/32`, or identities that their own certificates
    /// prove, such as `spiffe://mesh.example/ns/edge/sa/gateway`.
    #[schemars(length(min = 1))]
    pub(super) trusted_peers: List<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// A path such as `/v1/customers/{customer}/subscribers/{id}`; `{*rest}` at the end takes all that is left.
    pub(super) path: Spanned<String>,
    /// In capitals; GET does not include HEAD. Default: all.
    #[schemars(length(min = 1))]
    pub(super) methods: Option<List<Spanned<String>>>,
    /// A host without a port. Default: any.
    pub(super) host: Option<Spanned<String>>,
    /// Whose data it is. Needed, unless `subscriber_data` is false.
    pub(super) customer: Option<Spanned<Take>>,
    /// Whose data it is among the subscribers: from path or query, or a constant. Default: not told.
    pub(super) subscriber: Option<Spanned<Take>>,
    /// What the data is for. Needed, unless `subscriber_data` is false.
    pub(super) purpose: Option<Spanned<Take>>,
    /// What is done. Default: by method.
    pub(super) operation: Option<Spanned<Operation>>,
    /// All that the answer or the body may hold. Needed, unless `subscriber_data` is false.
    #[schemars(length(min = 1))]
    pub(super) data_categories: Option<List<DataCategory>>,
    /// `false` puts the route outside the agreement: it passes, and is recorded. Default: true.
    pub(super) subscriber_data: Option<Spanned<bool>>,
    /// Protocols that a connection may be switched to, such as `websocket`. Default: none.
    #[schemars(length(min = 1))]
    pub(super) upgrade: Option<List<Spanned<String>>>,
    /// Bytes of a request's body; more is refused. Default: no limit.
    pub(super) body_limit: Option<Size>,
    /// Instead of that of the upstream.
    pub(super) response_timeout: Option<Span>,
}

/// A constant is a scalar; a fact of the request is `{from: …, name: …}`.
pub(super) enum Take {
    Constant(String),
    From(From, Option<String>),
}

#[derive(Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum From {
    /// The part of the path of that name.
    Path,
    /// The parameter of that name.
    Query,
    /// The header `DPA-Context`.
    Context,
    /// The claim of the caller's token that `identity` names for it.
    Claim,
}

/// A fact of the request.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// Where it stands.
    from: From,
    /// Its name; needed for `path` and `query`.
    name: Option<String>,
}

impl<'de> Deserialize<'de> for Take {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
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

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecisionLog {
    /// A file. Default: none.
    pub(super) file: Option<LogFile>,
    /// Also, or only, to standard output. Default: false.
    #[serde(default)]
    pub(super) stdout: bool,
    /// When a record counts as made: with the kernel, or on the disk. Default: written.
    #[serde(default)]
    pub(super) durability: Durability,
    /// How long a request waits for its record. Default: 1s.
    pub(super) timeout: Option<Span>,
    /// What happens without a record: `deny` answers 503, `allow` lets pass. Default: deny.
    #[serde(default)]
    pub(super) on_failure: OnFailure,
    /// A private key in PEM, from the folder of this file, that signs checkpoints. Default: they are not signed.
    pub(super) signing_key: Option<Spanned<String>>,
    /// How often a checkpoint is written while records come. Default: 1s.
    pub(super) checkpoint_every: Option<Span>,
    /// Where checkpoints go as well: `stdout`, or a file from the folder of this file. Default: nowhere.
    pub(super) checkpoint_copy: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogFile {
    /// Its path, from the folder of this file. One sidecar a file.
    pub(super) path: String,
    /// Size from which the file is closed and a new one begun. Default: 128MiB.
    pub(super) rotate_bytes: Option<Spanned<Size>>,
    /// Age from which that happens. Default: at no age.
    pub(super) rotate_after: Option<Span>,
    /// How many closed files are kept; older ones are removed. Default: all.
    pub(super) keep: Option<Spanned<usize>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    /// IP address and port, such as `0.0.0.0:9901`.
    pub(super) address: Spanned<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// A loopback address and port, such as `127.0.0.1:9902`, or `unix:` and the path of a socket, from the folder of this
    /// file.
    pub(super) address: Spanned<String>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Headers {
    /// Headers that pass from some peers only, and are removed otherwise. Default: none.
    #[schemars(length(min = 1))]
    pub(super) trusted: Option<List<TrustedHeader>>,
    /// Whether answers tell in `Server-Timing` how long the sidecar took. Default: false.
    pub(super) server_timing: Option<Spanned<bool>>,
}

/// A header that states where a request came from or who sent it, such as `X-Real-Ip`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TrustedHeader {
    /// The name of the header.
    pub(super) name: Spanned<String>,
    /// Peers that may set it: networks such as `127.0.0.1/32`, or identities that their own certificates prove.
    #[schemars(length(min = 1))]
    pub(super) trusted_peers: List<Spanned<String>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Bytes of a request's head. Default: 64KiB.
    pub(super) header_bytes: Option<Spanned<Size>>,
    /// Header lines of a request. Default: 100.
    #[schemars(range(min = 10))]
    pub(super) headers: Option<Spanned<usize>>,
    /// How long a head may take to come, from its first byte. Default: 10s.
    pub(super) header_timeout: Option<Span>,
    /// How long a connection may be idle. Default: 60s.
    pub(super) idle_timeout: Option<Span>,
    /// How long a caller may take to send the next `stall_bytes` of a body, where it is waited for; three times as long to
    /// take three times as much of an answer. Default: 30s.
    pub(super) stall_timeout: Option<Span>,
    /// Bytes of a body that have to move in each `stall_timeout`. Default: 1KiB.
    pub(super) stall_bytes: Option<Spanned<Size>>,
    /// Bytes of a token. Default: 8KiB.
    pub(super) token_bytes: Option<Spanned<Size>>,
    /// How long a TLS handshake may take. Default: 10s.
    pub(super) handshake_timeout: Option<Span>,
    /// Connections of the whole process; more wait. Default: 10000.
    #[schemars(range(min = 1))]
    pub(super) connections: Option<Spanned<usize>>,
    /// How long nothing may move on a connection that has switched protocols. Default: 5m.
    pub(super) tunnel_idle_timeout: Option<Span>,
    /// Requests under way in the whole process, each until its answer has ended, or until the sidecar has made an answer
    /// of its own; more are answered 503 `overloaded`. Default: 2000.
    #[schemars(range(min = 1))]
    pub(super) concurrent_requests: Option<Spanned<usize>>,
    /// Requests at a time on a connection of HTTP/2; more are refused by the HTTP layer. Default: 100.
    #[schemars(range(min = 1))]
    pub(super) streams: Option<Spanned<usize>>,
    /// Streams of a connection of HTTP/2 that may be wrong, such as one whose body is not as long as it says; then it
    /// is closed. Default: 100.
    #[schemars(range(min = 1))]
    pub(super) wrong_streams: Option<Spanned<usize>>,
    /// Frames of a connection of HTTP/2 that may bring no body on within a minute, beyond four for each answer; then it
    /// is closed. Default: 500.
    #[schemars(range(min = 100))]
    pub(super) spare_frames: Option<Spanned<usize>>,
    /// Bytes of a body that a stream of HTTP/2 may hold. Default: 64KiB.
    pub(super) stream_window: Option<Spanned<Size>>,
    /// The same for all streams of a connection. Default: 4MiB.
    pub(super) connection_window: Option<Spanned<Size>>,
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

decoded_from_text!(Algorithm: "an algorithm such as `ES256`", Span: "a length of time such as `30s`", Size: "a size such as `64KiB`");

impl JsonSchema for Take {
    fn schema_name() -> Cow<'static, str> {
        "Take".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A constant, or a fact of the request: `{from: path | query | context | claim, name: …}`.",
            "anyOf": [{"type": "string"}, generator.subschema_for::<Fields>()],
        })
    }
}

impl JsonSchema for Algorithm {
    fn schema_name() -> Cow<'static, str> {
        "Algorithm".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "How a token is signed: with a private key only.",
            "enum": Self::ALL.map(Self::as_str),
        })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time: a whole number above 0 with `ms`, `s`, `m`, `h` or `d`, such as `30s`.",
            "type": "string",
            "pattern": "^0*[1-9][0-9]*(?:ms|s|m|h|d)$",
        })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: a whole number, alone or with `KiB`, `MiB` or `GiB`.",
            "type": ["string", "integer"],
            "pattern": "^[0-9]+(?:KiB|MiB|GiB)?$",
            "minimum": 0,
        })
    }
}

/// What may stand in a `sidecar.yaml`, as a JSON Schema.
#[must_use]
pub fn schema() -> Schema {
    let mut schema = schema::of_file::<Document>("sidecar.yaml");
    FromEnvironment.transform(&mut schema);
    schema
}

/// Lets a value that is no free text be `${NAME}` as well.
struct FromEnvironment;

impl Transform for FromEnvironment {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let is_typed = schema.get("type").is_some_and(|kind| kind == "boolean" || kind == "integer");
        if !is_typed && !["enum", "oneOf", "pattern"].iter().any(|key| schema.get(*key).is_some()) {
            return;
        }
        let mut told = Schema::default();
        for key in ["description", "default"] {
            schema.remove(key).into_iter().for_each(|value| drop(told.insert(key.to_owned(), value)));
        }
        let value = std::mem::replace(schema, told);
        schema.insert("anyOf".to_owned(), json!([value, {"type": "string", "pattern": "\\$\\{"}]));
    }
}
