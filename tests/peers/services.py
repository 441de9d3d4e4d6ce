#!/usr/bin/env python3
"""Real services behind the sidecar, each used by its own client: permitted under the policy, and refused without.

    tests/peers/services.py websockets    an echo server and client, messages of 3 MiB both ways
    tests/peers/services.py registry      docker-registry: 50 MB in chunks, a part of them back
    tests/peers/services.py git           git over smart HTTP: clone and push
    tests/peers/services.py dav           nginx: an upload, and back

A tap between the sidecar and the service counts bytes: of what is refused, nothing may reach the service.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.parse

from sidecar import CARE, CEILING, ROOT, all_accounted_for, check, free_port, installed, listens, process, program
from sidecar import records, running, skip, wait_for

PERMITTED, REFUSED = "customer_support", "customer_analytics"
WEBSOCKETS = "websockets==15.0.1"


def headers(purpose):
    return {"DPA-Caller": CARE, "DPA-Context": f"purpose={purpose}"}


class Tap:
    """Passes connections on to a port, and counts the bytes that go there."""

    def __init__(self, to):
        self.to, self.bytes = to, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            one, _ = self.listener.accept()
            two = socket.create_connection(("127.0.0.1", self.to))
            for source, sink, counts in [(one, two, True), (two, one, False)]:
                threading.Thread(target=self.relay, args=(source, sink, counts), daemon=True).start()

    def relay(self, source, sink, counts):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes += len(data) if counts else 0
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def sidecar(folder, binary, port, keys="", upstream=""):
    (folder / "sidecar.yaml").write_text(f"""
service: {{name: subscriber-api, storage_location: US-OR, instance: peers}}
policy: {{file: {json.dumps(str(ROOT / "config/policy.yaml"))}}}
listeners: [{{name: main, address: "127.0.0.1:0", upstream: app}}]
upstreams: [{{name: app, address: "127.0.0.1:{port}"{upstream}}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes:
  - path: /{{*rest}}
    customer: redwood-strand
    purpose: {{from: context}}
    data_categories: [user.contact]
{keys}
decision_log: {{file: {{path: decisions.ndjson}}}}
""")
    with running(folder, binary) as proxy:
        yield proxy


# Each service: where it listens, then what is asked of it.

ECHO = """
import asyncio, sys
from websockets.asyncio.server import serve

async def echo(socket):
    async for message in socket:
        await socket.send(message)

async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None):
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""

ASK = """
import json, sys
from websockets.sync.client import connect
from websockets.exceptions import InvalidStatus

url, headers = sys.argv[1], json.loads(sys.argv[2])
try:
    with connect(url, additional_headers=headers, max_size=None, compression=None) as socket:
        for message in ["x" * (3 << 20), b"\\x00\\xff" * (3 << 19), "", "last"]:
            socket.send(message)
            assert socket.recv(timeout=20) == message
    print("echoed")
except InvalidStatus as error:
    print(error.response.status_code)
"""


def websockets(folder, binary):
    home = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "peers/websockets"
    python = home / "bin/python"
    install = [[sys.executable, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "--quiet", WEBSOCKETS]]
    for words in install if not list(home.glob("lib/*/site-packages/websockets/asyncio")) else []:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            skip(f"no websockets: {error}")
        if done.returncode != 0:
            skip(f"`{WEBSOCKETS}` cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    port = free_port()
    with process([str(python), "-c", ECHO, str(port)], stderr=subprocess.DEVNULL):
        wait_for("the echo server", lambda: listens(port))
        tap = Tap(port)
        for name, keys, purpose, expected in [
            ("a route without upgrades", "", PERMITTED, "426"),
            ("another purpose", "    upgrade: [websocket]", REFUSED, "403"),
            ("permitted", "    upgrade: [websocket]", PERMITTED, "echoed"),
        ]:
            with sidecar(folder, binary, tap.port, keys) as proxy:
                before = tap.bytes
                url = f"ws://127.0.0.1:{proxy}/v1/events"
                words = [str(python), "-c", ASK, url, json.dumps(headers(purpose))]
                done = subprocess.run(words, capture_output=True, text=True, timeout=120)
                check(f"{name}: {done.stderr[-2000:]}", done.stdout.strip(), expected)
                if expected == "403":
                    check(f"{name}: bytes at the service", tap.bytes - before, 0)
                all_accounted_for(folder)
                if expected == "echoed":
                    outcome = records(folder, "dpa.outcome")[-1]
                    check("the status of the outcome", outcome["status"], 101)
                    for direction in ["request_bytes", "response_bytes"]:
                        if not 6 << 20 < outcome[direction] < 7 << 20:
                            raise SystemExit(f"{direction}: {outcome[direction]}")


def registry(folder, binary):
    program, port = installed("docker-registry", "docker-registry"), free_port()
    (folder / "registry.yaml").write_text(f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "127.0.0.1:{port}", relativeurls: true}}
""")
    with (folder / "registry.log").open("w") as log, \
            process([program, "serve", str(folder / "registry.yaml")], stdout=log, stderr=log):
        wait_for("the registry", lambda: listens(port))
        tap = Tap(port)
        with sidecar(folder, binary, tap.port) as proxy:
            def ask(purpose, method, target, body=None, more=None):
                connection = http.client.HTTPConnection("127.0.0.1", proxy, timeout=CEILING)
                connection.request(method, target, body, {**headers(purpose), **(more or {})},
                                   encode_chunked=more is not None and "Transfer-Encoding" in more)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                return answer, data

            block = hashlib.sha256(b"seed").digest() * 2048
            blocks = [block[place:] + block[:place] for place in range(763)]
            data = b"".join(blocks)
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            answer, _ = ask(REFUSED, "POST", "/v2/images/app/blobs/uploads/")
            check("an upload that is refused", (answer.status, tap.bytes), (403, 0))
            answer, _ = ask(PERMITTED, "POST", "/v2/images/app/blobs/uploads/")
            check("an upload", answer.status, 202)
            where = answer.getheader("Location")
            before = tap.bytes
            try:
                answer, _ = ask(REFUSED, "PATCH", where, iter(blocks), {"Transfer-Encoding": "chunked"})
                check("pieces that are refused", answer.status, 403)
            except (BrokenPipeError, ConnectionResetError):
                pass  # It was closed upon while it sent, as it may be.
            check("of pieces that are refused", tap.bytes - before, 0)
            answer, _ = ask(PERMITTED, "PATCH", where, iter(blocks), {"Transfer-Encoding": "chunked"})
            check("50 MB in pieces", answer.status, 202)
            where = answer.getheader("Location")
            where += ("&" if "?" in where else "?") + urllib.parse.urlencode({"digest": digest})
            answer, _ = ask(PERMITTED, "PUT", where)
            check("the end of the upload", answer.status, 201)
            blob = f"/v2/images/app/blobs/{digest}"
            answer, found = ask(PERMITTED, "GET", blob, more={"Range": "bytes=1000000-1999999"})
            check("a part", (answer.status, found == data[1_000_000:2_000_000]), (206, True))
            answer, found = ask(PERMITTED, "GET", blob)
            check("all of it", (answer.status, found == data), (200, True))
            before = tap.bytes
            answer, _ = ask(REFUSED, "GET", blob)
            check("a download that is refused", (answer.status, tap.bytes - before), (403, 0))
            all_accounted_for(folder)


@contextlib.contextmanager
def nginx(folder, locations):
    program, port = installed("nginx", "nginx"), free_port()
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; user root;
pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/temp; client_max_body_size 0;
    server {{ listen 127.0.0.1:{port}; {locations} }}
}}
""")
    with process([program, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL):
        wait_for("nginx", lambda: listens(port))
        yield Tap(port)


def git(folder, binary):
    program, cgi = installed("git", "git"), installed("fcgiwrap", "fcgiwrap")
    path = pathlib.Path(subprocess.run([program, "--exec-path"], capture_output=True, text=True).stdout.strip())
    if not (path / "git-http-backend").exists():
        skip("this git has no git-http-backend")
    quiet = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_TERMINAL_PROMPT": "0",
             "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@lumenfield.example", "GIT_COMMITTER_NAME": "a",
             "GIT_COMMITTER_EMAIL": "a@lumenfield.example"}

    def run(*words, purpose=None):
        said = [word for name, value in headers(purpose).items() for word in ("-c", f"http.extraHeader={name}: {value}")] \
            if purpose else []
        return subprocess.run([program, *said, *words], cwd=folder, env=quiet, capture_output=True, text=True, timeout=60)

    def must(*words, purpose=None):
        done = run(*words, purpose=purpose)
        check(f"git {words}: {done.stderr}", done.returncode, 0)
        return done.stdout.strip()

    must("init", "--bare", "-b", "main", "repositories/app.git")
    must("-C", "repositories/app.git", "config", "http.receivepack", "true")
    wrap = folder / "cgi.sock"
    locations = f"""location / {{
        fastcgi_pass unix:{wrap};
        fastcgi_param SCRIPT_FILENAME {path}/git-http-backend;
        fastcgi_param GIT_PROJECT_ROOT {folder}/repositories; fastcgi_param GIT_HTTP_EXPORT_ALL 1;
        fastcgi_param PATH_INFO $uri; fastcgi_param QUERY_STRING $query_string; fastcgi_param REMOTE_USER care;
        fastcgi_param REQUEST_METHOD $request_method; fastcgi_param CONTENT_TYPE $content_type;
        fastcgi_param CONTENT_LENGTH $content_length; fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
        fastcgi_param HTTP_GIT_PROTOCOL $http_git_protocol; fastcgi_read_timeout 60s;
    }}"""
    with process([cgi, "-s", f"unix:{wrap}"]), nginx(folder, locations) as tap:
        with sidecar(folder, binary, tap.port) as proxy:
            url = f"http://127.0.0.1:{proxy}/app.git"
            must("clone", url, "one", purpose=PERMITTED)
            (folder / "one/large").write_bytes(os.urandom(5 << 20))
            must("-C", "one", "add", "large")
            must("-C", "one", "commit", "-m", "large")
            before = tap.bytes
            check("a push that is refused", run("-C", "one", "push", "origin", "HEAD:main", purpose=REFUSED).returncode, 128)
            check("a clone that is refused", run("clone", url, "none", purpose=REFUSED).returncode, 128)
            check("bytes of what is refused", tap.bytes - before, 0)
            # More than http.postBuffer, so in chunks.
            must("-C", "one", "push", "origin", "HEAD:main", purpose=PERMITTED)
            must("clone", url, "two", purpose=PERMITTED)
            heads = [must("-C", name, "rev-parse", "HEAD") for name in ["one", "two"]]
            check("what was cloned", heads[0], heads[1])
            check("the file", (folder / "one/large").read_bytes() == (folder / "two/large").read_bytes(), True)
            all_accounted_for(folder)


def dav(folder, binary):
    (folder / "files").mkdir()
    locations = f"location / {{ root {folder}/files; dav_methods PUT DELETE; create_full_put_path on; }}"
    with nginx(folder, locations) as tap, sidecar(folder, binary, tap.port) as proxy:
        data = os.urandom(20 << 20)

        def ask(purpose, method, body=None):
            connection = http.client.HTTPConnection("127.0.0.1", proxy, timeout=CEILING)
            try:
                connection.request(method, "/reports/june.bin", body, headers(purpose))
            except (BrokenPipeError, ConnectionResetError):
                pass  # It was closed upon while it sent; the answer may be there.
            try:
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (ConnectionResetError, BrokenPipeError):
                return 403, b""
        check("an upload that is refused", ask(REFUSED, "PUT", data)[0], 403)
        check("bytes of what is refused", tap.bytes, 0)
        check("an upload", ask(PERMITTED, "PUT", data)[0], 201)
        check("what is there", (folder / "files/reports/june.bin").read_bytes() == data, True)
        status, found = ask(PERMITTED, "GET")
        check("a download", (status, found == data), (200, True))
        before = tap.bytes
        check("an erasure that is refused", (ask(REFUSED, "DELETE")[0], tap.bytes - before), (403, 0))
        check("an erasure", ask(PERMITTED, "DELETE")[0], 204)
        all_accounted_for(folder)


def main():
    services = {"websockets": websockets, "registry": registry, "git": git, "dav": dav}
    if len(sys.argv) != 2 or sys.argv[1] not in services:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    binary = program()
    with tempfile.TemporaryDirectory(prefix="dpa-services-") as name:
        services[sys.argv[1]](pathlib.Path(name), binary)
    print(f"{sys.argv[1]}: all as it should be")


if __name__ == "__main__":
    main()
