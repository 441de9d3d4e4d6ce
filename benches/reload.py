#!/usr/bin/env python3
"""A policy of 10,000 customers is replaced while requests come: what that costs them, and how much memory.

    benches/reload.py target/release/dpa-sidecar [--customers 10000] [--rate 500] [--reloads 8]

Prints p50 and p99 of requests with and without a reload under way, how long a reload took, and the memory that was
resident before, and at most. Loopback only.
"""

import argparse
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time


def policy(sample, revision, customers):
    head = re.sub(r"revision: \d+", f"revision: {revision}", sample, count=1)
    lines = [head.rstrip()]
    for number in range(customers):
        lines.append(
            f"  - id: made-up-{number}\n    legal_name: Made Up {number} Broadband\n"
            f"    dpa: {{version: \"3\", accepted_at: 2024-01-10, contract_ref: MSA-{number}}}\n"
            f"    permitted_purposes: [base, customer_analytics]\n"
            f"    residency: {{storage_locations: [US, CA], access_locations: [US, CA], source: instruction, ref: ins-1}}\n"
            f"    objections: [{{subprocessor: sp-09, effective_at: 2025-02-01, ref: OBJ-{number}}}]\n"
            f"    instructions:\n      - {{id: ins-1, issuer_role: Privacy officer, reference: R-{number}, "
            f"received_at: 2024-01-10, accepted_at: 2024-01-10, valid_from: 2024-01-10}}"
        )
    return "\n".join(lines) + "\n"


def memory(process, what):
    with open(f"/proc/{process}/status") as status:
        return int(re.search(rf"{what}:\s+(\d+) kB", status.read()).group(1)) / 1024


def serve():
    class Service(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("program")
    options.add_argument("--customers", type=int, default=10_000)
    options.add_argument("--rate", type=int, default=500)
    options.add_argument("--reloads", type=int, default=8)
    given = options.parse_args()
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "config", "policy.yaml")) as file:
        sample = file.read()
    folder = tempfile.mkdtemp(prefix="dpa-reload-")
    path = os.path.join(folder, "policy.yaml")
    texts = [policy(sample, 100 + number, given.customers) for number in range(given.reloads + 1)]
    with open(path, "w") as file:
        file.write(texts[0])
    with open(os.path.join(folder, "sidecar.yaml"), "w") as file:
        file.write(f"""service: {{name: subscriber-api, storage_location: US-OR}}
policy: {{file: policy.yaml}}
workers: 2
listeners: [{{name: main, address: "127.0.0.1:0", upstream: app}}]
upstreams: [{{name: app, address: "127.0.0.1:{serve()}"}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes:
  - path: /v1/customers/{{customer}}/{{*rest}}
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    data_categories: [user.contact]
decision_log: {{file: {{path: decisions.ndjson}}}}
""")
    begin = time.monotonic()
    child = subprocess.Popen(
        [given.program, "run", "--config", os.path.join(folder, "sidecar.yaml")], stderr=subprocess.PIPE, text=True
    )
    said = []
    news = threading.Condition()

    def listen():
        for line in child.stderr:
            with news:
                said.append(line)
                news.notify_all()

    threading.Thread(target=listen, daemon=True).start()

    def wait(pattern):
        with news:
            while True:
                for line in said:
                    if match := re.search(pattern, line):
                        return match
                if not news.wait(60):
                    sys.exit("waited in vain for " + pattern + "\n" + "".join(said))

    port = int(wait(r"listening name=main address=127.0.0.1:(\d+)").group(1))
    started = time.monotonic() - begin
    request = (
        "GET /v1/customers/made-up-7/contacts HTTP/1.1\r\nHost: a\r\n"
        "DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk\r\nDPA-Context: purpose=customer_support\r\n\r\n"
    ).encode()
    taken, stop, failed = [], threading.Event(), []

    def ask(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        period, due = connections / given.rate, time.monotonic()
        while not stop.is_set():
            due += period
            time.sleep(max(0, due - time.monotonic()))
            begin = time.monotonic()
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):
                more = connection.recv(65536)
                if not more or answer.count(b"problem+json"):
                    break
                answer += more
            taken.append((begin, time.monotonic() - begin))
            if b" 200 " not in answer[:20]:
                failed.append(answer)

    askers = [threading.Thread(target=ask, args=(4,)) for _ in range(4)]
    for asker in askers:
        asker.start()
    time.sleep(3)
    before, spans, tooks, residents = memory(child.pid, "VmRSS"), [], [], []
    for number, text in enumerate(texts[1:], 101):
        fresh = path + ".new"
        with open(fresh, "w") as file:
            file.write(text)
        begin = time.monotonic()
        os.rename(fresh, path)
        tooks.append(int(wait(rf"policy loaded .*revision={number} .*took_ms=(\d+)").group(1)))
        spans.append((begin, time.monotonic()))
        residents.append(round(memory(child.pid, "VmRSS"), 1))
        time.sleep(2)
    stop.set()
    for asker in askers:
        asker.join()
    after, peak = memory(child.pid, "VmRSS"), memory(child.pid, "VmHWM")
    child.terminate()
    child.wait()

    # The last of a span is the reload itself; before it, the files were looked at.
    loads = [(end - took / 1000 - 0.05, end + 0.05) for (_, end), took in zip(spans, tooks)]
    during = [took for at, took in taken if any(begin <= at <= end for begin, end in loads)]
    quiet = [took for at, took in taken if not any(begin - 0.5 <= at <= end + 0.5 for begin, end in loads)]

    def shown(times):
        times = sorted(times)
        return {"requests": len(times), "p50_us": round(times[len(times) // 2] * 1e6), "p99_us": round(times[len(times) * 99 // 100] * 1e6)}

    result = {
        "customers": given.customers,
        "policy_mib": round(len(texts[0]) / 2**20, 1),
        "start_s": round(started, 2),
        "reload_ms": tooks,
        "change_to_effect_s": [round(end - begin, 2) for begin, end in spans],
        "quiet": shown(quiet),
        "during": shown(during),
        "p99_ratio": round(shown(during)["p99_us"] / shown(quiet)["p99_us"], 2),
        "failed": len(failed),
        "resident_mib": round(before, 1),
        "resident_after_each_mib": residents,
        "resident_after_mib": round(after, 1),
        "peak_mib": round(peak, 1),
        "peak_of_resident": round(peak / before, 2),
    }
    print(json.dumps(result, indent=2))


main()
