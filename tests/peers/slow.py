#!/usr/bin/env python3
"""Slow callers, 200 at once, made by slowhttptest: closed in time, cheap, and nobody else notices.

    tests/peers/slow.py [head body read]

head: heads that never end (-H). body: bodies that trickle (-B). read: answers that are hardly taken (-X). A sidecar with
its default limits stands in front of a service with a large answer. Meanwhile a good caller asks 50 times a second on
one connection.

Held: all slow connections are closed within their limit and a few seconds; each costs at most 64 KiB of the sidecar's
memory; the good caller's 99th percentile is at most twice what it was before (or 2 ms more: below that it is noise),
and all its requests are answered.

Exit codes: 0 held; 1 a finding; 2 cannot measure here (it says why). DPA_SIDECAR names the binary; without it the
release build is made and taken.
"""

import argparse
import asyncio
import multiprocessing
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from sidecar import installed

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALLERS = 200
RATE = 50
PER_STREAM = 64 * 1024
NOISE = 0.002
LARGE = 4 << 20
BEFORE = 8.0

# What slowhttptest does, and how long a connection may live: the default limit, and a tick of its timer more.
ATTACKS = {
    "head": (["-H", "-i", "3"], 10),
    "body": (["-B", "-i", "3", "-s", "8192"], 30 + 10),
    "read": (["-X", "-n", "2", "-w", "512", "-y", "1024", "-z", "32"], 90 + 10),
}
SLACK = 8.0

SETTINGS = """
service: {{name: subscriber-api, storage_location: US-OR}}
workers: 2
policy: {{file: "{root}/config/policy.yaml"}}
listeners: [{{name: main, address: "127.0.0.1:0", upstream: app}}]
upstreams: [{{name: app, address: "127.0.0.1:{upstream}"}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes: [{{path: "/assets/{{name}}", subscriber_data: false}}]
decision_log: {{file: {{path: decisions.ndjson}}}}
"""


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    sys.exit(2)


async def serve(reader, writer):
    """The service: a large answer, or `ok`; bodies are read."""
    # asyncio does so for sockets that it made itself. Without, each answer takes 44 ms.
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length.group(1)) if length else 0)
            size = LARGE if b"/large " in head else 2
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while size > 0:
                piece = min(size, 65536)
                writer.write(b"x" * piece)
                await writer.drain()
                size -= piece
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


def serve_alone(listener):
    """In a process of its own, so that it does not hold up what is measured."""

    async def run():
        server = await asyncio.start_server(serve, sock=listener, backlog=1024)
        await server.serve_forever()

    asyncio.run(run())


def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


def callers(port):
    """Connections to this port that the sidecar's side has not closed."""
    rows = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = f"0100007F:{port:04X}"
    return sum(1 for row in rows if row.split()[1] == local and row.split()[3] in ("01", "08"))


class Good:
    """A caller that minds its own business."""

    def __init__(self, port):
        self.port, self.took, self.failed = port, [], 0

    async def run(self, is_over):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        due = time.monotonic()
        while not is_over():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + 1 / RATE, time.monotonic())
            begin = time.monotonic()
            try:
                writer.write(b"GET /assets/small HTTP/1.1\r\nHost: data.example\r\n\r\n")
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                await reader.readexactly(2)
                self.failed += not head.startswith(b"HTTP/1.1 200 ")
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                self.failed += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.took.append(time.monotonic() - begin)
        writer.close()

    def p99(self):
        """The median of each second's: a single hiccup of the machine is none of the slow callers'."""
        seconds = [sorted(self.took[at : at + RATE]) for at in range(0, len(self.took) - RATE, RATE)]
        return statistics.median(second[int(len(second) * 0.99) - 1] for second in seconds)


async def attack(name, port, pid):
    flags, limit = ATTACKS[name]
    alone = Good(port)
    until = time.monotonic() + BEFORE
    await alone.run(lambda: time.monotonic() > until)
    before, base = resident(pid), callers(port)
    target = f"http://127.0.0.1:{port}/assets/{'large' if name == 'read' else 'small'}"
    slow = await asyncio.create_subprocess_exec(
        "slowhttptest", *flags, "-c", str(CALLERS), "-r", str(CALLERS), "-l", str(limit + 30), "-p", "5", "-v", "0",
        "-u", target, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    begin = time.monotonic()
    most, peak, closed = 0, before, None
    good = Good(port)
    is_over = False
    asking = asyncio.create_task(good.run(lambda: is_over))
    while time.monotonic() - begin < limit + SLACK:
        await asyncio.sleep(0.25)
        now = callers(port) - base - 1
        most, peak = max(most, now), max(peak, resident(pid))
        # slowhttptest looks in now and then on a connection of its own.
        if most > CALLERS // 2 and now <= 2:
            closed = time.monotonic() - begin
            break
    is_over = True
    await asking
    if slow.returncode is None:
        slow.kill()
    await slow.wait()
    if most < CALLERS * 3 // 4:
        skip(f"{name}: only {most} of {CALLERS} slow callers came about")
    each = max(0, peak - before) // most
    print(
        f"{name}: {most} slow callers, all closed after {f'{closed:.1f} s' if closed else 'never'}; "
        f"{each / 1024:.1f} KiB each; a good caller's p99 {alone.p99() * 1000:.2f} ms before, "
        f"{good.p99() * 1000:.2f} ms beside them, {good.failed} of its {len(good.took)} requests failed"
    )
    findings = []
    if closed is None:
        findings.append("not closed in time")
    if each > PER_STREAM:
        findings.append(f"more than {PER_STREAM // 1024} KiB each")
    if good.p99() > max(2 * alone.p99(), alone.p99() + NOISE):
        findings.append("a good caller notices")
    if good.failed or alone.failed:
        findings.append("requests of a good caller failed")
    for finding in findings:
        print(f"  finding: {finding}")
    return not findings


async def measure(folder, binary, names):
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    upstream = listener.getsockname()[1]
    service = multiprocessing.Process(target=serve_alone, args=(listener,), daemon=True)
    service.start()
    (folder / "sidecar.yaml").write_text(SETTINGS.format(root=ROOT, upstream=upstream))
    log = (folder / "sidecar.err").open("w")
    sidecar = subprocess.Popen([binary, "run", "--config", folder / "sidecar.yaml"], stderr=log)
    try:
        port = None
        for _ in range(200):
            found = re.search(r"address=127\.0\.0\.1:(\d+)", (folder / "sidecar.err").read_text())
            if found:
                port = int(found.group(1))
                break
            await asyncio.sleep(0.05)
        if port is None:
            skip(f"the sidecar does not start: {(folder / 'sidecar.err').read_text()}")
        held = [await attack(name, port, sidecar.pid) for name in names]
        if sidecar.poll() is not None or "panicked" in (folder / "sidecar.err").read_text():
            print("  finding: the sidecar did not survive it")
            return 1
        return 0 if all(held) else 1
    finally:
        sidecar.terminate()
        sidecar.wait(40)
        service.terminate()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*ATTACKS, []])
    names = parser.parse_args().names or list(ATTACKS)
    installed("slowhttptest", "slowhttptest")
    binary = os.environ.get("DPA_SIDECAR")
    if binary is None:
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
        binary = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "dpa-sidecar"
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(pathlib.Path(folder), binary, names))


if __name__ == "__main__":
    sys.exit(main())
