//! The words of a policy: types that exist only if their text was good.

use std::borrow::Borrow;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;

use crate::yaml::decoded_from_text;

/// Why a text is no such word: what is wrong, then (second line) what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}\n{help}")]
pub struct TermError {
    /// What is wrong.
    pub wrong: String,
    /// What to write instead.
    pub help: String,
}

impl TermError {
    fn new(wrong: impl Into<String>, help: impl Into<String>) -> Self {
        Self { wrong: wrong.into(), help: help.into() }
    }
}

decoded_from_text!(
    Id: "an id",
    Location: "a location such as `US` or `CA-QC`",
    DataCategory: "a data category such as `user.contact`",
    Date: "a date such as `2026-06-15` or `2026-06-15T12:00:00Z`",
    Identity: "an identity such as `spiffe://example.org/sa/name`",
);

macro_rules! schemas {
    ($($term:ident: $schema:expr),* $(,)?) => {$(
        impl JsonSchema for $term {
            fn schema_name() -> Cow<'static, str> {
                stringify!($term).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )*};
}

// A schema may take more than the parser, never less. An id may look like a number: it is text.
schemas!(
    Id: json_schema!({
        "description": "An id: 1 to 64 letters, digits, `-`, `_` or `.`.",
        "type": ["string", "number", "boolean"],
        "pattern": "^[A-Za-z0-9._-]{1,64}$",
    }),
    Location: json_schema!({
        "description": "A country of ISO 3166-1 such as `US`, or a part of one, ISO 3166-2, such as `US-OR`. \
            `CA` is Canada; California is `US-CA`.",
        "type": "string",
        "pattern": location_pattern(),
    }),
    DataCategory: json_schema!({
        "description": "A data category, a dotted key: `user.contact` covers `user.contact.email`.",
        "type": ["string", "number", "boolean"],
        "pattern": r"^[a-z0-9_]+(?:\.[a-z0-9_]+)*$",
        "maxLength": 128,
    }),
    Date: json_schema!({
        "description": "A day (UTC) such as `2026-06-15`: a thing begins at its start and ends at its end. \
            Or a moment with its offset, such as `2026-06-15T12:00:00Z`.",
        "type": "string",
        "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T\S{9,})?$",
    }),
    Identity: json_schema!({
        "description": "`spiffe://TRUST-DOMAIN/PATH`, where `*` stands for one whole segment, `dns:NAME` or \
            `jwt:ISSUER|SUBJECT`.",
        "type": "string",
        "pattern": r"^(?:spiffe://[a-z0-9._-]{1,255}(?:/(?:\*|[A-Za-z0-9._-]+))*|dns:[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*|jwt:[!-)+-{}~]+\|[!-)+-~]+)$",
        "maxLength": 2048,
    }),
);

fn location_pattern() -> String {
    let any = |codes: &str| codes.replace(' ', "|");
    let (us, ca) = (any(US_SUBDIVISIONS), any(CA_SUBDIVISIONS));
    let others: Vec<&str> = COUNTRIES.split(' ').filter(|country| !matches!(*country, "US" | "CA")).collect();
    format!("^(?:US(?:-(?:{us}))?|CA(?:-(?:{ca}))?|(?:{})(?:-[A-Z0-9]{{1,3}})?)$", others.join("|"))
}

/// The id of a party, a purpose, a set or an instruction: 1 to 64 of `a-z A-Z 0-9 - _ .`.
///
/// Ids appear in the decision log as they are, so an e-mail address or a name with blanks is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Box<str>);

impl Id {
    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            return Err(TermError::new(
                format!("`{text}` is not an id"),
                "write 1 to 64 letters, digits, `-`, `_` or `.`",
            ));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A place: a country of ISO 3166-1 (`US`), or a subdivision of one, ISO 3166-2 (`US-OR`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    country: [u8; 2],
    /// Up to three letters or digits, padded with 0; all 0 for the whole country.
    subdivision: [u8; 3],
}

impl Location {
    /// Whether `other` is this place or lies in it. A country covers its subdivisions.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.country == other.country && (self.subdivision == [0; 3] || self.subdivision == other.subdivision)
    }

    /// Whether it is a whole country.
    #[must_use]
    pub fn is_country(self) -> bool {
        self.subdivision == [0; 3]
    }

    /// Adds its code to a text.
    pub fn write(self, text: &mut String) {
        let letters = |bytes: &[u8], text: &mut String| {
            text.extend(bytes.iter().filter(|byte| **byte != 0).map(|byte| char::from(*byte)));
        };
        letters(&self.country, text);
        if !self.is_country() {
            text.push('-');
            letters(&self.subdivision, text);
        }
    }

    fn text(self) -> String {
        let mut text = String::with_capacity(6);
        self.write(&mut text);
        text
    }
}

impl FromStr for Location {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let (country, subdivision) = text.split_once('-').map_or((text, None), |(c, s)| (c, Some(s)));
        let known = |list: &str, word: &str| list.split(' ').any(|code| code == word);
        if !known(COUNTRIES, country) {
            let upper = text.to_ascii_uppercase();
            let help = if known(US_SUBDIVISIONS, &upper) {
                format!("a US state is written with its country: `US-{upper}`")
            } else if upper != text && upper.parse::<Self>().is_ok() {
                format!("codes are in capitals: `{upper}`")
            } else {
                "write an ISO 3166-1 country such as `US` or `CA`, or an ISO 3166-2 subdivision such as `CA-QC`".into()
            };
            return Err(TermError::new(format!("`{text}` is not a location"), help));
        }
        let place = |subdivision: [u8; 3]| match country.as_bytes() {
            [first, second] => Ok(Self { country: [*first, *second], subdivision }),
            _ => Err(TermError::new(format!("`{text}` is not a location"), "write a country such as `US`")),
        };
        let Some(subdivision) = subdivision else { return place([0; 3]) };
        let good = match country {
            "US" => known(US_SUBDIVISIONS, subdivision),
            "CA" => known(CA_SUBDIVISIONS, subdivision),
            _ => subdivision.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()),
        };
        match (good, subdivision.as_bytes()) {
            (true, [a]) => place([*a, 0, 0]),
            (true, [a, b]) => place([*a, *b, 0]),
            (true, [a, b, c]) => place([*a, *b, *c]),
            _ => Err(TermError::new(
                format!("`{text}` is not a location: {country} has no subdivision `{subdivision}`"),
                format!("write an ISO 3166-2 code, or `{country}` for the whole country"),
            )),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text())
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text())
    }
}

/// ISO 3166-1 alpha-2, the officially assigned codes.
const COUNTRIES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR \
    BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET \
    FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ \
    IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML \
    MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS \
    PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL \
    TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

/// ISO 3166-2:US.
const US_SUBDIVISIONS: &str = "AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH \
    NJ NM NY NC ND OH OK OR PA RI SC SD TN TX UT VT VA WA WV WI WY DC AS GU MP PR UM VI";

/// ISO 3166-2:CA.
const CA_SUBDIVISIONS: &str = "AB BC MB NB NL NS NT NU ON PE QC SK YT";

/// A kind of personal data: a dotted Fideslang key; `user.contact` covers `user.contact.email`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataCategory(Box<str>);

impl DataCategory {
    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `other` is this category or lies below it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl FromStr for DataCategory {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let word = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if text.len() > 128 || !text.split('.').all(word) {
            return Err(TermError::new(
                format!("`{text}` is not a data category"),
                "write a dotted key in small letters such as `user.contact.email`",
            ));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for DataCategory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What is done with the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Read (GET, HEAD).
    Retrieve,
    /// Keep (POST).
    Store,
    /// Change (PUT, PATCH).
    Modify,
    /// Delete (DELETE).
    Erase,
    /// Ask for what fits a condition.
    Query,
    /// Hand out in bulk.
    Export,
    /// Make known to somebody else.
    Disclose,
    /// Move to another place or party.
    Transfer,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Retrieve,
        Self::Store,
        Self::Modify,
        Self::Erase,
        Self::Query,
        Self::Export,
        Self::Disclose,
        Self::Transfer,
    ];

    /// The word in files and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retrieve => "retrieve",
            Self::Store => "store",
            Self::Modify => "modify",
            Self::Erase => "erase",
            Self::Query => "query",
            Self::Export => "export",
            Self::Disclose => "disclose",
            Self::Transfer => "transfer",
        }
    }
}

/// A set of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// Whether the operation is in the set.
    #[must_use]
    pub fn contains(self, operation: Operation) -> bool {
        self.0 & Self::bit(operation) != 0
    }

    fn bit(operation: Operation) -> u8 {
        match operation {
            Operation::Retrieve => 1,
            Operation::Store => 2,
            Operation::Modify => 4,
            Operation::Erase => 8,
            Operation::Query => 16,
            Operation::Export => 32,
            Operation::Disclose => 64,
            Operation::Transfer => 128,
        }
    }
}

impl FromIterator<Operation> for Operations {
    fn from_iter<I: IntoIterator<Item = Operation>>(operations: I) -> Self {
        Self(operations.into_iter().fold(0, |set, operation| set | Self::bit(operation)))
    }
}

/// A moment, or a whole day (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Date {
    /// RFC 3339.
    Moment(Timestamp),
    /// `2026-06-15`.
    Day(civil::Date),
}

impl Date {
    /// When a thing begins that begins on this date: a day begins at 00:00Z.
    #[must_use]
    pub fn begins(self) -> Timestamp {
        match self {
            Self::Moment(moment) => moment,
            Self::Day(day) => midnight(day),
        }
    }

    /// The first moment after a thing that ends on this date: a day counts to its end.
    #[must_use]
    pub fn ends(self) -> Timestamp {
        match self {
            Self::Moment(moment) => moment,
            Self::Day(day) => day.tomorrow().map_or(Timestamp::MAX, midnight),
        }
    }
}

fn midnight(day: civil::Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp())
}

impl FromStr for Date {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let shape = |length: usize| text.len() == length && text.is_ascii();
        if shape(10)
            && let Ok(day) = text.parse::<civil::Date>()
        {
            return Ok(Self::Day(day));
        }
        if text.len() >= 20
            && text.as_bytes().get(10) == Some(&b'T')
            && let Ok(moment) = text.parse::<Timestamp>()
        {
            return Ok(Self::Moment(moment));
        }
        Err(TermError::new(
            format!("`{text}` is not a date"),
            "write a day such as `2026-06-15`, or a moment with its offset such as `2026-06-15T12:00:00Z`",
        ))
    }
}

/// Who somebody proves to be: `spiffe://…`, `dns:NAME` or `jwt:ISSUER|SUBJECT`.
///
/// In a policy a SPIFFE ID may hold `*` for one whole path segment; on the wire it may not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Box<str>);

impl Identity {
    /// The identity's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a SPIFFE ID.
    #[must_use]
    pub fn is_spiffe(&self) -> bool {
        self.0.starts_with("spiffe://")
    }

    /// Whether it has a `*` segment.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        // It can stand nowhere else in a SPIFFE ID.
        self.is_spiffe() && self.0.as_bytes().contains(&b'*')
    }

    /// Whether it is a DNS name.
    #[must_use]
    pub fn is_dns(&self) -> bool {
        self.0.starts_with("dns:")
    }

    /// The issuer of a token's identity: what stands before the first `|`.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.0.strip_prefix("jwt:")?.split_once('|').map(|(issuer, _)| issuer)
    }

    /// Whether it means this identity: the same text, where a `*` segment stands for any one segment.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if !self.is_pattern() {
            return self == other;
        }
        let mut theirs = other.segments();
        let fits = self.segments().all(|ours| theirs.next().is_some_and(|segment| ours == "*" || ours == segment));
        fits && theirs.next().is_none()
    }

    /// Whether some one identity is meant by both, taking `*` on either side as any segment.
    #[must_use]
    pub fn may_mean(&self, other: &Self) -> bool {
        let mut theirs = other.segments();
        let meets = |ours: &str| theirs.next().is_some_and(|it| ours == "*" || it == "*" || ours == it);
        self.segments().all(meets) && theirs.next().is_none()
    }

    /// What stands between the slashes.
    pub(super) fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for Identity {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let wrong = |help: &str| Err(TermError::new(format!("`{text}` is not an identity"), help));
        if text.len() > 2048 {
            return wrong("an identity has at most 2048 bytes");
        }
        if let Some(rest) = text.strip_prefix("spiffe://") {
            // The SPIFFE ID standard, sections 2.1 to 2.3.
            let (domain, path) = rest.split_once('/').unwrap_or((rest, "-"));
            let in_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
            let in_path = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            let segment =
                |part: &[u8]| part == b"*" || (!matches!(part, b"" | b"." | b"..") && part.iter().all(in_path));
            if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(in_domain) {
                return wrong("a trust domain has small letters, digits, `.`, `-` and `_`, and no port");
            }
            if !path.as_bytes().split(|byte| *byte == b'/').all(segment) {
                return wrong(
                    "write path segments of letters, digits, `.`, `-` and `_`; `*` stands for one whole segment",
                );
            }
            return Ok(Self(text.into()));
        }
        if let Some(name) = text.strip_prefix("dns:") {
            let in_label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let label = |part: &str| !part.is_empty() && part.len() < 64 && part.bytes().all(in_label);
            if name.len() > 253 || !name.split('.').all(label) {
                return wrong("write a DNS name in small letters such as `dns:billing.example.org`, without `*`");
            }
            return Ok(Self(text.into()));
        }
        if let Some((issuer, subject)) = text.strip_prefix("jwt:").and_then(|rest| rest.split_once('|')) {
            let printable = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic());
            if !printable(issuer) || !printable(subject) || text.contains('*') {
                return wrong("write `jwt:ISSUER|SUBJECT` without blanks or `*`");
            }
            return Ok(Self(text.into()));
        }
        wrong("write `spiffe://TRUST-DOMAIN/PATH`, `dns:NAME` or `jwt:ISSUER|SUBJECT`")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}
