#!/usr/bin/env python3
"""Resident memory of each idle connection, in clear and over TLS.

    benches/idle.py [--program target/release/dpa-sidecar] [--connections 10000]

Each connection is used once and stays open. 0: both are within the gate (28 KiB in clear, 64 KiB over TLS; the goals
are 10 and 24), 1: one is not, 2: it could not be measured here.
"""

import argparse
import os
import re
import resource
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

GATE = {"in clear": 28, "over TLS": 64}
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: data.example\r\n\r\n"


def unable(why):
    print(why, file=sys.stderr)
    sys.exit(2)


def data_service():
    """Answers each request of a probe with 200."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def serve():
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif key.fileobj.recv(65536):
                    key.fileobj.sendall(answer)
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def resident(process):
    with open(f"/proc/{process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1))


def settings(folder, upstream, tls):
    keys = ", tls: {certificate: tls.crt, private_key: tls.key}" if tls else ""
    text = f"""
service: {{name: idle, storage_location: US-OR}}
policy: {{file: {HERE}/config/policy.yaml}}
listeners: [{{name: main, address: '127.0.0.1:0', upstream: app{keys}}}]
upstreams: [{{name: app, address: '127.0.0.1:{upstream}'}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes: [{{path: /assets, subscriber_data: false}}]
probes: [/healthz]
decision_log: {{file: {{path: decisions.ndjson}}}}
limits: {{connections: 20000, header_timeout: 30m}}
"""
    path = os.path.join(folder, "sidecar.yaml")
    with open(path, "w") as file:
        file.write(text)
    return path


def certificate(folder):
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=idle", "-addext", "subjectAltName=DNS:data.example",
         "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "tls.key", "-out", "tls.crt"],
        cwd=folder, capture_output=True,
    )
    if made.returncode:
        unable("openssl cannot make a certificate")


def start(program, path):
    # Its own end of each connection, and ours, are files; the upstream's are few.
    process = subprocess.Popen(
        [program, "run", "--config", path], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "RUST_LOG": "info", "NO_COLOR": "1"},
    )
    for line in process.stderr:
        found = re.search(r"listening.*address=127\.0\.0\.1:(\d+)", line)
        if found:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found.group(1))
        if "fewer connections" in line:
            print(line.strip(), file=sys.stderr)
    unable("the sidecar did not start")


def use_once(port, tls):
    connection = socket.create_connection(("127.0.0.1", port))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    connection.sendall(REQUEST)
    if b" 200 " not in connection.recv(4096):
        unable("a request was not answered 200")
    return connection


def measure(program, count, tls):
    with tempfile.TemporaryDirectory() as folder:
        if tls:
            certificate(folder)
        process, port = start(program, settings(folder, data_service(), tls))
        try:
            # What is made once, the first connections pay for.
            first = [use_once(port, tls) for _ in range(20)]
            before = resident(process)
            idle = [use_once(port, tls) for _ in range(count)]
            time.sleep(1)
            each = (resident(process) - before) / count
            del first, idle
            return each
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=os.path.join(HERE, "target/release/dpa-sidecar"))
    parser.add_argument("--connections", type=int, default=10000)
    arguments = parser.parse_args()
    if not os.access(arguments.program, os.X_OK):
        unable(f"{arguments.program} is missing: cargo build --release")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The sidecar keeps half of its files for connections to the service.
    count = min(arguments.connections, hard // 2 - 500)
    failed = False
    for name, tls in (("in clear", False), ("over TLS", True)):
        each = measure(arguments.program, count, tls)
        is_good = each <= GATE[name]
        failed |= not is_good
        print(f"{name}: {each:.1f} KiB for each of {count} idle connections, gate {GATE[name]}: {'ok' if is_good else 'TOO MUCH'}")
    sys.exit(1 if failed else 0)


main()
