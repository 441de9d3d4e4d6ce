#!/usr/bin/env python3
"""200 uploads of 10 MB at once through a sidecar that may take 64 MiB.

    tests/faults/memory.py [--program PATH] [--uploads 200] [--mebibytes 64]

The data service reads nothing until all uploads have begun, so that whatever is not held back by the sidecar piles up in
it. The peak of its resident memory counts (VmHWM of /proc). Each upload is answered 200 with all its bytes counted, each
has its decision and its outcome. Exit 0: so it is; 1: it is not; 2: it could not be run.
"""

import argparse
import collections
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZE = 10_000_000
CEILING = 240


class Origin:
    """Reads bodies once it is allowed to, and answers with their length."""

    def __init__(self, uploads):
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=uploads)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            threading.Thread(target=self.serve, args=(self.socket.accept()[0],), daemon=True).start()

    def serve(self, connection):
        reader = connection.makefile("rb")
        while reader.readline():
            length = 0
            for line in iter(reader.readline, b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            self.begun.release()
            self.allowed.wait(CEILING)
            left = length
            while left:
                piece = reader.read(min(left, 65536))
                if not piece:
                    return
                left -= len(piece)
            answer = str(length).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))


def upload(port, answers):
    head = ("PUT /v1/customers/redwood-strand/subscribers/1a2b HTTP/1.1\r\nHost: data.example\r\n"
            "DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk\r\nDPA-Context: purpose=customer_support\r\n"
            f"Content-Length: {SIZE}\r\nConnection: close\r\n\r\n").encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=CEILING) as connection:
            connection.sendall(head)
            piece = b"x" * 50_000
            for _ in range(SIZE // len(piece)):
                connection.sendall(piece)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        answers.append(answer.startswith(b"HTTP/1.1 200") and answer.endswith(str(SIZE).encode()))
    except OSError as error:
        print(f"an upload failed: {error}", file=sys.stderr)
        answers.append(False)


def start(program, folder, origin):
    settings = os.path.join(folder, "sidecar.yaml")
    with open(settings, "w") as file:
        file.write(f"""
service: {{name: subscriber-api, storage_location: US-OR}}
workers: 2
policy: {{file: {REPOSITORY}/config/policy.yaml}}
listeners: [{{name: main, address: '127.0.0.1:0', upstream: app}}]
upstreams: [{{name: app, address: '127.0.0.1:{origin.port}', response_timeout: {CEILING}s}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes:
  - path: /v1/customers/{{customer}}/{{*rest}}
    customer: {{from: path, name: customer}}
    purpose: {{from: context}}
    data_categories: [user.contact]
decision_log: {{file: {{path: decisions.ndjson}}}}
""")
    process = subprocess.Popen([program, "run", "--config", settings], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "RUST_LOG": "info", "NO_COLOR": "1"})
    for line in process.stderr:
        found = re.search(r"listening.*address=127\.0\.0\.1:(\d+)", line)
        if found:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found.group(1))
    print("the sidecar did not start", file=sys.stderr)
    sys.exit(2)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--program", default=os.path.join(REPOSITORY, "target/debug/dpa-sidecar"))
    options.add_argument("--uploads", type=int, default=200)
    options.add_argument("--mebibytes", type=int, default=64)
    options = options.parse_args()
    if not os.access(options.program, os.X_OK):
        print(f"{options.program} is missing", file=sys.stderr)
        return 2
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    origin = Origin(options.uploads)
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(options.program, folder, origin)
        try:
            answers = []
            callers = [threading.Thread(target=upload, args=(port, answers)) for _ in range(options.uploads)]
            for caller in callers:
                caller.start()
            for _ in callers:
                if not origin.begun.acquire(timeout=CEILING):
                    print("not all uploads began", file=sys.stderr)
                    return 1
            origin.allowed.set()
            for caller in callers:
                caller.join()
            with open(f"/proc/{process.pid}/status") as status:
                peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1)) / 1024
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
        finally:
            process.kill()
        with open(os.path.join(folder, "decisions.ndjson")) as log:
            records = [json.loads(line) for line in log]
    events = collections.Counter(record["event"] for record in records)
    completed = sum(record.get("outcome") == "completed" and record["request_bytes"] == SIZE for record in records)
    print(f"{answers.count(True)} of {options.uploads} uploads answered 200, {events['dpa.decision']} decisions, "
          f"{completed} outcomes with all bytes, exit {code}, peak {peak:.1f} MiB of {options.mebibytes}")
    counts = [answers.count(True), events["dpa.decision"], events["dpa.outcome"], completed]
    return 0 if code == 0 and peak <= options.mebibytes and counts == [options.uploads] * 4 else 1


if __name__ == "__main__":
    sys.exit(main())
