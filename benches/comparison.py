#!/usr/bin/env python3
"""The sidecar next to nginx, HAProxy and Envoy: what each costs for the same work, in one run.

    benches/comparison.py [--quick] [--only http1,h2] [--program target/release/dpa-sidecar]

Every proxy has core 0, one worker, a JSON access log in a file, and the same load and data service on core 1. The
sidecar authorizes each request by the whole sample policy and records it before it forwards (`written`, the chain on);
the others authorize nothing, but for two more Envoys, with its RBAC filter: 50 customers, 20 callers and 8 purposes, as
a tree of look-ups by hash and as the usual list of rules. All take turns in each round, so that a machine that gets
slower or faster does so for all.

  http1    GET of 1 KiB, 64 connections that are kept: us of processor time a request, requests a second
  latency  2,000 requests a second, evenly spaced over 16 connections, on cores that do not halt: p50 and p99 in ms from
           when each was due; of the rounds, the best
  calm     the same with 1,000 requests a second
  large    GET of 1 MiB, 16 connections: us of processor time a MiB, MiB a second
  mtls     as http1, over TLS 1.3 with client certificates, which HAProxy on core 1 shows, as a tunnel
  h2       HTTP/2 in clear, 16 connections with 8 streams, from an HTTP/1.1 service: us a request
  grpc     the same, unary calls of a service over HTTP/2, with trailers: us a request
  memory   MiB resident after one request, and KiB for each of 9,500 idle connections

Processor time is utime + stime of all processes of the proxy, over the requests that were answered. Ratios are
against nginx of the same run, medians of the rounds; the microseconds belong to the machine.

Takes about ten minutes (--quick: three). 0: measured, 1: something was not answered as it should be, 2: cannot be
measured here (it says why). What is missing of wrk, h2load, nginx and HAProxy is installed if it can be, Envoy into
target/peers.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/peers"))
from forwarded import envoy_binary  # noqa: E402

HERTZ = os.sysconf("SC_CLK_TCK")
CARE = "spiffe://lumenfield.example/ns/care/sa/care-desk"
CALLERS = [
    (CARE, "customer_support"),
    (CARE, "account_management"),
    ("spiffe://lumenfield.example/ns/bill/sa/biller", "billing_payment"),
    ("spiffe://ticketriver.example/sa/sync", "customer_support"),
]
CUSTOMERS = ["redwood-strand", "granite-notch"]
CONTEXT = 'customer="redwood-strand", purpose=customer_support'
METHOD = "/subscribers.v1.Subscribers/Get"
SCENARIOS = ["http1", "latency", "calm", "large", "mtls", "h2", "grpc", "memory"]
TOOLS = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "nghttpd": "nghttp2-server"}


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    sys.exit(2)


def fail(why):
    print(f"failed: {why}", file=sys.stderr)
    sys.exit(1)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def pinned(core, *words):
    return ["taskset", "-c", str(core), *map(str, words)]


def answers(port, process):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def running(words, port, log, **others):
    with open(log, "ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, **others)
    try:
        if not answers(port, process):
            skip(f"{words[3]} does not start: {pathlib.Path(log).read_text()[-2000:]}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def family(process):
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [str(process.pid), *children]


def ticks(process):
    total = 0
    for pid in family(process):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total


def resident(process):
    """KiB; what processes share is counted once."""
    total = 0
    for pid in family(process):
        total += int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M).group(1))
    return total


class Bench:
    """The folder, the certificates, and what stands around every proxy."""

    def __init__(self, folder, program, seconds):
        self.folder, self.program, self.seconds = folder, program, seconds
        self.warm_up = max(1, seconds // 4)
        # Words before the sidecar's own: what it runs under.
        self.under = []
        (self.folder / "www/subscribers.v1.Subscribers").mkdir(parents=True)
        (self.folder / "www/large").write_bytes(b"x" * (1 << 20))
        # A message of gRPC: not compressed, its length, and 1 KiB.
        message = b"\0" + (1024).to_bytes(4, "big") + b"m" * 1024
        (self.folder / f"www{METHOD}").write_bytes(message)
        (self.folder / "message").write_bytes(b"\0" + (16).to_bytes(4, "big") + b"m" * 16)
        self.certificates()
        self.load_script()

    def certificates(self):
        def openssl(*words):
            subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        openssl("req", "-x509", *curve, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
        for name, san in [("server", "DNS:localhost,IP:127.0.0.1"), ("client", f"URI:{CARE}")]:
            (self.folder / f"{name}.ext").write_text(f"subjectAltName={san}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
            openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                    "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")
        for name in ["server", "client"]:
            (self.folder / f"{name}.pem").write_text((self.folder / f"{name}.crt").read_text() + (self.folder / f"{name}.key").read_text())

    def load_script(self):
        callers = ", ".join(f'{{"{caller}", "{purpose}"}}' for caller, purpose in CALLERS)
        (self.folder / "load.lua").write_text(
            f"""local callers = {{ {callers} }}
local requests, next, count = {{}}, 0, 0
function init()
    local large, one = os.getenv("LARGE"), os.getenv("ONE_CALLER")
    for number = 0, 255 do
        local caller = callers[number % (one and 2 or 4) + 1]
        local customer = number % 8 < 4 and "redwood-strand" or "granite-notch"
        local path = string.format("/v1/customers/%s/subscribers/%04x", customer, number)
        if large then path = "/v1/customers/" .. customer .. "/large" end
        requests[number] = wrk.format("GET", path, {{
            ["Host"] = "subscribers.test", ["Accept"] = "application/json", ["DPA-Caller"] = not one and caller[1] or nil,
            ["DPA-Context"] = string.format('customer="%s", purpose=%s', customer, caller[2]),
        }})
    end
end
function request()
    next = (next + 1) % 256
    return requests[next]
end
"""
        )

    def nginx_text(self, http):
        return f"""worker_processes 1; daemon off; pid {self.folder}/nginx-%d.pid; error_log {self.folder}/nginx.err;
worker_rlimit_nofile 65536; events {{ worker_connections 32768; }}
http {{ keepalive_requests 1000000000; client_body_temp_path {self.folder}/t1; proxy_temp_path {self.folder}/t2;
fastcgi_temp_path {self.folder}/t3; uwsgi_temp_path {self.folder}/t4; scgi_temp_path {self.folder}/t5;
{http} }}"""

    def nginx(self, core, port, http):
        path = self.folder / f"nginx-{port}.conf"
        path.write_text(self.nginx_text(http).replace("%d", str(port)))
        return running(pinned(core, "nginx", "-c", path), port, self.folder / "nginx.out")

    def service(self, kind):
        """The data service: on core 1, over HTTP/1.1, or for gRPC over HTTP/2."""
        [port] = free_ports(1)
        if kind == "grpc":
            words = ["nghttpd", "--no-tls", "-n1", "-a", "127.0.0.1", "-d", self.folder / "www", "--trailer", "grpc-status: 0", port]
            return port, running(pinned(1, *words), port, self.folder / "nghttpd.out")
        body = json.dumps({"subscriber": "x" * 1006})
        http = f"""access_log off; sendfile on; server {{ listen 127.0.0.1:{port};
location / {{ default_type application/json; return 200 '{body}'; }}
location ~ /large$ {{ default_type application/octet-stream; alias {self.folder}/www/large; }} }}"""
        return port, self.nginx(1, port, http)


# Each proxy: a context manager of its process, with a port, for a kind of scenario and the port of the service.


def sidecar(bench, kind, port, service):
    tls = ", tls: {certificate: server.crt, private_key: server.key, client_ca: ca.crt}" if kind == "mtls" else ""
    identity = "certificate: {}" if kind == "mtls" else "header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}"
    protocol = ", protocol: http2" if kind == "grpc" else ""
    (bench.folder / "sidecar.yaml").write_text(
        f"""service: {{name: subscriber-api, storage_location: US-OR}}
workers: 1
policy: {{file: "{ROOT}/config/policy.yaml"}}
listeners: [{{name: main, address: "127.0.0.1:{port}", upstream: app{tls}}}]
upstreams: [{{name: app, address: "127.0.0.1:{service}"{protocol}}}]
identity: [{{{identity}}}]
routes:
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    methods: [GET]
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.name, user.contact, user.account]
  - path: /v1/customers/{{customer}}/large
    methods: [GET]
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    data_categories: [user.name]
  - path: {METHOD}
    methods: [POST]
    customer: {{from: context}}
    purpose: {{from: context}}
    operation: retrieve
    data_categories: [user.name]
decision_log: {{file: {{path: "sidecar.log"}}}}
limits: {{connections: 20000, header_timeout: 30m}}
"""
    )
    for old in bench.folder.glob("sidecar*.log"):
        old.unlink()
    return running(pinned(0, *bench.under, bench.program, "run", "--config", bench.folder / "sidecar.yaml"), port, bench.folder / "sidecar.out")


def nginx(bench, kind, port, service):
    log = """log_format json escape=json '{"time":"$time_iso8601","id":"$request_id","remote":"$remote_addr",'
'"method":"$request_method","uri":"$request_uri","caller":"$http_dpa_caller","context":"$http_dpa_context",'
'"status":$status,"bytes":$body_bytes_sent,"duration":$request_time,"upstream":"$upstream_addr"}';"""
    listen = {"mtls": "ssl", "h2": "http2", "grpc": "http2"}.get(kind, "")
    tls = ""
    if kind == "mtls":
        tls = f"""ssl_certificate {bench.folder}/server.crt; ssl_certificate_key {bench.folder}/server.key; ssl_protocols TLSv1.3;
ssl_client_certificate {bench.folder}/ca.crt; ssl_verify_client on;"""
    on = 'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";'
    if kind == "grpc":
        on = "grpc_pass grpc://app;"
    http = f"""{log} access_log {bench.folder}/access.log json; http2_max_concurrent_streams 256;
upstream app {{ server 127.0.0.1:{service}; keepalive 256; keepalive_requests 1000000000; }}
server {{ listen 127.0.0.1:{port} {listen}; {tls} location / {{ {on} }} }}"""
    return bench.nginx(0, port, http)


def haproxy(bench, kind, port, service):
    bind = {
        "mtls": f" ssl crt {bench.folder}/server.pem ca-file {bench.folder}/ca.crt verify required ssl-min-ver TLSv1.3",
        "h2": " proto h2",
        "grpc": " proto h2",
    }.get(kind, "")
    path = bench.folder / "haproxy.cfg"
    path.write_text(
        f"""global
  nbthread 1
  maxconn 9700
  log stdout format raw local0
defaults
  mode http
  timeout client 30m
  timeout server 60s
  timeout connect 1s
  log global
frontend main
  bind 127.0.0.1:{port}{bind}
  http-request capture req.hdr(dpa-caller) len 100
  http-request capture req.hdr(dpa-context) len 100
  log-format '{{"time":"%Ts","id":"%rt","remote":"%ci","method":"%HM","uri":"%HU","caller":"%[capture.req.hdr(0)]","context":"%[capture.req.hdr(1),json(utf8s)]","status":%ST,"bytes":%B,"duration":%Tr,"upstream":"%s"}}'
  default_backend app
backend app
  http-reuse always
  server app 127.0.0.1:{service}{" proto h2" if kind == "grpc" else ""}
"""
    )
    return running(pinned(0, "haproxy", "-db", "-f", path), port, bench.folder / "haproxy.log")


def rules():
    """50 customers, 20 callers, 8 purposes: those of the load are in the middle of the rest."""
    customers = [f"customer-{number}" for number in range(48)]
    callers = [f"spiffe://other.example/sa/caller-{number}" for number in range(17)]
    customers[24:24], callers[8:8] = CUSTOMERS, list(dict.fromkeys(caller for caller, _ in CALLERS))
    purposes = ["customer_support", "account_management", "billing_payment", *(f"purpose_{number}" for number in range(5))]
    return customers, callers, purposes


def rbac_list():
    customers, callers, purposes = rules()
    policies = {}
    for customer in customers:
        contexts = [{"header": {"name": "dpa-context", "string_match": {"exact": f'customer="{customer}", purpose={purpose}'}}} for purpose in purposes]
        for caller in callers:
            either = {"and_rules": {"rules": [{"header": {"name": "dpa-caller", "string_match": {"exact": caller}}}, {"or_rules": {"rules": contexts}}]}}
            policies[f"{customer} {caller}"] = {"permissions": [either], "principals": [{"any": True}]}
    return {"rules": {"action": "ALLOW", "policies": policies}}


def rbac_tree():
    customers, callers, purposes = rules()

    def action(name, kind):
        value = {"@type": "type.googleapis.com/envoy.config.rbac.v3.Action", "name": name, "action": kind}
        return {"action": {"name": "act", "typed_config": value}}

    def by_header(name, branches):
        looked_up = {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": name}
        return {"matcher_tree": {"input": {"name": name, "typed_config": looked_up}, "exact_match_map": {"map": branches}},
                "on_no_match": action("deny", "DENY")}

    contexts = {f'customer="{customer}", purpose={purpose}': action("allow", "ALLOW") for customer in customers for purpose in purposes}
    return {"matcher": by_header("dpa-caller", {caller: {"matcher": by_header("dpa-context", contexts)} for caller in callers})}


def envoy(rbac=None):
    def start(bench, kind, port, service):
        def address(number):
            return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

        def typed(name, **fields):
            return {"@type": f"type.googleapis.com/envoy.{name}", **fields}

        filters = [{"name": "envoy.filters.http.router", "typed_config": typed("extensions.filters.http.router.v3.Router")}]
        if rbac:
            filters[:0] = [{"name": "envoy.filters.http.rbac", "typed_config": typed("extensions.filters.http.rbac.v3.RBAC", **rbac())}]
        line = {"time": "%START_TIME%", "id": "%REQ(X-REQUEST-ID)%", "remote": "%DOWNSTREAM_REMOTE_ADDRESS%", "method": "%REQ(:METHOD)%",
                "uri": "%REQ(:PATH)%", "caller": "%REQ(DPA-CALLER)%", "context": "%REQ(DPA-CONTEXT)%", "status": "%RESPONSE_CODE%",
                "bytes": "%BYTES_SENT%", "duration": "%DURATION%", "upstream": "%UPSTREAM_HOST%"}
        manager = typed(
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="main",
            codec_type="HTTP2" if kind in ("h2", "grpc") else "AUTO", http_filters=filters, stream_idle_timeout="1800s",
            access_log=[{"name": "file", "typed_config": typed("extensions.access_loggers.file.v3.FileAccessLog",
                         path=str(bench.folder / "envoy.access"), log_format={"json_format": line})}],
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]},
        )
        chain = {"filters": [{"name": "manager", "typed_config": manager}]}
        if kind == "mtls":
            files = {"certificate_chain": {"filename": str(bench.folder / "server.crt")}, "private_key": {"filename": str(bench.folder / "server.key")}}
            common = {"tls_certificates": [files], "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                      "validation_context": {"trusted_ca": {"filename": str(bench.folder / "ca.crt")}}}
            context = typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext", require_client_certificate=True, common_tls_context=common)
            chain["transport_socket"] = {"name": "tls", "typed_config": context}
        cluster = {"name": "app", "connect_timeout": "1s", "load_assignment": {"cluster_name": "app", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(service)}}]}]},
            "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 65536, "max_requests": 65536}]}}
        if kind == "grpc":
            protocol = typed("extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})
            cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol}
        listener = {"name": "main", "address": address(port), "filter_chains": [chain]}
        path = bench.folder / "envoy.json"
        path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        words = [envoy_binary(), "-c", path, "--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
        return running(pinned(0, *words), port, bench.folder / "envoy.out")

    return start


PROXIES = {"sidecar": sidecar, "nginx": nginx, "HAProxy": haproxy, "Envoy": envoy(), "Envoy, RBAC tree": envoy(rbac_tree), "Envoy, RBAC list": envoy(rbac_list)}


def wrk(bench, port, connections, seconds, **environment):
    words = pinned(1, "wrk", "--threads", 1, "--connections", connections, "--duration", f"{seconds}s", "--timeout",
                   "30s" if bench.under else "2s", "--script", bench.folder / "load.lua", f"http://127.0.0.1:{port}")
    out = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}).stdout
    if not re.search(r"[1-9]\d* requests in", out) or "Non-2xx" in out or "Socket errors" in out:
        fail(f"not every request was answered 200: {out}")
    return int(re.search(r"(\d+) requests in", out).group(1)), float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))


def h2load(bench, port, kind, seconds, *options):
    one = ["-H", f"DPA-Caller: {CARE}", "-H", f"DPA-Context: {CONTEXT}"]
    url = f"http://127.0.0.1:{port}/v1/customers/redwood-strand/subscribers/00a0"
    if kind == "grpc":
        url = f"http://127.0.0.1:{port}{METHOD}"
        one += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", bench.folder / "message"]
    words = pinned(1, "h2load", "-t1", "-D", seconds, *one, *options, url)
    out = subprocess.run(words, capture_output=True, text=True).stdout
    found = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", out)
    if not found or found.group(3) == "0" or found.group(4) != "0" or not re.search(r"\d 2xx, 0 3xx, 0 4xx, 0 5xx", out):
        fail(f"not every request was answered 200: {out}")
    return int(found.group(3)), float(re.search(r"([\d.]+) req/s", out).group(1))


def measured(process, load):
    """us of processor time a request, requests a second."""
    before = ticks(process)
    count, rate = load()
    # What is logged after the answer is a moment late.
    time.sleep(0.2)
    return (ticks(process) - before) * 1e6 / HERTZ / count, rate


def http1(bench, process, port):
    wrk(bench, port, 64, bench.warm_up)
    return measured(process, lambda: wrk(bench, port, 64, bench.seconds))


def large(bench, process, port):
    wrk(bench, port, 16, bench.warm_up, LARGE="1")
    return measured(process, lambda: wrk(bench, port, 16, bench.seconds, LARGE="1"))


def mtls(bench, process, port):
    [client] = free_ports(1)
    path = bench.folder / "client.cfg"
    path.write_text(
        f"""global
  nbthread 1
defaults
  mode tcp
  timeout client 1m
  timeout server 1m
  timeout connect 5s
listen client
  bind 127.0.0.1:{client}
  server proxy 127.0.0.1:{port} ssl crt {bench.folder}/client.pem ca-file {bench.folder}/ca.crt verify required sni str(localhost)
"""
    )
    with running(pinned(1, "haproxy", "-db", "-f", path), client, bench.folder / "client.out"):
        wrk(bench, client, 64, bench.warm_up, ONE_CALLER="1")
        return measured(process, lambda: wrk(bench, client, 64, bench.seconds, ONE_CALLER="1"))


def streams(kind):
    def run(bench, process, port):
        h2load(bench, port, kind, bench.warm_up, "-c16", "-m8")
        return measured(process, lambda: h2load(bench, port, kind, bench.seconds, "-c16", "-m8"))

    return run


@contextlib.contextmanager
def awake():
    """Cores that do not halt: waking a virtual one is dear, and differs from moment to moment. What runs gives way at once."""
    spin = "import os, sys\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinning = [subprocess.Popen(pinned(core, sys.executable, "-c", spin)) for core in (0, 1)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


def requests():
    for number in range(256):
        caller, purpose = CALLERS[number % 4]
        customer = CUSTOMERS[number % 8 >= 4]
        yield (f"GET /v1/customers/{customer}/subscribers/{number:04x} HTTP/1.1\r\nHost: subscribers.test\r\nAccept: application/json\r\n"
               f'DPA-Caller: {caller}\r\nDPA-Context: customer="{customer}", purpose={purpose}\r\n\r\n').encode()


def latency(rate):
    def asked(port, seconds):
        """Requests that are due at even distances, whether or not those before are answered; ms of each, from then."""
        every = list(requests())
        free, open_at, took = collections.deque(), {}, []
        for _ in range(16):
            one = socket.create_connection(("127.0.0.1", port), 10)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            free.append(one)
        begin = time.perf_counter() + 0.01
        sent, count = 0, int(rate * seconds)
        while len(took) < count:
            now = time.perf_counter()
            due = begin + sent / rate
            if sent < count and due <= now and free:
                one = free.popleft()
                one.sendall(every[sent % 256])
                # What this program is late by is not the proxy's, unless all connections were waiting for it.
                open_at[one] = now if now - due < 0.001 else due
                sent += 1
                continue
            rest = 10 if sent == count or not free else max(0, due - now)
            ready, _, _ = select.select(list(open_at), [], [], rest)
            if not ready and rest == 10:
                fail("a request was not answered within 10 s")
            for one in ready:
                got = one.recv(65536)
                while got and not got.endswith((b'x"}', b"\r\n0\r\n\r\n")):
                    piece = one.recv(65536)
                    got = got + piece if piece else b""
                if not got.startswith(b"HTTP/1.1 200 "):
                    fail(f"not every request was answered 200: {got[:200]}")
                took.append((time.perf_counter() - open_at.pop(one)) * 1000)
                free.append(one)
        for one in free:
            one.close()
        took.sort()
        return took[len(took) // 2], took[len(took) * 99 // 100]

    def run(bench, process, port):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {1})
        try:
            with awake():
                asked(port, 1)
                return asked(port, bench.seconds)
        finally:
            os.sched_setaffinity(0, before)

    return run


def memory(bench, process, port):
    request = (f"GET /v1/customers/redwood-strand/subscribers/00a0 HTTP/1.1\r\nHost: subscribers.test\r\nDPA-Caller: {CARE}\r\n"
               f"DPA-Context: {CONTEXT}\r\n\r\n").encode()

    def ask():
        one = socket.create_connection(("127.0.0.1", port), 10)
        one.sendall(request)
        got = b""
        while not got.endswith(b'x"}') and not got.endswith(b"\r\n0\r\n\r\n"):
            piece = one.recv(65536)
            if not piece:
                fail(f"a connection was closed: {got[:200]}")
            got += piece
        return one

    first = ask()
    at_start = resident(process)
    many = [ask() for _ in range(9500)]
    time.sleep(1)
    grown = resident(process) - at_start
    for one in [first, *many]:
        one.close()
    return at_start / 1024, grown / 9500


RUNS = {"http1": http1, "latency": latency(2000), "calm": latency(1000), "large": large, "mtls": mtls, "h2": streams("h2"), "grpc": streams("grpc"), "memory": memory}
UNITS = {"http1": ("us/request", "requests/s"), "latency": ("p50 ms", "p99 ms"), "calm": ("p50 ms", "p99 ms"), "large": ("us/MiB", "MiB/s"), "mtls": ("us/request", "requests/s"),
         "h2": ("us/request", "requests/s"), "grpc": ("us/request", "requests/s"), "memory": ("MiB at start", "KiB/idle connection")}


def install():
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        if os.geteuid() or not shutil.which("apt-get"):
            skip(f"missing, and only root can install it: {' '.join(missing)}")
        for words in [["update"], ["install", "-y", "--no-install-recommends", *missing]]:
            if subprocess.run(["apt-get", *words], capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}).returncode:
                skip(f"cannot install {' '.join(missing)}")
    for tool in ["taskset", "openssl", "pgrep"]:
        if not shutil.which(tool):
            skip(f"no {tool}")
    if os.cpu_count() < 2:
        skip("it takes two cores to keep the load off the proxy's")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "target/release/dpa-sidecar"))
    parser.add_argument("--quick", action="store_true", help="one round of two seconds, and coarser")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas between")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(SCENARIOS)}")
    install()
    if not os.access(given.program, os.X_OK):
        skip(f"no {given.program}: cargo build --release")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rounds, seconds = (1, 2) if given.quick else (3, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        bench = Bench(folder, given.program, seconds)
        for scenario in chosen:
            # What permits costs depends on the request; the other scenarios are about what carries it.
            proxies = PROXIES if scenario in ("http1", "latency", "calm", "memory") else {name: PROXIES[name] for name in list(PROXIES)[:4]}
            found = {name: [] for name in proxies}
            for _ in range(1 if scenario == "memory" else rounds):
                for name, start in proxies.items():
                    service, serving = bench.service(scenario)
                    [port] = free_ports(1)
                    with serving, start(bench, scenario, port, service) as process:
                        found[name].append(RUNS[scenario](bench, process, port))
            pick = min if scenario in ("latency", "calm") else statistics.median
            print(f"\n{scenario:10} {UNITS[scenario][0]:>14} {'ratio':>7} {UNITS[scenario][1]:>20} {'ratio':>7}   rounds")
            lines = {name: [pick(column) for column in zip(*values)] for name, values in found.items()}
            for name, (first, second) in lines.items():
                by = lines["nginx"]
                each = " ".join(f"{one:.1f}" if one >= 10 else f"{one:.2f}" for one, _ in found[name])
                print(f"{name:18} {first:6.2f} {first / by[0]:7.2f} {second:20.2f} {second / by[1]:7.2f}   {each}", flush=True)


if __name__ == "__main__":
    main()
