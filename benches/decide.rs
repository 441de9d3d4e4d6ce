//! What a decision costs, its record, and a policy: time, allocations, memory.
//!
//! `cargo bench --bench decide`. Read ratios, not figures: 10 customers with 20 subprocessors against
//! 10,000 with 200, asked by a mix in which few customers ask most (Zipf).
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a benchmark that cannot go on stops")]

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use dpa_sidecar::decide::decide;
use dpa_sidecar::decide::decision::Outcome;
use dpa_sidecar::decide::facts::Caller;
use dpa_sidecar::decide::facts::Carried;
use dpa_sidecar::decide::facts::Customers;
use dpa_sidecar::decide::facts::Direction;
use dpa_sidecar::decide::facts::Fact;
use dpa_sidecar::decide::facts::Facts;
use dpa_sidecar::decide::facts::Scope;
use dpa_sidecar::decide::facts::Source;
use dpa_sidecar::decide::facts::Transport;
use dpa_sidecar::gate::act;
use dpa_sidecar::policy;
use dpa_sidecar::policy::Durability;
use dpa_sidecar::policy::Enforcement;
use dpa_sidecar::policy::Party;
use dpa_sidecar::policy::Policy;
use dpa_sidecar::policy::problem;
use dpa_sidecar::policy::terms::DataCategory;
use dpa_sidecar::policy::terms::Operation;
use dpa_sidecar::record::Batch;
use dpa_sidecar::record::chain::Head;
use dpa_sidecar::record::entry;
use dpa_sidecar::record::entry::About;
use dpa_sidecar::record::entry::Unread;
use dpa_sidecar::record::entry::Writer;
use dpa_sidecar::record::log::Counters;
use dpa_sidecar::record::log::FileSettings;
use dpa_sidecar::record::log::Log;
use dpa_sidecar::record::log::LogSettings;
use dpa_sidecar::record::log::OnFailure;
use dpa_sidecar::record::recorder::Pass;
use futures_util::future::join_all;
use http::Method;
use jiff::Timestamp;
use uuid::Uuid;

/// A policy of so many customers and subprocessors; every tenth customer has an objection, an instruction,
/// a restriction and a residency of its own.
fn text(customers: usize, subprocessors: usize) -> String {
    let mut text = "version: 1
metadata: {name: bench, revision: 1}
processor: {id: p, legal_name: P}
defaults:
  residency: {storage_locations: [US, CA], access_locations: [US, CA], source: dpa}
purposes:
"
    .to_owned();
    for purpose in 0..8 {
        writeln!(text, "  purpose_{purpose}: {{ccpa_business_purpose: e5, necessity: x}}").unwrap();
    }
    text.push_str("purpose_sets: {base: [purpose_0, purpose_1, purpose_2, purpose_3]}\nsubprocessors:\n");
    for entry in 0..subprocessors {
        writeln!(
            text,
            "  - {{id: sp-{entry}, legal_name: S, service: s, identities: [\"spiffe://s{entry}.example/sa/x\"], \
             permitted_purposes: [base], data_categories: [user.contact, user.account], storage_locations: [US-OR], \
             access_locations: [US-OR], agreement: {{ref: r, signed_on: 2020-01-01, flow_down: true}}, \
             effective_at: 2021-01-01}}"
        )
        .unwrap();
    }
    text.push_str("customers:\n");
    for customer in 0..customers {
        write!(
            text,
            "  - {{id: c-{customer}, legal_name: Customer, dpa: {{version: \"3\", accepted_at: 2024-01-01, \
             contract_ref: M}}, permitted_purposes: [base]"
        )
        .unwrap();
        if customer % 10 == 0 {
            write!(
                text,
                ", residency: {{storage_locations: [US], access_locations: [US], source: dpa}}, objections: \
                 [{{subprocessor: sp-{}, effective_at: 2024-01-01, ref: O}}], instructions: [{{id: ins-1, issuer_role: x, \
                 reference: R, received_at: 2024-01-01, accepted_at: 2024-01-01, valid_from: 2024-01-01, restricts: \
                 {{subscriber: \"7c1e\"}}}}]",
                customer % subprocessors
            )
            .unwrap();
        }
        text.push_str("}\n");
    }
    text
}

fn compile(text: &str) -> Policy {
    let source = problem::Source { path: "bench.yaml".to_owned(), text: text.to_owned() };
    let (policy, problems) = policy::compile(&[source], &["bench.yaml".to_owned()], None, None);
    policy.unwrap_or_else(|| panic!("{:?}", problems.0))
}

/// Requests of a Zipf mix, all but a few permitted.
fn requests<'a>(policy: &Policy, customers: usize, subprocessors: usize, data: &'a [DataCategory]) -> Vec<Facts<'a>> {
    let mut state = 42_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f64::from(u32::try_from(state >> 32).unwrap()) / f64::from(u32::MAX)
    };
    let zipf = |uniform: f64, count: usize| {
        let count = u32::try_from(count).unwrap();
        // The inverse of the distribution function of 1/x on 1..count.
        let rank = f64::from(count).powf(uniform);
        (1..count).rev().find(|known| f64::from(*known) <= rank).unwrap_or(0)
    };
    (0..4096)
        .map(|_| {
            let customer = format!("c-{}", zipf(random(), customers));
            let entry = policy.subprocessor_named(&format!("sp-{}", zipf(random(), subprocessors))).unwrap();
            let party = Party::Subprocessor(entry);
            let identity = policy.identity_of(party).unwrap();
            let purpose = if random() < 0.95 { "purpose_1" } else { "purpose_7" };
            Facts {
                direction: Direction::Ingress,
                transport: Transport { tls: None, client_certificate: false, is_unix: false },
                carried: Carried::default(),
                caller: Fact::Known(Caller { identity: Some(identity), party: Some(party) }, Source::Header),
                scope: Scope::Within,
                route: Some("/v1"),
                route_place: Some(0),
                customers: Fact::Known(Customers::One(policy.customer_named(&customer).unwrap()), Source::Path),
                purpose: Fact::Known(policy.purpose_named(purpose).unwrap(), Source::Context),
                operation: Fact::Known(Operation::Retrieve, Source::Method),
                data_categories: data,
                subscriber: Fact::Known("1a2b".to_owned(), Source::Path),
                instruction: Fact::None,
                request_ref: Fact::None,
                location: Fact::None,
                storage: "US-OR".parse().unwrap(),
            }
        })
        .collect()
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn decisions(criterion: &mut Criterion) {
    let now: Timestamp = "2026-06-15T12:00:00Z".parse().unwrap();
    let data: Vec<DataCategory> = vec!["user.contact".parse().unwrap()];
    for (customers, subprocessors) in [(10, 20), (10_000, 200)] {
        let policy = compile(&text(customers, subprocessors));
        let requests = requests(&policy, customers, subprocessors, &data);
        let is_permit = |facts: &Facts<'_>| matches!(decide(&policy, facts, now).outcome, Outcome::Permit { .. });
        let permits = requests.iter().filter(|facts| is_permit(facts)).count();
        let permit = requests.iter().find(|facts| is_permit(facts)).unwrap();
        let allocations = allocation_counter::measure(|| {
            black_box(decide(&policy, black_box(permit), now));
        });
        println!(
            "{customers} x {subprocessors}: {permits} of {} permitted; a permit makes {} heap allocations",
            requests.len(),
            allocations.count_total
        );
        let mut next = requests.iter().cycle();
        criterion.bench_function(&format!("decide {customers} x {subprocessors}"), |bencher| {
            bencher.iter(|| black_box(decide(&policy, black_box(next.next().unwrap()), now)));
        });
    }
}

fn writer() -> Writer {
    Writer {
        service: "subscriber-api".to_owned(),
        instance: "pod-0".to_owned(),
        log: Uuid::now_v7(),
        on_failure: "deny",
        durability: "written",
        enforcement: Enforcement::Enforce,
    }
}

/// The record of a permit: encoded by the worker; numbered, hashed and sealed by the writer.
fn records(criterion: &mut Criterion) {
    let now: Timestamp = "2026-06-15T12:00:00Z".parse().unwrap();
    let data: Vec<DataCategory> = vec!["user.contact".parse().unwrap()];
    let policy = compile(&text(10, 20));
    let requests = requests(&policy, 10, 20, &data);
    let facts = requests.iter().find(|facts| matches!(decide(&policy, facts, now).outcome, Outcome::Permit { .. }));
    let facts = facts.unwrap();
    let decision = decide(&policy, facts, now);
    let writer = writer();
    let about = About {
        time: now,
        decision_id: Uuid::now_v7(),
        request_id: Uuid::now_v7(),
        trace_id: "2435d99c1e1242cca8ffeb1026da02d1",
        method: &Method::GET,
        is_stale: false,
    };
    let (enforcement, action) = act(&decision, Enforcement::Enforce);
    let encode = |batch: &mut Batch| {
        entry::decision(batch, &writer, &about, &policy, facts, &decision, enforcement, action);
    };
    criterion.bench_function("encode a record", |bencher| {
        bencher.iter(|| {
            let mut batch = Batch::default();
            encode(&mut batch);
            black_box(batch)
        });
    });
    let mut lines = Vec::new();
    let record =
        serde_json::to_vec(&serde_json::json!({"event": "dpa.decision", "padding": "x".repeat(1000)})).unwrap();
    let record = record.strip_suffix(b"}").unwrap();
    let mut head = Head::NONE;
    criterion.bench_function("seal a record of 1 KiB", |bencher| {
        bencher.iter(|| {
            lines.clear();
            head.seal(black_box(record), &mut lines);
        });
    });
}

/// Nanoseconds that a thread of this process has run.
fn ran(thread: &Path) -> u64 {
    fs::read_to_string(thread.join("schedstat")).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn thread_named(name: &str) -> std::path::PathBuf {
    let all = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let is_named = |path: &std::path::PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|it| it.trim() == name);
    all.into_iter().find(is_named).unwrap()
}

/// From a worker to the writer and back, without what the record costs to encode: it is a copy of the shortest one.
/// 64 requests wait at a time, as many as a turn of a busy worker's loop brings.
fn hand_over(criterion: &mut Criterion) {
    const WAITING: u32 = 64;
    const ROUNDS: u32 = 20_000;
    let now: Timestamp = "2026-06-15T12:00:00Z".parse().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hand-over-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = FileSettings { path: folder.join("log"), rotate_bytes: 1 << 26, rotate_after: None, keep: Some(1) };
    let settings = LogSettings {
        file: Some(file),
        stdout: false,
        durability: Durability::Written,
        timeout: Duration::from_secs(10),
        on_failure: OnFailure::Deny,
        signer: None,
        checkpoint_every: Duration::from_secs(1),
        checkpoint_copy: None,
    };
    let (log, closing) = Log::open(&settings, writer(), Box::new(move || now), Counters::default(), |_, _| {}).unwrap();
    let recorder = log.recorder();
    drop(log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let handing_over = local.spawn_local(recorder.clone().hand_over());
    let one = async || {
        let pass = Pass { decision_id: Uuid::now_v7(), time: now, is_permitted: true, may_be_lost: false };
        recorder.append(pass, |batch| entry::unread(batch, recorder.writer(), now, Unread::default())).await.unwrap()
    };
    let round = || local.block_on(&runtime, join_all((0..WAITING).map(|_| one())));
    // A thread bears its name once it runs.
    drop(round());
    let (worker, log) = (Path::new("/proc/thread-self").canonicalize().unwrap(), thread_named("dpa-log"));
    let (worker_before, log_before) = (ran(&worker), ran(&log));
    (0..ROUNDS).for_each(|_| drop(black_box(round())));
    let each = |since: u64, thread: &Path| (ran(thread) - since) / u64::from(WAITING * ROUNDS);
    println!(
        "a record on its way, {WAITING} waiting: the worker runs for {} ns, the writer for {} ns",
        each(worker_before, &worker),
        each(log_before, &log)
    );
    criterion.bench_function("hand over 64 records and wait for them", |bencher| bencher.iter(round));
    let deadline = Instant::now() + Duration::from_secs(10);
    local.block_on(&runtime, recorder.finish(handing_over, deadline));
    drop(recorder);
    closing.wait(deadline);
    fs::remove_dir_all(&folder).unwrap();
}

fn load(criterion: &mut Criterion) {
    let text = text(10_000, 200);
    let before = resident();
    let started = Instant::now();
    let policy = compile(&text);
    println!(
        "10,000 x 200: {} KiB of text compile in {:?}; resident memory grows by {} KiB, {:.2} KiB a customer",
        text.len() / 1024,
        started.elapsed(),
        resident() - before,
        f64::from(u32::try_from(resident() - before).unwrap()) / 10_000.0
    );
    drop(policy);
    criterion.bench_function("compile 10,000 x 200", |bencher| bencher.iter(|| black_box(compile(&text))));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = decisions, records, hand_over, load
}
criterion_main!(benches);
