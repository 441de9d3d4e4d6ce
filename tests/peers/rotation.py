#!/usr/bin/env python3
"""Certificates that are swapped under load: 0 failed requests.

    tests/peers/rotation.py [--seconds 30] [--rate 500]

A sidecar with mTLS, its certificate and key in a folder behind a symbolic link, as a Secret is mounted. Every three
seconds the link is swapped for a folder with a new certificate; in between stand a key that does not belong to its
certificate and a file that is cut off, which must change nothing. Meanwhile requests go at a fixed rate, ten a
connection, so that a tenth of them shakes hands.

Exit codes: 0 held; 1 a request failed, the record of one is missing, or a certificate came after more than 5 s;
2 cannot measure here (it says why). DPA_SIDECAR names the binary; without it the release build is made and taken.
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PER_CONNECTION = 10
EVERY = 3.0
WITHIN = 5.0
SWAPPED = 4

REQUEST = (
    b"GET /v1/customers/redwood-strand/subscribers/1a2b HTTP/1.1\r\nHost: data.example\r\n"
    b"DPA-Context: purpose=customer_support\r\n\r\n"
)
CALLER = "spiffe://lumenfield.example/ns/care/sa/care-desk"

SETTINGS = """
service: {{name: subscriber-api, storage_location: US-OR}}
workers: 2
policy: {{file: "{root}/config/policy.yaml"}}
listeners:
  - name: main
    address: "127.0.0.1:0"
    upstream: app
    tls: {{certificate: data/tls.crt, private_key: data/tls.key, client_ca: ca.crt}}
upstreams: [{{name: app, address: "127.0.0.1:{upstream}"}}]
identity: [{{certificate: {{}}}}]
routes:
  - path: /v1/customers/{{customer}}/subscribers/{{id}}
    customer: {{from: path, name: customer}}
    subscriber: {{from: path, name: id}}
    purpose: {{from: context}}
    data_categories: [user.contact]
decision_log: {{file: {{path: decisions.ndjson}}}}
"""


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    sys.exit(2)


def openssl(folder, *arguments):
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        skip(f"openssl {arguments[0]}: {done.stderr}")


def sign(folder, name, extension):
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(folder, "req", *ec, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / f"{name}.ext").write_text(extension)
    given = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "90", "-extfile", f"{name}.ext"]
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", *given, "-out", f"{name}.crt")


def swap(folder, name, certificate, key):
    version = folder / name
    version.mkdir()
    (version / "tls.crt").write_text(certificate)
    (version / "tls.key").write_text(key)
    fresh = folder / "data.new"
    fresh.symlink_to(version)
    fresh.rename(folder / "data")


async def serve(reader, writer):
    """The service: 200 to every head."""
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            serve.count += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


serve.count = 0


async def exchange(reader, writer):
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE).group(1))
    await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200 ")


class Load:
    def __init__(self, port, context, rate):
        self.port, self.context, self.rate = port, context, rate
        self.asked, self.failed, self.late = 0, [], 0.0
        self.shown = set()

    async def run(self, askers, until):
        await asyncio.gather(*(self.ask(number, askers, until) for number in range(askers)))

    async def ask(self, number, askers, until):
        gap = askers / self.rate
        due = time.monotonic() + gap * number / askers
        while due < until:
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, ssl=self.context, server_hostname="data.example"
                )
                self.shown.add(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            except Exception as error:  # Whatever it is, a request failed.
                self.asked += 1
                self.failed.append(repr(error))
                due += gap
                continue
            for _ in range(PER_CONNECTION):
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self.late = max(self.late, time.monotonic() - due)
                due += gap
                self.asked += 1
                try:
                    if not await exchange(reader, writer):
                        self.failed.append("not 200")
                except Exception as error:
                    self.failed.append(repr(error))
                    break
            writer.close()


async def rotate(folder, load, pairs, until):
    """Swaps until the end; how long each new certificate took to be shown."""
    took = []
    for number in range(1, 10_000):
        if time.monotonic() + EVERY + WITHIN > until:
            return took
        certificate, key, der = pairs[number % SWAPPED]
        other = pairs[(number + 1) % SWAPPED]
        swap(folder, f"misfit-{number}", certificate, other[1])
        await asyncio.sleep(EVERY / 3)
        swap(folder, f"cut-{number}", certificate[:200], key)
        await asyncio.sleep(EVERY / 3)
        load.shown.clear()
        swap(folder, f"good-{number}", certificate, key)
        begin = time.monotonic()
        while der not in load.shown:
            if time.monotonic() - begin > WITHIN:
                return took + [float("inf")]
            await asyncio.sleep(0.02)
        took.append(time.monotonic() - begin)
        await asyncio.sleep(EVERY / 3)


async def measure(folder, binary, seconds, rate):
    service = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream = service.sockets[0].getsockname()[1]
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(folder, "req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.crt", "-days", "90", "-subj", "/CN=Test")
    sign(folder, "caller", f"subjectAltName=URI:{CALLER}\n")
    pairs = []
    for number in range(SWAPPED):
        sign(folder, f"shown-{number}", "subjectAltName=DNS:data.example\n")
        certificate = (folder / f"shown-{number}.crt").read_text()
        pairs.append((certificate, (folder / f"shown-{number}.key").read_text(), ssl.PEM_cert_to_DER_cert(certificate)))
    swap(folder, "good-0", pairs[0][0], pairs[0][1])
    (folder / "sidecar.yaml").write_text(SETTINGS.format(root=ROOT, upstream=upstream))
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "caller.crt", folder / "caller.key")
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
        load = Load(port, context, rate)
        until = time.monotonic() + seconds
        _, took = await asyncio.gather(load.run(32, until), rotate(folder, load, pairs, until))
    finally:
        sidecar.terminate()
        sidecar.wait(40)
    with (folder / "decisions.ndjson").open() as lines:
        recorded = sum(json.loads(line)["event"] == "dpa.decision" for line in lines)
    print(
        f"{load.asked} requests in {seconds} s, {len(load.failed)} failed; "
        f"{len(took)} certificates, shown after at most {max(took, default=0):.1f} s; "
        f"{serve.count} came to the service, {recorded} decisions on record"
    )
    for failure in load.failed[:5]:
        print(f"  {failure}")
    if load.asked < 0.9 * rate * seconds:
        skip(f"this machine does not reach {rate} requests a second")
    held = not load.failed and took and max(took) <= WITHIN and recorded == serve.count == load.asked
    return 0 if held else 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=500)
    arguments = parser.parse_args()
    if shutil.which("openssl") is None:
        skip("no openssl")
    binary = os.environ.get("DPA_SIDECAR")
    if binary is None:
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
        binary = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "dpa-sidecar"
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(pathlib.Path(folder), binary, arguments.seconds, arguments.rate))


if __name__ == "__main__":
    sys.exit(main())
