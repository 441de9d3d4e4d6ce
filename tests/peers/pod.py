#!/usr/bin/env python3
"""A pod of the demo in deploy/kustomize, played with two network namespaces: one is the pod, one the node around it.

    tests/peers/pod.py [--seconds 6] [--rate 300]

What runs, with which arguments, files, users, probes and waits, is read from what `kubectl kustomize` renders; this
script plays the kubelet. The sidecar starts first and is asked before its service is there. Then the service, nginx,
starts on loopback, and from outside only the sidecar is reached. Under load the pod ends in the order of a native
sidecar: the service's preStop, the pod leaves the endpoints, the service's signal, and after its end the sidecar's.

No failed request among callers that follow the endpoints, each with its decision and its outcome on record, and a log
that `audit verify` finds whole. Beside them are callers that keep their connections and do not follow the endpoints;
what they are answered once the service has stopped listening is counted.

What this is not: a kubelet, a container runtime, a cluster. Root and its own files are those of the machine.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from manifests import DEMO, binary, mounted, pod_of, rendered, sidecar_of, skip, with_packages

# Of the range for tests between networks (RFC 2544): in use nowhere.
NODE_ADDRESS, POD_ADDRESS = "198.18.0.1", "198.18.0.2"
CALLER = "spiffe://lumenfield.example/ns/care/sa/care-desk"
SUBSCRIBER = "/v1/customers/redwood-strand/subscribers/1a2b"
EXPORT = "/v1/customers/redwood-strand/usage/export"
FOLLOWERS, HOLDERS, EXPORTS = 24, 4, 3
PER_CONNECTION = 10
# How long before the service's signal the pod leaves the endpoints. Until then new requests come.
REMOVED_BEFORE = 1.0
CEILING = 30.0

wrong = 0


def case(sentence, found, expected):
    global wrong
    good = found == expected
    wrong += not good
    print(f"{'ok   ' if good else 'WRONG'} {sentence}: {found}" + ("" if good else f", not {expected}"), flush=True)


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        skip(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def namespaces():
    """Makes both, and takes them away with whatever is left in them."""
    node, pod = f"dpa-node-{os.getpid()}", f"dpa-pod-{os.getpid()}"
    try:
        ip("netns", "add", node)
        ip("netns", "add", pod)
        ip("-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pod)
        for name, address in [(node, NODE_ADDRESS), (pod, POD_ADDRESS)]:
            ip("-n", name, "address", "add", f"{address}/30", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield node, pod
    finally:
        for name in [pod, node]:
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


# The kubelet's part.

class Container:
    """One of the pod's, its files below a folder in place of its own root."""

    def __init__(self, namespace, folder, objects, spec):
        self.namespace, self.folder, self.spec, self.process = namespace, folder, spec, None
        for path, files in mounted(objects, pod_of(objects), spec).items():
            place = self.inside(path)
            place.mkdir(parents=True)
            if files is None:
                place.chmod(0o777)
                continue
            # As the kubelet does it: a link to a link.
            (place / "..2026").mkdir()
            (place / "..data").symlink_to("..2026")
            for file, text in files.items():
                (place / "..2026" / file).write_text(text)
                (place / file).symlink_to(f"..data/{file}")

    def inside(self, path):
        return self.folder / path.lstrip("/")

    def mapped(self, word):
        end = "/" if word.endswith("/") else ""
        return str(self.inside(word)) + end if word.startswith("/") else word

    def enter(self, words):
        user = self.spec["securityContext"]
        return ["ip", "netns", "exec", self.namespace, "setpriv", f"--reuid={user['runAsUser']}",
                f"--regid={user['runAsGroup']}", "--clear-groups", "--no-new-privs", *words]

    def start(self, program, words, **more):
        environment = {it["name"]: self.mapped(it["value"]) for it in self.spec.get("env", [])}
        said = (self.folder / f"{self.spec['name']}.log").open("w")
        self.process = subprocess.Popen(
            self.enter([program, *map(self.mapped, words)]), stdout=said, stderr=said, cwd=self.folder,
            env={"PATH": os.environ["PATH"], **environment, **more})

    def said(self):
        return (self.folder / f"{self.spec['name']}.log").read_text()

    async def probe(self, name):
        """What the kubelet would be answered; 0 for nobody there."""
        probe = self.spec[name]
        if "exec" in probe:
            words = self.enter(probe["exec"]["command"])
            done = await asyncio.to_thread(subprocess.run, words, capture_output=True)
            return done.returncode
        return (await ask_once(probe["httpGet"]["port"], probe["httpGet"]["path"]))[0]

    async def until(self, name, status):
        end = time.monotonic() + CEILING
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.spec['name']} has ended: {self.said()[-3000:]}")
            if await self.probe(name) == status:
                return
            await asyncio.sleep(0.05)
        raise SystemExit(f"waited in vain for the {name} of {self.spec['name']}: {self.said()[-3000:]}")

    async def end(self, number):
        """How it ends after a signal."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 60)


# Callers.

def request(path):
    return (
        f"GET {path} HTTP/1.1\r\nHost: subscriber-api.dpa-demo\r\nDPA-Caller: {CALLER}\r\n"
        "DPA-Context: purpose=customer_support\r\n\r\n"
    ).encode()


async def exchange(reader, writer, path):
    """Status, decision id, body, and whether the connection goes on."""
    writer.write(request(path))
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE).group(1))
    body = await reader.readexactly(length)
    found = re.search(r"dpa-decision-id: (\S+)", head, re.IGNORECASE)
    goes_on = not re.search(r"connection: close", head, re.IGNORECASE)
    return int(head.split()[1]), found and found.group(1), body, goes_on


async def ask_once(port, path):
    try:
        reader, writer = await asyncio.open_connection(POD_ADDRESS, port)
    except OSError:
        return 0, None, b"", False
    try:
        return await asyncio.wait_for(exchange(reader, writer, path), CEILING)
    finally:
        writer.close()


class Load:
    def __init__(self, port):
        self.port, self.answers, self.failed = port, [], []
        self.is_endpoint = True
        self.held, self.unanswered = [], 0

    async def follow(self, number, rate):
        """A caller that asks as long as the pod is among the endpoints; connections are made anew now and then."""
        gap = FOLLOWERS / rate
        due = time.monotonic() + gap * number / FOLLOWERS
        while self.is_endpoint:
            try:
                reader, writer = await asyncio.open_connection(POD_ADDRESS, self.port)
                for _ in range(PER_CONNECTION):
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    due += gap
                    if not self.is_endpoint:
                        break
                    status, name, _, goes_on = await exchange(reader, writer, SUBSCRIBER)
                    self.answers.append((status, name))
                    if not goes_on:
                        break
                writer.close()
            except Exception as error:  # Whatever it is, a request failed.
                self.failed.append(repr(error))

    async def export(self):
        """Status and length of an export, or how much of it came."""
        try:
            status, name, body, _ = await ask_once(self.port, EXPORT)
        except asyncio.IncompleteReadError as error:
            return "cut", len(error.partial)
        self.answers.append((status, name))
        return status, len(body)

    async def hold(self):
        """A caller that knows nothing of endpoints and keeps its connection until it is closed."""
        reader, writer = await asyncio.open_connection(POD_ADDRESS, self.port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.unanswered += 1
                status, name, _, goes_on = await exchange(reader, writer, SUBSCRIBER)
                self.unanswered -= 1
                self.held.append((time.monotonic(), status, name))
                if not goes_on:
                    break
                await asyncio.sleep(0.1)
        writer.close()


def recorded(folder):
    """decision_id -> how many decisions, and the outcomes."""
    decisions, outcomes = {}, {}
    for file in folder.glob("decisions*.ndjson"):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if record["event"] == "dpa.decision":
                decisions[record["decision_id"]] = decisions.get(record["decision_id"], 0) + 1
            elif record["event"] == "dpa.outcome":
                outcomes.setdefault(record["decision_id"], []).append(record["outcome"])
    return decisions, outcomes


async def play(folder, namespace, seconds, rate):
    objects = rendered(DEMO)
    pod = pod_of(objects)
    (app_spec,) = pod["spec"]["containers"]
    sidecar = Container(namespace, folder / "sidecar", objects, sidecar_of(pod))
    app = Container(namespace, folder / "app", objects, app_spec)
    program = folder / "dpa-sidecar"
    shutil.copy(binary(), program)
    program.chmod(0o755)
    log = sidecar.inside("/var/log/dpa-sidecar")
    load = Load(8080)

    # The sidecar first.
    sidecar.start(str(program), sidecar.spec["args"], GATEWAY=f"{NODE_ADDRESS}/32")
    await sidecar.until("startupProbe", 200)
    case("the sidecar is ready before its service is there", await sidecar.probe("readinessProbe"), 200)
    before = await ask_once(8080, SUBSCRIBER)
    reason = json.loads(before[2]).get("reason")
    case("a request is answered that the service is not there", (before[0], reason), (502, "upstream_unavailable"))
    case("so the service's probe has the pod not ready", await app.probe("readinessProbe") == 200, False)

    # The service.
    app.start(shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"), app.spec["command"][1:])
    await app.until("readinessProbe", 200)
    case("the service is ready, asked through the sidecar", await app.probe("readinessProbe"), 200)
    if shutil.which("wget"):
        case("the service lives, asked inside the pod", await app.probe("livenessProbe"), 0)

    # From outside.
    case("the service's own port, from outside", (await ask_once(3000, "/healthz"))[0], 0)
    for path in ["/livez", "/readyz", "/metrics"]:
        status = (await ask_once(9901, path))[0]
        case(f"{path} from outside", status, 200)
    answer = await ask_once(8080, SUBSCRIBER)
    load.answers.append(answer[:2])
    case("a permitted request from outside", (answer[0], json.loads(answer[2])["id"]), (200, "1a2b"))
    look = subprocess.run(["ip", "netns", "exec", namespace, "ss", "-Hltn"], capture_output=True, text=True)
    places = {line.split()[3] for line in look.stdout.splitlines()}
    case("what listens beyond loopback", sorted(it for it in places if not it.startswith(("127.", "[::1]"))),
         ["0.0.0.0:8080", "0.0.0.0:9901"])
    user = pathlib.Path(f"/proc/{sidecar.process.pid}/status").read_text()
    found = (re.search(r"Uid:\s+(\d+)", user).group(1), re.search(r"CapEff:\s+(\w+)", user).group(1))
    case("the sidecar's user, and its capabilities", found, ("65532", "0" * 16))

    # Load, and the end of the pod.
    followers = [asyncio.create_task(load.follow(number, rate)) for number in range(FOLLOWERS)]
    holders = [asyncio.create_task(load.hold()) for _ in range(HOLDERS)]
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    pre_stop = app.spec["lifecycle"]["preStop"]["sleep"]["seconds"]
    await asyncio.sleep(pre_stop - REMOVED_BEFORE)
    exports = [asyncio.create_task(load.export()) for _ in range(EXPORTS)]
    await asyncio.sleep(0.3)
    load.is_endpoint = False
    spent = time.monotonic() - begin
    await asyncio.gather(*followers)
    count = len(load.answers)
    await asyncio.sleep(max(0.0, begin + seconds + pre_stop - time.monotonic()))
    case("exports under way when the service gets its signal", sum(not it.done() for it in exports), EXPORTS)
    # The image of nginx says `STOPSIGNAL SIGQUIT`: it ends what it has begun.
    stopped = time.monotonic()
    case("the service ends with", await app.end(signal.SIGQUIT), 0)
    case("the sidecar is ready until its own signal", await sidecar.probe("readinessProbe"), 200)
    whole = len(app.inside("/srv/subscriber-api/conf/usage.json").read_bytes())
    case("exports that were answered in full", await asyncio.gather(*exports), [(200, whole)] * EXPORTS)
    asked = time.monotonic()
    case("the sidecar ends with", await sidecar.end(signal.SIGTERM), 0)
    took = time.monotonic() - asked
    await asyncio.gather(*holders)

    # What became of it.
    case(f"failures among {len(load.answers)} answers to those who follow the endpoints",
         load.failed + [it for it in load.answers if it[0] != 200], [])
    held = [(at, status) for at, status, _ in load.held if status != 200]
    case("failures among those who hold their connections, before the service's signal",
         [status for at, status in held if at < stopped], [])
    decisions, outcomes = recorded(log)
    names = [name for _, name in load.answers] + [name for _, _, name in load.held] + [before[1]]
    case("answers without exactly one decision and one outcome",
         [name for name in names if decisions.get(name) != 1 or len(outcomes.get(name, [])) != 1], [])
    case("answers in full whose outcome is another",
         [outcomes[name] for status, name in load.answers if outcomes[name] != ["completed"]], [])
    case("decisions without an outcome", [name for name in decisions if name not in outcomes], [])
    verified = subprocess.run([program, "audit", "verify", log], capture_output=True, text=True)
    case("`audit verify`", verified.returncode, 0)
    print(f"      {count / spent:.0f} requests a second; the sidecar ended {took * 1000:.0f} ms after its signal")
    print(f"      who held a connection got {len(load.held)} answers, {len(held)} of them 502 or 503 after the service "
          f"had stopped listening; {load.unanswered} requests met a connection that was being closed")
    if count / spent < 0.8 * rate:
        skip(f"this machine does not reach {rate} requests a second")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with_packages("pod", ["PyYAML==6.0.3"])
    if arguments.inside:
        pod, folder = arguments.inside
        return asyncio.run(play(pathlib.Path(folder), pod, arguments.seconds, arguments.rate))
    if os.geteuid() != 0:
        skip("only root makes network namespaces")
    for tool in ["ip", "ss", "setpriv"]:
        if not shutil.which(tool):
            skip(f"no {tool}")
    if not shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"):
        skip("no nginx")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    with tempfile.TemporaryDirectory() as folder, namespaces() as (node, pod):
        pathlib.Path(folder).chmod(0o755)
        words = ["ip", "netns", "exec", node, sys.executable, __file__, *sys.argv[1:], "--inside", pod, folder]
        return subprocess.run(words).returncode


if __name__ == "__main__":
    sys.exit(main())
