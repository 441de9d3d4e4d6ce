//! A connection that has switched protocols is believed as long as any other: not past what its caller has proven.

use super::SHOWN;
use super::Tls;
use super::material::Caller;
use crate::support::CARE_DESK;
use crate::support::Head;
use crate::support::SUBSCRIBER;
use crate::support::Sidecar;
use crate::support::Then;
use crate::support::Upstream;
use crate::support::wait_for;

/// Switches, and says what it hears.
fn echo() -> Upstream {
    Upstream::start(|exchange| {
        exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        while let Some(text) = exchange.try_bytes(4) {
            exchange.send(text);
        }
        Then::Close
    })
}

fn handshake() -> String {
    let head = Head::bare("GET", SUBSCRIBER).with("DPA-Context", "purpose=customer_support");
    head.with("Connection", "Upgrade").with("Upgrade", "websocket").end()
}

fn start(tls: Tls) -> Sidecar {
    let route = "    data_categories: [user.contact]\n";
    let settings = tls.settings().replace(route, &format!("{route}    upgrade: [websocket]\n"));
    Sidecar::start(tls.folder, &settings, &[])
}

#[test]
fn a_tunnel_ends_with_its_callers_certificate() {
    let upstream = echo();
    let tls = Tls::to(&upstream.address);
    let (ca, pair) = (tls.authority.pem.clone(), tls.authority.caller_for(CARE_DESK, 4));
    let sidecar = start(tls);
    let mut caller = Caller::new(&ca, Some(&pair)).connect(&sidecar.address).unwrap();
    let answer = caller.ask(&handshake()).unwrap();
    assert_eq!(answer.status, 101);
    caller.echo(b"ping").unwrap();
    wait_for("the end", || caller.echo(b"ping").err());
    assert_eq!(sidecar.outcome(&answer.decision_id())["outcome"], "cut");
}

#[test]
fn a_tunnel_ends_when_its_caller_is_taken_back_and_others_go_on() {
    let upstream = echo();
    let mut tls = Tls::to(&upstream.address);
    tls.listener = format!("{{{SHOWN}, client_ca: ca.crt, crl: [root.crl]}}");
    let path = tls.folder.write("root.crl", &tls.authority.list(&[], 3_600));
    let (good, bad) = (tls.authority.caller(CARE_DESK), tls.authority.caller(CARE_DESK));
    let (ca, revoked) = (tls.authority.pem.clone(), tls.authority.list(&[bad.number], 3_600));
    let sidecar = start(tls);
    let connect = |pair| {
        let mut caller = Caller::new(&ca, Some(pair)).connect(&sidecar.address).unwrap();
        let answer = caller.ask(&handshake()).unwrap();
        assert_eq!(answer.status, 101);
        (caller, answer.decision_id())
    };
    let ((mut good, _), (mut bad, id)) = (connect(&good), connect(&bad));
    good.echo(b"ping").unwrap();
    bad.echo(b"ping").unwrap();
    std::fs::write(path, revoked).unwrap();
    wait_for("the end", || bad.echo(b"ping").err());
    assert_eq!(sidecar.outcome(&id)["outcome"], "cut");
    good.echo(b"ping").unwrap();
}
