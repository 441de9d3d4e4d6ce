#!/usr/bin/env python3
"""HTTP/2 through the sidecar, with callers and services of others: permitted under the policy, and refused without.

    tests/peers/http2.py curl        curl, by prior knowledge, by ALPN and by `Upgrade`, to nghttpd and to nginx
    tests/peers/http2.py h2load      10,000 requests of each version to services of each, none of which may fail
    tests/peers/http2.py chromium    a page of 200 scripts over TLS, which asks for a subscriber's data too

A tap between the sidecar and the service counts bytes: of what is refused, nothing may reach the service.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

from forwarded import certificates
from services import PERMITTED, REFUSED, Tap, nginx
from sidecar import CARE, ROOT, all_accounted_for, check, free_port, installed, listens, process, program, records
from sidecar import running, wait_for

TARGET = "/v1/events"
REQUESTS = 10_000
SCRIPTS = 200


def settings(folder, port, upstream="", routes=""):
    """Two listeners, in clear and over TLS, to one service."""
    secure = free_port()
    (folder / "sidecar.yaml").write_text(f"""
service: {{name: subscriber-api, storage_location: US-OR, instance: peers}}
policy: {{file: {json.dumps(str(ROOT / "config/policy.yaml"))}}}
listeners:
  - {{name: main, address: "127.0.0.1:0", upstream: app}}
  - name: secure
    address: "127.0.0.1:{secure}"
    upstream: app
    tls: {{certificate: gateway.crt, private_key: gateway.key}}
upstreams: [{{name: app, address: "127.0.0.1:{port}"{upstream}}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes:
  - path: "/v1/{{*rest}}"
    customer: redwood-strand
    purpose: {{from: context}}
    data_categories: [user.contact]
{routes}
decision_log: {{file: {{path: decisions.ndjson}}}}
""")
    return secure


def said(purpose):
    return [word for header in [f"DPA-Caller: {CARE}", f"DPA-Context: purpose={purpose}"] for word in ("-H", header)]


@contextlib.contextmanager
def nghttpd(folder, is_tls):
    """A service that speaks HTTP/2."""
    port = free_port()
    words = [installed("nghttp2", "nghttpd"), "--echo-upload", "-d", str(folder / "files"), "-a", "127.0.0.1"]
    words += [str(port), str(folder / "gateway.key"), str(folder / "gateway.crt")] if is_tls else ["--no-tls", str(port)]
    with process(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait_for("nghttpd", lambda: listens(port))
        yield Tap(port)


@contextlib.contextmanager
def services(folder):
    """Each service: its name, what the settings say of it, and where it is."""
    (folder / "files/v1").mkdir(parents=True, exist_ok=True)
    (folder / "files" / TARGET[1:]).write_text("x" * 1024)
    location = f"location / {{ root {folder}/files; keepalive_requests 100000; }}"
    verified = ", protocol: http2, tls: {ca: ca.crt, server_name: localhost}"
    with nginx(folder, location) as one, nghttpd(folder, False) as two, nghttpd(folder, True) as three:
        yield [("nginx", "", one), ("nghttpd", ", protocol: http2", two), ("nghttpd over TLS", verified, three)]


def curl(folder, binary):
    words = [installed("curl", "curl"), "--silent", "--show-error", "--max-time", "20", "--cacert", str(folder / "ca.crt"),
             "--write-out", "%{stderr}%{http_version} %{http_code}"]
    data = os.urandom(1 << 20)
    (folder / "data").write_bytes(data)
    with services(folder) as all_services:
        for name, upstream, tap in all_services:
            secure = settings(folder, tap.port, upstream)
            (folder / "decisions.ndjson").unlink(missing_ok=True)
            with running(folder, binary) as proxy:
                plain, safe = f"http://127.0.0.1:{proxy}{TARGET}", f"https://localhost:{secure}{TARGET}"

                def ask(what, purpose, expected, *more, may_fail=False):
                    done = subprocess.run([*words, *said(purpose), *more], capture_output=True, timeout=60)
                    if not (may_fail and done.returncode == 92):
                        check(f"{name}: {what}", (done.returncode, done.stderr.decode()), (0, expected))
                    return done.stdout

                before = tap.bytes
                for what, version, url in [("--http2-prior-knowledge", "2", plain), ("--http2", "2", safe)]:
                    ask(f"{what}, refused", REFUSED, f"{version} 403", what, url)
                    # Older ones, still sending, do not look at an answer that came before its stream was reset; with
                    # nginx they do not either.
                    ask(f"{what}, an upload that is refused", REFUSED, f"{version} 403", what, "-T", str(folder / "data"), url,
                        may_fail=True)
                check(f"{name}: bytes of what is refused", tap.bytes - before, 0)
                for what, version, url in [("--http2-prior-knowledge", "2", plain), ("--http2", "2", safe),
                                           # `Upgrade: h2c` is removed as any other.
                                           ("--http2", "1.1", plain), ("--http1.1", "1.1", safe)]:
                    check("the file", ask(what, PERMITTED, f"{version} 200", what, url), b"x" * 1024)
                    ask(f"{what}, HEAD", PERMITTED, f"{version} 200", what, "--head", url)
                    ask(f"{what}, not there", PERMITTED, f"{version} 404", what, url + "-none")
                    if name != "nginx":
                        echo = ask(f"{what}, an upload", PERMITTED, f"{version} 200", what, "--data-binary",
                                   f"@{folder / 'data'}", url)
                        check(f"{name}: {what}: what came back", echo == data, True)
                all_accounted_for(folder)
                check(f"{name}: refused", len([it for it in records(folder, "dpa.decision") if it["action"] == "denied"]), 4)


def h2load(folder, binary):
    load = installed("nghttp2-client", "h2load")

    def run(what, purpose, requests, *more):
        words = [load, "-n", str(requests), "-c", "10", *more, *said(purpose)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        check(f"{what}: {done.stderr}", done.returncode, 0)
        counts = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, "
                           r"(\d+) timeout", done.stdout)
        codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout)
        return [int(it) for it in counts.groups()], [int(it) for it in codes.groups()]

    with services(folder) as all_services:
        for name, upstream, tap in all_services:
            secure = settings(folder, tap.port, upstream)
            for way, more in [("HTTP/1.1", ["--h1"]), ("HTTP/2", ["-m", "10"]), ("HTTP/2 over TLS", ["-m", "10"])]:
                # What goes both ways over TLS is slower, and nothing that the others are not.
                requests = REQUESTS // 10 if "TLS" in way + name else REQUESTS
                what = f"{way} to {name}"
                (folder / "decisions.ndjson").unlink(missing_ok=True)
                with running(folder, binary) as proxy:
                    url = f"https://localhost:{secure}{TARGET}" if "TLS" in way else f"http://127.0.0.1:{proxy}{TARGET}"
                    before = tap.bytes
                    counts, codes = run(f"{what}, refused", REFUSED, 200, *more, url)
                    check(f"{what}, refused", (counts[3:], codes), ([200, 0, 0], [0, 0, 200, 0]))
                    check(f"{what}: bytes of what is refused", tap.bytes - before, 0)
                    counts, codes = run(what, PERMITTED, requests, *more, url)
                    check(what, (counts, codes), ([requests] * 3 + [0] * 3, [requests, 0, 0, 0]))
                    all_accounted_for(folder)
                    decisions = [it["action"] for it in records(folder, "dpa.decision")]
                    found = (decisions.count("allowed"), decisions.count("denied"), len(records(folder, "dpa.outcome")))
                    check(f"{what}: records", found, (requests, 200, requests))
                print(f"{what}: {requests} requests", flush=True)


PAGE = f"""<!doctype html><html><head><title>assets</title><link rel="icon" href="data:,"><script>window.count = 0</script>
{"".join(f'<script async src="/assets/{number}.js"></script>' for number in range(SCRIPTS))}
</head><body><script>
function ask(purpose) {{
    const request = new XMLHttpRequest();
    request.open("GET", "{TARGET}", false);
    request.setRequestHeader("DPA-Caller", "{CARE}");
    request.setRequestHeader("DPA-Context", "purpose=" + purpose);
    request.send();
    return request.status + " " + request.responseText.slice(0, 40);
}}
addEventListener("load", () => {{
    const entries = performance.getEntries().filter(entry => entry.nextHopProtocol);
    const found = {{
        count: window.count, page: performance.getEntriesByType("navigation")[0].nextHopProtocol,
        by: entries.filter(entry => entry.name.includes("/assets/") && entry.nextHopProtocol == "h2").length,
        permitted: ask("{PERMITTED}"), refused: ask("{REFUSED}").slice(0, 3),
    }};
    document.body.textContent = "found:" + JSON.stringify(found) + ":found";
}});
</script></body></html>"""


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen = []

    def do_GET(self):
        Service.seen.append((self.path, self.headers["Via"], self.headers["DPA-Context"]))
        kind, body = "text/javascript", "window.count += 1;" + "//" + "x" * (37 * len(Service.seen))
        if self.path.endswith(".html"):
            kind, body = "text/html", PAGE
        elif self.path == TARGET:
            kind, body = "text/plain", "a subscriber"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def chromium(folder, binary):
    browser = installed("chromium", "chromium")
    # 200 requests at a time are as many connections.
    http.server.ThreadingHTTPServer.request_queue_size = 2 * SCRIPTS
    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    route = '  - {path: "/assets/{*rest}", methods: [GET], subscriber_data: false}'
    secure = settings(folder, service.server_port, routes=route)
    with running(folder, binary):
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
                 "--disable-background-networking", "--no-first-run", "--ignore-certificate-errors",
                 f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"https://localhost:{secure}/assets/page.html"]
        with process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            out, err = child.communicate(timeout=180)
        found = re.search(r"found:(\{.*\}):found", out)
        check(f"the page: {out[-1000:]} {err[-2000:]}", found is not None, True)
        found = json.loads(found[1].replace("&amp;", "&"))
        check("what the browser found", found, {"count": SCRIPTS, "page": "h2", "by": SCRIPTS + 1,
                                                "permitted": "200 a subscriber", "refused": "403"})
        all_accounted_for(folder)
        decisions = records(folder, "dpa.decision")
        of = [(it["action"], it.get("authority") or it["reason"], it["route"]) for it in decisions]
        check("records of assets", of.count(("allowed", "out_of_scope", "/assets/{*rest}")), SCRIPTS + 1)
        check("other records", sorted(it for it in of if it[2] != "/assets/{*rest}"),
              [("allowed", "permitted_purpose", "/v1/{*rest}"), ("denied", "purpose_not_bound_to_caller", "/v1/{*rest}")])
        check("over TLS", {it["transport"].get("tls_version") for it in decisions}, {"1.3"})
        check("the version that the service is told", {via for _, via, _ in Service.seen}, {"2.0 dpa-sidecar"})
        check("requests at the service", len(Service.seen), SCRIPTS + 2)
        context = [context for path, _, context in Service.seen if path == TARGET]
        check("what it is told of them", context, [f'customer="redwood-strand", purpose="{PERMITTED}"'])


def main():
    kinds = {"curl": curl, "h2load": h2load, "chromium": chromium}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    binary = program()
    with tempfile.TemporaryDirectory(prefix="dpa-http2-", ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        certificates(folder)
        kinds[sys.argv[1]](folder, binary)
    print(f"{sys.argv[1]}: all as it should be")


if __name__ == "__main__":
    main()
