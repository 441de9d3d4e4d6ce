#!/usr/bin/env python3
"""What the sidecar does when its decision log fails, with real faults.

    tests/faults/faults.py [--program PATH] [SCENARIO…]      all scenarios if none is named

    missing   the folder of the log is removed, and comes back           no root
    pipe      standard output is a pipe that nobody reads for 3 s        no root
    write     write() to the log says ENOSPC, then EIO                   no root, strace
    sync      fdatasync() of the log says EIO, then rename() too         no root, strace
    full      a tmpfs is full, and is made room on                       root
    frozen    the file system is frozen for 5 s (loop ext4, fsfreeze)    root

In each: who cannot be recorded is answered 503 with `Retry-After` in time and is never forwarded, /livez goes on,
all recovers by itself, and in the end every request that the service saw has its record.
Exit 0: as it should be; 1: it is not; 2: a scenario could not be run (which, stands in the last line).
"""
import argparse, http.client, http.server, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CALLER = {"DPA-Caller": "spiffe://lumenfield.example/ns/care/sa/care-desk",
          "DPA-Context": "customer=redwood-strand, purpose=customer_support"}
TIMEOUT = 0.5          # decision_log.timeout here
CEILING = 15.0         # no measure: what takes this long does not come


class CannotRun(Exception):
    pass


class Wrong(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Wrong(what)


class Origin:
    """The data service: remembers the decision ids that it saw."""

    def __init__(self):
        seen = self.seen = []

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                seen.append(self.headers["DPA-Decision-Id"])
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Sidecar:
    def __init__(self, program, folder, origin, log, wrapper=(), stdout=None):
        self.folder, self.port, self.health = folder, free_port(), free_port()
        settings = f"""
service: {{name: faults, storage_location: US-OR}}
workers: 2
policy: {{file: {json.dumps(os.path.join(REPOSITORY, "config/policy.yaml"))}}}
listeners: [{{name: main, address: "127.0.0.1:{self.port}", upstream: app}}]
upstreams: [{{name: app, address: "127.0.0.1:{origin.port}"}}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes:
  - {{path: "/{{*rest}}", customer: {{from: context}}, purpose: {{from: context}}, data_categories: [user.contact]}}
decision_log: {log}
health: {{address: "127.0.0.1:{self.health}"}}
drain_timeout: 2s
"""
        path = os.path.join(folder, "sidecar.yaml")
        with open(path, "w") as file:
            file.write(settings)
        self.errors = open(os.path.join(folder, "stderr"), "w+")
        self.child = subprocess.Popen([*wrapper, program, "run", "--config", path], stdout=stdout or subprocess.DEVNULL,
                                      stderr=self.errors, start_new_session=True)
        wait_for("the sidecar to listen", lambda: self.alive() and self.listens())

    def alive(self):
        if self.child.poll() is not None:
            raise Wrong("the sidecar ended: " + self.said())
        return True

    def listens(self):
        try:
            return self.probe("/livez") == 200
        except OSError:
            return False

    def said(self):
        self.errors.flush()
        with open(self.errors.name) as file:
            return file.read()

    def ask(self):
        """Status, decision id, Retry-After, seconds of one request on a connection of its own."""
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CEILING)
        connection.request("GET", "/x", headers=CALLER)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        took = time.monotonic() - begin
        return answer.status, answer.getheader("DPA-Decision-Id"), answer.getheader("Retry-After"), took

    def probe(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.health, timeout=CEILING)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    def stop(self):
        os.killpg(self.child.pid, signal.SIGTERM)
        try:
            self.child.wait(CEILING)
        finally:
            if self.child.poll() is None:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, ask):
    begin = time.monotonic()
    while time.monotonic() - begin < CEILING:
        found = ask()
        if found:
            return found
        time.sleep(0.02)
    raise Wrong("waited in vain for " + what)


def served(sidecar, origin):
    status, decision, _, _ = sidecar.ask()
    need(status == 200, f"answered {status}, not 200: {sidecar.said()}")
    need(decision in origin.seen, "a 200 that the service did not give")


def refused(sidecar, origin):
    """One request that cannot be recorded."""
    before = len(origin.seen)
    status, _, retry, took = sidecar.ask()
    need(status == 503, f"answered {status} while nothing can be recorded")
    need(retry is not None, "503 without Retry-After")
    need(took < TIMEOUT + 2, f"it took {took:.1f} s to be refused")
    need(len(origin.seen) == before, "it was forwarded without a record")
    need(sidecar.probe("/livez") == 200, "/livez does not answer")
    need(sidecar.probe("/readyz") == 503, "ready, though nothing can be recorded")
    return took


def recovers(sidecar, origin):
    begin = time.monotonic()
    wait_for("the first 200", lambda: sidecar.ask()[0] == 200)
    took = time.monotonic() - begin
    wait_for("/readyz", lambda: sidecar.probe("/readyz") == 200)
    return took


def records(*texts):
    """All records, whole lines each, in the order of their numbers."""
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    found.sort(key=lambda record: record["seq"])
    return found


def log_of(folder, name="decisions"):
    texts = []
    for file in sorted(os.listdir(folder)):
        if re.fullmatch(name + r"(-\d+)?\.ndjson", file):
            with open(os.path.join(folder, file)) as text:
                texts.append(text.read())
    return records(*texts)


def accounted(origin, found, says):
    """Every request that the service saw has its record; the chain has no gap; the log says what happened to it."""
    decided = {record["decision_id"] for record in found if record["event"] == "dpa.decision"}
    need(not set(origin.seen) - decided, f"{len(set(origin.seen) - decided)} requests without a record")
    allowed = {record["decision_id"] for record in found if record.get("action") == "allowed"}
    ended = {record["decision_id"] for record in found if record["event"] == "dpa.outcome"}
    need(allowed <= ended, f"{len(allowed - ended)} permitted requests without an outcome")
    late = {record["decision_id"] for record in found if record.get("outcome") == "not_forwarded"}
    need(not late & set(origin.seen), "a request was forwarded, and its outcome says it was not")
    need(allowed - set(origin.seen) <= late, "a permit that was not forwarded, and nothing says so")
    whats = [record["what"] for record in found if record["event"] == "dpa.log"]
    for what in says:
        need(what in whats, f"the log does not say `{what}`: {whats}")
    for before, after in zip(found, found[1:]):
        need(after["prev"] == before["hash"], f"the chain breaks at record {after['seq']}")


def missing(program, folder):
    origin = Origin()
    inner = os.path.join(folder, "log")
    os.mkdir(inner)
    sidecar = Sidecar(program, folder, origin, f"{{file: {{path: log/decisions.ndjson}}, timeout: {TIMEOUT * 1000:.0f}ms}}")
    served(sidecar, origin)
    kept = os.path.join(folder, "kept")
    os.mkdir(kept)
    shutil.copy(os.path.join(inner, "decisions.ndjson"), os.path.join(kept, "decisions-000001.ndjson"))
    shutil.rmtree(inner)
    took = refused(sidecar, origin)
    refused(sidecar, origin)
    os.mkdir(inner)
    back = recovers(sidecar, origin)
    sidecar.stop()
    shutil.copy(os.path.join(inner, "decisions.ndjson"), kept)
    accounted(origin, log_of(kept), ["regained"])
    return took, back


def pipe(program, folder):
    origin = Origin()
    read, write = os.pipe()
    sidecar = Sidecar(program, folder, origin, f"{{stdout: true, timeout: {TIMEOUT * 1000:.0f}ms}}", stdout=write)
    os.close(write)
    served(sidecar, origin)
    # 64 KiB are in the pipe at most.
    wait_for("the pipe to be full", lambda: sidecar.ask()[0] == 503)
    took = refused(sidecar, origin)
    time.sleep(3)
    refused(sidecar, origin)
    text = []

    def drain():
        with os.fdopen(read, errors="replace") as lines:
            text.append(lines.read())

    reader = threading.Thread(target=drain)
    reader.start()
    back = recovers(sidecar, origin)
    sidecar.stop()
    reader.join(CEILING)
    accounted(origin, records(*text), ["regained"])
    return took, back


def traced(program, folder, faults, log):
    """The sidecar under strace, which makes its n-th to m-th call fail in one thread after another: by call, how."""
    if not shutil.which("strace"):
        raise CannotRun("there is no strace")
    if subprocess.run(["strace", "-o", os.path.join(folder, "try"), "true"], capture_output=True).returncode != 0:
        raise CannotRun("strace may not trace here")
    origin = Origin()
    path = os.path.join(folder, "decisions.ndjson")
    wrapper = ["strace", "-f", "-qq", "-o", os.path.join(folder, "trace"), "-P", path, "-e", "trace=" + ",".join(faults)]
    for call, how in faults.items():
        wrapper += ["-e", f"inject={call}:{how}"]
    sidecar = Sidecar(program, folder, origin, log, wrapper)
    return origin, sidecar


def write(program, folder):
    results = []
    for error in ("ENOSPC", "EIO"):
        inner = os.path.join(folder, error)
        os.mkdir(inner)
        log = f"{{file: {{path: decisions.ndjson}}, timeout: {TIMEOUT * 1000:.0f}ms, checkpoint_every: 1h}}"
        # The first writes are the beginning of the log; then 12 fail.
        origin, sidecar = traced(program, inner, {"write": f"error={error}:when=8..19"}, log)
        wait_for("a write that fails", lambda: sidecar.ask()[0] == 503)
        took = refused_or_back(sidecar, origin)
        back = recovers(sidecar, origin)
        sidecar.stop()
        accounted(origin, log_of(inner), ["regained"])
        results.append((took, back))
    return max(results)


def refused_or_back(sidecar, origin):
    """While a limited number of calls fails, each request is either refused or recorded."""
    before = len(origin.seen)
    status, _, retry, took = sidecar.ask()
    need(status in (200, 503), f"answered {status}")
    need(status == 200 or (retry is not None and len(origin.seen) == before), "forwarded, or no Retry-After")
    return took


def sync(program, folder):
    log = f"{{file: {{path: decisions.ndjson}}, timeout: {TIMEOUT * 1000:.0f}ms, durability: synced, checkpoint_every: 1h}}"
    # Twice the segment whose sync failed cannot even be closed.
    faults = {"fdatasync": "error=EIO:when=6+9", "rename": "error=EIO:when=1..2"}
    origin, sidecar = traced(program, folder, faults, log)
    took = 0.0
    for _ in range(60):
        took = max(took, refused_or_back(sidecar, origin))
    back = recovers(sidecar, origin)
    sidecar.stop()
    found = log_of(folder)
    accounted(origin, found, ["opened"])
    whys = [record.get("why") for record in found]
    need("sync_failed" in whys, "no segment was closed for a failed fdatasync")
    # The next process cannot know whether the names of what it goes on with are on the disk.
    trace = os.path.join(folder, "again")
    sidecar = Sidecar(program, folder, origin, log, ["strace", "-f", "-qq", "-y", "-o", trace, "-e", "trace=fsync"])
    sidecar.stop()
    with open(trace) as calls:
        need(f"<{folder}>" in calls.read(), "a log that is gone on with has its folder not synced")
    return took, back


def mounted(folder, *command):
    if os.geteuid() != 0:
        raise CannotRun("only root can mount")
    inner = os.path.join(folder, "disk")
    os.mkdir(inner)
    if subprocess.run([*command, inner], capture_output=True).returncode != 0:
        raise CannotRun("cannot mount: " + " ".join(command))
    return inner


def full(program, folder):
    inner = mounted(folder, "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    try:
        origin = Origin()
        sidecar = Sidecar(program, folder, origin, f"{{file: {{path: disk/decisions.ndjson}}, timeout: {TIMEOUT * 1000:.0f}ms}}")
        served(sidecar, origin)
        ballast = os.path.join(inner, "ballast")
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        wait_for("the disk to be full", lambda: sidecar.ask()[0] == 503)
        took = refused(sidecar, origin)
        time.sleep(2)
        refused(sidecar, origin)
        os.unlink(ballast)
        back = recovers(sidecar, origin)
        sidecar.stop()
        accounted(origin, log_of(inner), ["lost", "regained"])
        return took, back
    finally:
        subprocess.run(["umount", "-l", inner], check=False)


def frozen(program, folder):
    if os.geteuid() != 0 or not shutil.which("fsfreeze") or not shutil.which("mkfs.ext4"):
        raise CannotRun("needs root, fsfreeze and mkfs.ext4")
    image = os.path.join(folder, "image")
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    inner = mounted(folder, "mount", "-o", "loop", image)
    is_frozen = False
    try:
        origin = Origin()
        sidecar = Sidecar(program, folder, origin, f"{{file: {{path: disk/decisions.ndjson}}, timeout: {TIMEOUT * 1000:.0f}ms}}")
        served(sidecar, origin)
        subprocess.run(["fsfreeze", "-f", inner], check=True)
        is_frozen = True
        begin = time.monotonic()
        took = 0.0
        while time.monotonic() - begin < 5:
            took = max(took, refused(sidecar, origin))
        subprocess.run(["fsfreeze", "-u", inner], check=True)
        is_frozen = False
        back = recovers(sidecar, origin)
        sidecar.stop()
        accounted(origin, log_of(inner), ["regained"])
        return took, back
    finally:
        if is_frozen:
            subprocess.run(["fsfreeze", "-u", inner], check=False)
        subprocess.run(["umount", "-l", inner], check=False)


SCENARIOS = {function.__name__: function for function in (missing, pipe, write, sync, full, frozen)}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--program", default=os.path.join(REPOSITORY, "target/debug/dpa-sidecar"))
    options.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    options = options.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        print(f"there is no scenario {', '.join(unknown)}: known are {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    left_out, wrong = [], False
    for name in options.scenarios or SCENARIOS:
        folder = tempfile.mkdtemp(prefix=f"faults-{name}-")
        try:
            took, back = SCENARIOS[name](os.path.abspath(options.program), folder)
            print(f"{name}: refused within {took:.2f} s, back after {back:.2f} s, all accounted for", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
        except CannotRun as error:
            left_out.append(f"{name} ({error})")
            shutil.rmtree(folder, ignore_errors=True)
        except (Wrong, OSError, subprocess.SubprocessError) as error:
            wrong = True
            print(f"{name}: WRONG: {error} (kept: {folder})", flush=True)
    if left_out:
        print("not run: " + "; ".join(left_out), file=sys.stderr)
    return 1 if wrong else 2 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
