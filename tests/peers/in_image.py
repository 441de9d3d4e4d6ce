#!/usr/bin/env python3
"""The root of the image, read-only, as its user, in a network of its own: the demo, `check`, and names of upstreams.

    unshare --net --mount tests/peers/in_image.py ROOT     (tests/peers/image.sh does it)

A static program has the resolver of the C library in it. The table of names says that it finds them as in any other
container: in /etc/hosts, at the name server of /etc/resolv.conf, by its search domains, over TCP where an answer is too
long, IPv6 as well. The name server is this script's.

Exit codes: 0 all as it should be; 1 a finding.
"""

import http.client
import http.server
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading

from forwarded import wait_for

# Of those that the OCI runtime specification promises to each container. Without `urandom` the program does not start.
DEVICES = ["null", "zero", "full", "random", "urandom", "tty"]
NAME_SERVER = "127.0.0.53"
LOG = "var/log/dpa-sidecar"
A, AAAA = 1, 28
ADDRESSES = {
    ("api.example", A): ["127.0.0.1"],
    ("app.data.svc.cluster.local", A): ["127.0.0.1"],
    ("many.example", A): [f"127.0.1.{number}" for number in range(1, 101)],
    ("six.example", AAAA): ["::1"],
}
HOSTS = "127.0.0.1 hosted.example\n"
# As in a pod.
RESOLV = f"nameserver {NAME_SERVER}\nsearch data.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
# A sentence, the upstream's host, and the status.
NAMES = [
    ("a name in /etc/hosts", "hosted.example", 200),
    ("a name that the name server has", "api.example", 200),
    ("a Service of the same namespace, by a search domain", "app", 200),
    ("a name with more addresses than fit into a datagram", "many.example", 200),
    ("a name with an address of IPv6 only", "six.example", 200),
    ("a name that nobody has", "nobody.example", 502),
]
SETTINGS = """
service: {{name: subscriber-api, storage_location: US-OR}}
policy: {{file: policy.yaml}}
listeners: [{listeners}]
upstreams: [{upstreams}]
identity: [{{header: {{name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}}}]
routes: [{{path: "/{{*rest}}", subscriber_data: false}}]
decision_log: {{file: {{path: /var/log/dpa-sidecar/decisions.ndjson}}}}
"""

wrong = 0


def case(sentence, found, expected):
    global wrong
    wrong += found != expected
    said = "" if found == expected else f", not {expected}"
    print(f"{'WRONG' if said else 'ok   '} {sentence}: {found}{said}", flush=True)


class Names:
    """A name server, over UDP and TCP; a long answer is cut over UDP."""

    def __init__(self):
        self.over_tcp = set()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind((NAME_SERVER, 53))
        streams = socket.create_server((NAME_SERVER, 53))
        threading.Thread(target=self.datagrams, args=(datagrams,), daemon=True).start()
        threading.Thread(target=self.streams, args=(streams,), daemon=True).start()

    def answer(self, query, most):
        labels, place = [], 12
        while query[place]:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += query[place] + 1
        name = ".".join(labels).lower()
        (kind,) = struct.unpack("!H", query[place + 1 : place + 3])
        found = ADDRESSES.get((name, kind), [])
        family = {A: socket.AF_INET, AAAA: socket.AF_INET6}.get(kind)
        packed = [socket.inet_pton(family, it) for it in found]
        records = [struct.pack("!HHHIH", 0xC00C, kind, 1, 5, len(it)) + it for it in packed]
        known = any(it == name for it, _ in ADDRESSES)
        is_cut = 12 + place + 5 + sum(map(len, records)) > most
        records = [] if is_cut else records
        if most > 512:
            self.over_tcp.add(name)
        flags = 0x8180 | (0 if known else 3) | (0x200 if is_cut else 0)
        head = struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        return query[:2] + head + query[12 : place + 5] + b"".join(records)

    def datagrams(self, listener):
        while True:
            query, peer = listener.recvfrom(4096)
            listener.sendto(self.answer(query, 512), peer)

    def streams(self, listener):
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as reader:
                while head := reader.read(2):
                    answer = self.answer(reader.read(struct.unpack("!H", head)[0]), 65535)
                    connection.sendall(struct.pack("!H", len(answer)) + answer)


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Both(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def in_image(root, *words):
    """As a container that may gain nothing."""
    return ["setpriv", "--no-new-privs", "chroot", "--userspec=65532:65532", "--groups=", str(root),
            "/dpa-sidecar", *words]


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    service = Both(("::", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    names = Names()

    # What a container runtime and the kubelet put there.
    (root / "etc/hosts").write_text(HOSTS)
    (root / "etc/resolv.conf").write_text(RESOLV)
    folder = root / "etc/dpa-sidecar"
    folder.mkdir()
    repository = pathlib.Path(__file__).resolve().parents[2]
    (folder / "policy.yaml").write_text((repository / "config/policy.yaml").read_text())
    listeners = [f'{{name: n{place}, address: "127.0.0.1:0", upstream: n{place}}}' for place in range(len(NAMES))]
    port = service.server_port
    upstreams = [f'{{name: n{place}, address: "{host}:{port}"}}' for place, (_, host, _) in enumerate(NAMES)]
    text = SETTINGS.format(listeners=", ".join(listeners), upstreams=", ".join(upstreams))
    (folder / "sidecar.yaml").write_text(text)
    verified = text.replace(f'{port}"}}', f'{port}", tls: {{ca: system}}}}')
    (folder / "verified.yaml").write_text(verified)

    (root / "dev").mkdir()
    for device in DEVICES:
        (root / "dev" / device).touch()

    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "uid=65532,gid=65532,mode=0750", "log", root / LOG], check=True)
    for device in DEVICES:
        subprocess.run(["mount", "--bind", f"/dev/{device}", root / "dev" / device], check=True)
    environment = {"TMPDIR": f"/{LOG}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    for words in [["demo", "--once"], ["demo", "--tls", "--once"], ["check", "/etc/dpa-sidecar/sidecar.yaml"],
                  ["check", "/etc/dpa-sidecar/verified.yaml"]]:
        done = subprocess.run(in_image(root, *words), env=environment, capture_output=True, text=True)
        case(f"`{' '.join(words)}` on a read-only root", done.returncode, 0)
        if done.returncode != 0:
            print(done.stdout[-2000:], done.stderr[-2000:])

    said = root.parent / "sidecar.log"
    with said.open("w") as log:
        words = in_image(root, "run", "--config", "/etc/dpa-sidecar/sidecar.yaml")
        sidecar = subprocess.Popen(words, env=environment, stderr=log)
    try:
        def ports():
            assert sidecar.poll() is None, said.read_text()
            found = dict(re.findall(r"listening name=(n\d+) address=127\.0\.0\.1:(\d+)\n", said.read_text()))
            return found if len(found) == len(NAMES) else None

        listening = wait_for("the sidecar", ports)
        for place, (sentence, host, expected) in enumerate(NAMES):
            connection = http.client.HTTPConnection("127.0.0.1", int(listening[f"n{place}"]), timeout=20)
            connection.request("GET", "/")
            case(f"{sentence} ({host})", connection.getresponse().status, expected)
        case("asked over TCP", "many.example" in names.over_tcp, True)
    finally:
        sidecar.terminate()
        case("the sidecar ends with", sidecar.wait(40), 0)
    verified = subprocess.run(in_image(root, "audit", "verify", f"/{LOG}"), env=environment, capture_output=True)
    case("`audit verify`", verified.returncode, 0)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
