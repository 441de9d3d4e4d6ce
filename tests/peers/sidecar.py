"""What the scripts of this folder share: the sidecar as a process, its records, and how to wait for something."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CARE = "spiffe://lumenfield.example/ns/care/sa/care-desk"
CEILING = 20


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    sys.exit(2)


def wait_for(what, ask):
    end = time.monotonic() + CEILING
    while time.monotonic() < end:
        found = ask()
        if found:
            return found
        time.sleep(0.02)
    raise SystemExit(f"waited in vain for {what}")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def check(what, found, expected):
    if found != expected:
        raise SystemExit(f"{what}: {found!r}, not {expected!r}")


@contextlib.contextmanager
def process(words, **more):
    child = subprocess.Popen(words, **more)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def program():
    """The binary that DPA_SIDECAR names; without it the debug build is made and taken."""
    binary = os.environ.get("DPA_SIDECAR")
    if not binary:
        subprocess.run(["cargo", "build", "--quiet", "--locked"], cwd=ROOT, check=True)
        binary = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/dpa-sidecar"
    return str(pathlib.Path(binary).resolve())


@contextlib.contextmanager
def running(folder, binary):
    """A sidecar with the `sidecar.yaml` of this folder; the port of its listener `main`."""
    said = folder / "sidecar.stderr"
    with said.open("w") as stderr:
        words = [binary, "run", "--config", str(folder / "sidecar.yaml")]
        with process(words, stderr=stderr, env={**os.environ, "RUST_LOG": "info"}) as child:
            def address():
                assert child.poll() is None, said.read_text()
                _, found, rest = said.read_text().partition("listening name=main address=")
                return "\n" in rest and rest.split("\n")[0].strip()
            yield int(wait_for("the sidecar", address).rsplit(":", 1)[1])
            if "panicked" in said.read_text():
                raise SystemExit(said.read_text())


def records(folder, event):
    lines = (folder / "decisions.ndjson").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def all_accounted_for(folder):
    """Each request that was sent on has its outcome, and all of them came to their end."""
    def ended():
        sent = {it["decision_id"] for it in records(folder, "dpa.decision") if it["action"] == "allowed"}
        outcomes = {it["decision_id"]: it for it in records(folder, "dpa.outcome")}
        return sent == set(outcomes) and list(outcomes.values())
    for outcome in wait_for("an outcome of each request", ended):
        check("an outcome", outcome["outcome"], "completed")


def installed(package, program):
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin")
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
                 "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", package], **quiet)
        found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin")
    return found or skip(f"no {program}, and it cannot be installed")
