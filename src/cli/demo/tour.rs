//! The tour: what is asked, and what has to come out.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use serde::Deserialize;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::certificates::Certificates;
use super::service::Service;
use crate::cli::CliError;
use crate::tls;

/// Somebody who asks.
pub(super) struct Caller {
    /// The name of its certificate's file.
    pub(super) name: &'static str,
    pub(super) identity: &'static str,
    /// Whether the authority that the sidecar trusts signed its certificate.
    pub(super) is_vouched_for: bool,
}

impl Caller {
    const fn new(name: &'static str, identity: &'static str) -> Self {
        Self { name, identity, is_vouched_for: true }
    }
}

/// One stop of the tour.
struct Stop {
    says: &'static str,
    /// Place of the listener: 0 Oregon, 1 Québec, [`EGRESS`].
    listener: usize,
    /// Who asks and proves it: by its certificate, or without TLS by a header, since its address is trusted. On egress
    /// nobody: it is the service that sends.
    caller: Option<&'static Caller>,
    path: &'static str,
    context: &'static str,
    expect: Expect,
}

enum Expect {
    /// Forwarded, on this authority.
    Permit(&'static str),
    /// Refused with this status, for these reasons.
    Refuse(u16, &'static [&'static str]),
    /// Forwarded all the same, and recorded with these reasons.
    Observe(&'static [&'static str]),
    /// No connection: this is how the handshake ends.
    NoConnection(AlertDescription),
}

pub(super) const CARE_DESK: Option<&Caller> =
    Some(&Caller::new("care-desk", "spiffe://lumenfield.example/ns/care/sa/care-desk"));
pub(super) const BILLER: Option<&Caller> =
    Some(&Caller::new("biller", "spiffe://lumenfield.example/ns/bill/sa/biller"));
const ROLLUP: Option<&Caller> = Some(&Caller::new("rollup", "spiffe://lumenfield.example/ns/insights/sa/rollup"));
const EXPORTER: Option<&Caller> = Some(&Caller::new("exporter", "spiffe://lumenfield.example/ns/exit/sa/exporter"));
const CALL_CENTRE: Option<&Caller> = Some(&Caller::new("call-centre", "spiffe://appui.example/sa/desk"));
const ANALYTICS: Option<&Caller> = Some(&Caller::new("analytics", "spiffe://meridian.example/sa/pull"));
const MARKETING: Option<&Caller> = Some(&Caller::new("marketing", "spiffe://brightpost.example/sa/mail"));
const NIGHT_SUPPORT: Option<&Caller> = Some(&Caller::new("night-support", "spiffe://helpwright.example/sa/agent"));
const ADVERTISER: Option<&Caller> = Some(&Caller::new("advertiser", "spiffe://adsync.example/sa/bid"));
const PORTAL: Option<&Caller> = Some(&Caller::new("portal", "spiffe://outardes.example/sa/portal"));
pub(super) const IMPOSTOR: Option<&Caller> = Some(&Caller {
    name: "impostor",
    identity: "spiffe://lumenfield.example/ns/care/sa/care-desk",
    is_vouched_for: false,
});

/// Place of the listener through which the data service sends.
const EGRESS: usize = 2;

const STOPS: [Stop; 20] = [
    Stop {
        says: "The care desk looks up a subscriber",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Permit("permitted_purpose"),
    },
    Stop {
        says: "Somebody who does not prove who it is",
        listener: 0,
        caller: None,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Refuse(401, &["caller_unidentified"]),
    },
    Stop {
        says: "Model training on usage data: the customer did not permit it",
        listener: 0,
        caller: ROLLUP,
        path: "/v1/customers/redwood-strand/usage",
        context: "purpose=model_training",
        expect: Expect::Refuse(403, &["purpose_not_permitted"]),
    },
    Stop {
        says: "The care desk asks for a purpose that is not its own",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=customer_marketing",
        expect: Expect::Refuse(403, &["purpose_not_bound_to_caller"]),
    },
    Stop {
        says: "A purpose nobody knows; its text is written nowhere",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=\"jane@subscribers.example\"",
        expect: Expect::Refuse(403, &["purpose_unknown"]),
    },
    Stop {
        says: "Billing would sell contacts",
        listener: 0,
        caller: BILLER,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=sale",
        expect: Expect::Refuse(403, &["purpose_prohibited"]),
    },
    Stop {
        says: "An advertiser who is no subprocessor",
        listener: 0,
        caller: ADVERTISER,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Refuse(403, &["recipient_unknown"]),
    },
    Stop {
        says: "A subprocessor this customer objected to",
        listener: 0,
        caller: MARKETING,
        path: "/v1/customers/granite-notch/subscribers/1a2b",
        context: "purpose=customer_marketing",
        expect: Expect::Refuse(403, &["purpose_not_permitted", "subprocessor_objected"]),
    },
    Stop {
        says: "A subprocessor before its first day, and from abroad",
        listener: 0,
        caller: NIGHT_SUPPORT,
        path: "/v1/customers/redwood-strand/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Refuse(403, &["subprocessor_not_effective", "residency_access"]),
    },
    Stop {
        says: "Data of a Québec customer, kept in and read from Oregon",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/fibre-outardes/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Refuse(403, &["residency_storage", "residency_access"]),
    },
    Stop {
        says: "The same data kept in Québec, but read from Oregon",
        listener: 1,
        caller: CARE_DESK,
        path: "/v1/customers/fibre-outardes/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Refuse(403, &["residency_access"]),
    },
    Stop {
        says: "The same data for a call centre, under a transfer on record",
        listener: 1,
        caller: CALL_CENTRE,
        path: "/v1/customers/fibre-outardes/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Permit("permitted_purpose"),
    },
    Stop {
        says: "Support for a customer that left",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/kelp-sound/subscribers/1a2b",
        context: "purpose=customer_support",
        expect: Expect::Refuse(403, &["processing_restricted"]),
    },
    Stop {
        says: "Returning the data of a customer that left, on its instruction",
        listener: 1,
        caller: EXPORTER,
        path: "/v1/customers/kelp-sound/export",
        context: "purpose=data_return, instruction=\"ins-005\"",
        expect: Expect::Permit("instruction"),
    },
    Stop {
        says: "An export on an instruction that has expired",
        listener: 0,
        caller: ANALYTICS,
        path: "/v1/customers/redwood-strand/usage/export",
        context: "purpose=customer_analytics, instruction=\"ins-004\"",
        expect: Expect::Refuse(403, &["operation_not_permitted", "instruction_invalid"]),
    },
    Stop {
        says: "A subscriber whose data is restricted",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/redwood-strand/subscribers/7c1e",
        context: "purpose=customer_support",
        expect: Expect::Refuse(403, &["subscriber_restricted"]),
    },
    Stop {
        says: "The same subscriber's own request",
        listener: 0,
        caller: CARE_DESK,
        path: "/v1/customers/redwood-strand/subscribers/7c1e",
        context: "purpose=rights_fulfilment, request_ref=\"DSR-98\"",
        expect: Expect::Permit("legal_requirement"),
    },
    Stop {
        says: "Model training again, for a customer that only observes so far",
        listener: 0,
        caller: ROLLUP,
        path: "/v1/customers/cedar-hollow/usage",
        context: "purpose=model_training",
        expect: Expect::Observe(&["purpose_not_permitted"]),
    },
    Stop {
        says: "The service itself sends usage data to a subprocessor",
        listener: EGRESS,
        caller: None,
        path: "/v1/customers/redwood-strand/events",
        context: "purpose=customer_analytics",
        expect: Expect::Permit("permitted_purpose"),
    },
    Stop {
        says: "The same for a customer that objected to this subprocessor",
        listener: EGRESS,
        caller: None,
        path: "/v1/customers/fibre-outardes/events",
        context: "purpose=customer_analytics",
        expect: Expect::Refuse(
            403,
            &["purpose_not_permitted", "subprocessor_objected", "residency_storage", "residency_access"],
        ),
    },
];

/// The stops that only `--tls` has, each with who the header `DPA-Caller` says it is from.
const TLS_STOPS: [(Stop, Option<&Caller>); 5] = [
    (
        Stop {
            says: "A customer's own portal reads the data of that customer",
            listener: 1,
            caller: PORTAL,
            path: "/v1/customers/fibre-outardes/subscribers/1a2b",
            context: "purpose=customer_support",
            expect: Expect::Permit("permitted_purpose"),
        },
        None,
    ),
    (
        Stop {
            says: "The same portal asks for the data of another customer",
            listener: 0,
            caller: PORTAL,
            path: "/v1/customers/redwood-strand/subscribers/1a2b",
            context: "purpose=customer_support",
            expect: Expect::Refuse(403, &["customer_mismatch"]),
        },
        None,
    ),
    (
        Stop {
            says: "No certificate, and a header that says: care desk",
            listener: 0,
            caller: None,
            path: "/v1/customers/redwood-strand/subscribers/1a2b",
            context: "purpose=customer_support",
            expect: Expect::Refuse(401, &["caller_unidentified"]),
        },
        CARE_DESK,
    ),
    (
        Stop {
            says: "The biller's certificate, and a header that says: care desk",
            listener: 0,
            caller: BILLER,
            path: "/v1/customers/redwood-strand/subscribers/1a2b",
            context: "purpose=customer_support",
            expect: Expect::Refuse(403, &["purpose_not_bound_to_caller"]),
        },
        CARE_DESK,
    ),
    (
        Stop {
            says: "A certificate that says: care desk, of an authority not trusted",
            listener: 0,
            caller: IMPOSTOR,
            path: "/v1/customers/redwood-strand/subscribers/1a2b",
            context: "purpose=customer_support",
            expect: Expect::NoConnection(AlertDescription::UnknownCA),
        },
        None,
    ),
];

/// Longest wait for the end of a connection that has to be refused.
const WAIT: Duration = Duration::from_secs(5);

/// Everybody who asks, by name.
pub(super) fn callers() -> BTreeMap<&'static str, &'static Caller> {
    let stops = STOPS.iter().chain(TLS_STOPS.iter().map(|(stop, _)| stop));
    stops.filter_map(|stop| stop.caller).map(|caller| (caller.name, caller)).collect()
}

/// The fields of a record that the tour shows.
#[derive(Deserialize)]
struct Record {
    event: String,
    #[serde(default)]
    decision_id: String,
    #[serde(default)]
    decision: String,
    #[serde(default)]
    action: String,
    authority: Option<String>,
    #[serde(default)]
    reasons: Vec<Reason>,
    #[serde(default)]
    time: String,
    customer_id: Option<String>,
    caller_id: Option<String>,
    recipient: Option<Recipient>,
    purpose: Option<String>,
    operation: Option<String>,
    transfer_ref: Option<String>,
    transport: Option<Transport>,
}

#[derive(Deserialize)]
struct Recipient {
    id: Option<String>,
}

#[derive(Deserialize)]
struct Transport {
    tls_version: String,
    proof: String,
}

#[derive(Deserialize)]
struct Reason {
    code: String,
    clause: String,
}

/// What came of a stop.
enum Outcome {
    Answer {
        status: u16,
        decision_id: String,
    },
    /// How the handshake ended, if the sidecar said so.
    NoConnection(Option<AlertDescription>),
}

impl Outcome {
    fn decision_id(&self) -> &str {
        match self {
            Self::Answer { decision_id, .. } => decision_id,
            Self::NoConnection(_) => "",
        }
    }
}

pub(super) struct Tour<'d> {
    pub(super) listeners: &'d [(String, SocketAddr)],
    pub(super) service: &'d Service,
    pub(super) log: &'d Path,
    /// With them it is a tour over TLS.
    pub(super) certificates: Option<&'d Certificates>,
}

impl Tour<'_> {
    /// Walks the tour and shows it. Whether every outcome was as told.
    pub(super) fn walk(&self, out: &mut dyn Write) -> Result<bool, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Demo)?;
        let only_tls = self.certificates.iter().flat_map(|_| &TLS_STOPS).map(|(stop, says)| (stop, *says));
        let stops: Vec<_> = STOPS.iter().map(|stop| (stop, None)).chain(only_tls).collect();
        let mut outcomes = Vec::new();
        for (stop, says) in &stops {
            let Some((_, address)) = self.listeners.get(stop.listener) else {
                return Err(CliError::Usage("the demo has no such listener"));
            };
            outcomes.push(runtime.block_on(self.ask(*address, stop, *says))?);
        }
        let text = std::fs::read_to_string(self.log).map_err(CliError::Demo)?;
        let mut records: HashMap<String, (Record, &str)> = HashMap::new();
        for line in text.lines() {
            let record: Record = serde_json::from_str(line).map_err(|error| CliError::Demo(error.into()))?;
            if record.event == "dpa.decision" {
                records.insert(record.decision_id.clone(), (record, line));
            }
        }
        let mut as_told = true;
        writeln!(out, "    {:<64} {:<6} {:<15} BY CLAUSE OR AUTHORITY", "ASKED", "ANSWER", "DECIDED")?;
        for (number, ((stop, _), outcome)) in (1..).zip(stops.iter().zip(&outcomes)) {
            let record = records.get(outcome.decision_id()).map(|(record, _)| record);
            as_told &= self.show(number, stop, outcome, record, out)?;
        }
        show_log(&outcomes, &records, self.log, out)?;
        let refused =
            stops.iter().zip(&outcomes).filter(|((stop, _), outcome)| !self.was_sent_on(stop, outcome)).count();
        let verdict = if as_told { "every outcome was as told" } else { "NOT every outcome was as told" };
        writeln!(out, "\n{} requests, {refused} were not sent on; {verdict}.", outcomes.len())?;
        Ok(as_told)
    }

    fn show(
        &self,
        number: usize,
        stop: &Stop,
        outcome: &Outcome,
        record: Option<&Record>,
        out: &mut dyn Write,
    ) -> Result<bool, CliError> {
        let decided = record.map_or("no record".to_owned(), |record| match record.action.as_str() {
            "observed" => format!("{}, observed", record.decision),
            _ => record.decision.clone(),
        });
        let reasons: Vec<&Reason> = record.iter().flat_map(|record| &record.reasons).collect();
        let by = |reason: &&Reason| format!("{:<4} {}", reason.clause, reason.code);
        let authority = record.and_then(|record| record.authority.clone()).unwrap_or_default();
        let transfer = record.and_then(|record| record.transfer_ref.as_ref());
        let mut why: Vec<String> = reasons.iter().map(by).collect();
        if why.is_empty() {
            why.push(transfer.map_or(authority.clone(), |transfer| format!("{authority}, transfer {transfer}")));
        }
        let was_reached = self.was_sent_on(stop, outcome);
        let codes: Vec<&str> = reasons.iter().map(|reason| reason.code.as_str()).collect();
        let (answer, decided) = match outcome {
            Outcome::Answer { status, .. } => (status.to_string(), decided),
            Outcome::NoConnection(Some(_)) => ("none".to_owned(), "no connection".to_owned()),
            Outcome::NoConnection(None) => ("none".to_owned(), "not refused".to_owned()),
        };
        let as_told = match (&stop.expect, outcome) {
            (Expect::Permit(expected), Outcome::Answer { status, .. }) => {
                was_reached
                    && *status == 200
                    && authority == *expected
                    && codes.is_empty()
                    && self.is_proven(stop, record)
            }
            (Expect::Refuse(status, expected), Outcome::Answer { status: got, .. }) => {
                !was_reached && got == status && codes == *expected && self.is_proven(stop, record)
            }
            (Expect::Observe(expected), Outcome::Answer { status, .. }) => {
                was_reached && *status == 200 && codes == *expected && self.is_proven(stop, record)
            }
            (Expect::NoConnection(expected), Outcome::NoConnection(alert)) => {
                why = alert.iter().map(|alert| format!("TLS alert {alert:?}")).collect();
                alert.as_ref() == Some(expected)
            }
            (Expect::NoConnection(_), Outcome::Answer { .. })
            | (Expect::Permit(_) | Expect::Refuse(..) | Expect::Observe(_), Outcome::NoConnection(_)) => false,
        };
        let mut lines = why.iter();
        let first = lines.next().map_or("", String::as_str);
        writeln!(out, "{number:>2}  {:<64} {answer:<6} {decided:<15} {first}", stop.says)?;
        for line in lines {
            writeln!(out, "{:90}{line}", "")?;
        }
        if !as_told {
            writeln!(out, "    ^ NOT AS TOLD: this stop was to end otherwise")?;
        }
        Ok(as_told)
    }

    /// Whether the request reached whom it was for. A subprocessor is not told the id of the decision.
    fn was_sent_on(&self, stop: &Stop, outcome: &Outcome) -> bool {
        self.service.was_reached_by(if stop.listener == EGRESS { stop.path } else { outcome.decision_id() })
    }

    /// Whether the record says that the caller was proven in the way that this tour is about.
    fn is_proven(&self, stop: &Stop, record: Option<&Record>) -> bool {
        let expected = match (self.certificates, stop.caller) {
            _ if stop.listener == EGRESS => ("none", "settings"),
            (None, None) => ("none", "none"),
            (None, Some(_)) => ("none", "header"),
            (Some(_), None) => ("1.3", "none"),
            (Some(_), Some(_)) => ("1.3", "certificate"),
        };
        let transport = record.and_then(|record| record.transport.as_ref());
        transport.is_some_and(|transport| (transport.tls_version.as_str(), transport.proof.as_str()) == expected)
    }

    /// Sends one request and reads the answer.
    async fn ask(&self, address: SocketAddr, stop: &Stop, says: Option<&Caller>) -> Result<Outcome, CliError> {
        let stream = TcpStream::connect(address).await.map_err(CliError::Demo)?;
        let Some(certificates) = self.certificates.filter(|_| stop.listener != EGRESS) else {
            return exchange(stream, address, stop, stop.caller).await;
        };
        let client = certificates.client(stop.caller)?;
        if let Expect::NoConnection(_) = stop.expect {
            return Ok(refusal(&client, stream).await);
        }
        let stream = client.connect(stream).await.map_err(CliError::Demo)?;
        exchange(stream, address, stop, says).await
    }
}

fn show_log(
    outcomes: &[Outcome],
    records: &HashMap<String, (Record, &str)>,
    log: &Path,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let found: Vec<&(Record, &str)> =
        outcomes.iter().filter_map(|outcome| records.get(outcome.decision_id())).collect();
    writeln!(out, "\nThe decision log, shortened ({}):\n", log.display())?;
    for (record, _) in &found {
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".to_owned());
        let time = record.time.get(11..23).unwrap_or_default();
        let codes: Vec<&str> = record.reasons.iter().map(|reason| reason.code.as_str()).collect();
        let to = record.recipient.as_ref().filter(|to| to.id != record.caller_id).and_then(|to| to.id.as_ref());
        let caller = word(&record.caller_id) + &to.map_or_else(String::new, |to| format!(" → {to}"));
        writeln!(
            out,
            "  {time} {:<8} {:<14} {caller:<30} {:<18} {:<8} {}",
            record.action,
            word(&record.customer_id),
            word(&record.purpose),
            word(&record.operation),
            codes.join(" ")
        )?;
    }
    if let Some((_, line)) = found.get(7).or(found.first()) {
        writeln!(out, "\nOne record whole:\n\n{line}")?;
    }
    Ok(())
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    CliError::Demo(io::Error::other(error))
}

/// How the sidecar ends a handshake. In TLS 1.3 it says so only when something is read; nothing is sent before, so
/// that what it says is not lost.
async fn refusal(client: &tls::Client, stream: TcpStream) -> Outcome {
    let read = async { client.connect(stream).await?.read_u8().await };
    let error = match tokio::time::timeout(WAIT, read).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => return Outcome::NoConnection(None),
    };
    let told = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    Outcome::NoConnection(if let Some(rustls::Error::AlertReceived(alert)) = told { Some(*alert) } else { None })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    stop: &Stop,
    says: Option<&Caller>,
) -> Result<Outcome, CliError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let method = if stop.listener == EGRESS { Method::POST } else { Method::GET };
    let mut request = Request::builder()
        .method(method)
        .uri(stop.path)
        .header(header::HOST, address.to_string())
        .header(crate::establish::context::DPA_CONTEXT, stop.context);
    if let Some(caller) = says {
        request = request.header("dpa-caller", caller.identity);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let decision_id = response.headers().get(crate::gate::DPA_DECISION_ID);
        let decision_id = decision_id.and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok::<_, hyper::Error>(Outcome::Answer { status, decision_id })
    };
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        outcome = exchange => outcome.map_err(broken),
        _ = &mut connection => Err(CliError::Usage("the sidecar closed the demo's connection")),
    }
}
