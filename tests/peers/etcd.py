#!/usr/bin/env python3
"""etcd behind the sidecar, used by its own client over TLS: puts, gets, deletions, a watch, leases that are kept alive.

    tests/peers/etcd.py

Callers are told by their certificates. The watch is silent for longer than a service that speaks HTTP/1.1 might be.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import json
import os
import pathlib
import subprocess
import tempfile
import time

from forwarded import certificates
from sidecar import ROOT, check, free_port, installed, listens, process, program, records, running, wait_for

ROUTES = {"Range": "retrieve", "Put": "store", "DeleteRange": "erase", "Txn": "modify"}


def settings(folder, port):
    kv = "\n".join(f"""  - {{path: /etcdserverpb.KV/{name}, customer: redwood-strand, purpose: customer_support, operation: {operation},
     data_categories: [user.contact]}}""" for name, operation in ROUTES.items())
    (folder / "sidecar.yaml").write_text(f"""
service: {{name: subscriber-api, storage_location: US-OR, instance: peers}}
policy: {{file: {json.dumps(str(ROOT / "config/policy.yaml"))}}}
listeners:
  - name: main
    address: "127.0.0.1:0"
    upstream: app
    tls: {{certificate: gateway.crt, private_key: gateway.key, client_ca: ca.crt, min_version: "1.2"}}
upstreams: [{{name: app, address: "127.0.0.1:{port}", protocol: http2}}]
identity: [{{certificate: {{}}}}]
routes:
{kv}
  - {{path: /etcdserverpb.Watch/Watch, customer: redwood-strand, purpose: customer_support, operation: retrieve,
     data_categories: [user.contact]}}
  - {{path: "/etcdserverpb.Lease/{{*call}}", customer: redwood-strand, purpose: customer_support, operation: store,
     data_categories: [user.contact]}}
  - {{path: /unsaid, subscriber_data: false}}
decision_log: {{file: {{path: decisions.ndjson}}}}
""")


def use(folder, binary):
    server, client = installed("etcd-server", "etcd"), installed("etcd-client", "etcdctl")
    certificates(folder)
    port, peer = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    words = [server, "--data-dir", str(folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url,
             "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-cluster", f"default=http://127.0.0.1:{peer}"]
    with (folder / "etcd.log").open("w") as log, process(words, stdout=log, stderr=log):
        wait_for("etcd", lambda: listens(port))
        settings(folder, port)
        with running(folder, binary) as proxy:
            def options(caller):
                return [client, "--endpoints", f"https://localhost:{proxy}", "--cacert", str(folder / "ca.crt"),
                        "--cert", str(folder / f"{caller}.crt"), "--key", str(folder / f"{caller}.key"),
                        "--command-timeout=15s", "--dial-timeout=10s"]

            environment = {**os.environ, "ETCDCTL_API": "3"}

            def ctl(*words, caller="care", code=0):
                done = subprocess.run([*options(caller), *words], env=environment, capture_output=True, text=True, timeout=60)
                check(f"etcdctl {words}: {done.stdout} {done.stderr}", done.returncode, code)
                return done.stdout.strip() + done.stderr.strip() * (code != 0)

            check("a put", ctl("put", "subscriber/1", "one"), "OK")
            check("a get", ctl("get", "subscriber/1", "--print-value-only"), "one")
            large = "x" * (1 << 20)
            (folder / "large").write_text(large)
            with (folder / "large").open() as stdin:
                done = subprocess.run([*options("care"), "put", "subscriber/large"], env=environment, stdin=stdin, timeout=60)
            check("a large put", done.returncode, 0)
            check("a large get", ctl("get", "subscriber/large", "--print-value-only") == large, True)

            watch = [*options("care"), "watch", "subscriber/", "--prefix"]
            with (folder / "watch.out").open("w") as out, process(watch, stdout=out, stderr=out, env=environment) as watching:
                def seen(value):
                    return value in (folder / "watch.out").read_text().split("\n")

                wait_for("a watch", lambda: any(it["route"] == "/etcdserverpb.Watch/Watch"
                                                for it in records(folder, "dpa.decision")))

                def changed():
                    ctl("put", "subscriber/2", "two")
                    return seen("two")
                wait_for("a change that is watched", changed)
                lease = ctl("lease", "grant", "3").split()[1]
                check("a put with a lease", ctl("put", "subscriber/3", "three", f"--lease={lease}"), "OK")
                with process([*options("care"), "lease", "keep-alive", lease], env=environment, stdout=subprocess.DEVNULL):
                    # Longer than the lease is.
                    time.sleep(6)
                    check("what is kept alive", ctl("get", "subscriber/3", "--print-value-only"), "three")
                    check("what is watched is told at once", seen("three"), True)
                wait_for("the end of the lease", lambda: ctl("get", "subscriber/3", "--print-value-only") == "")
                check("a deletion", ctl("del", "subscriber/1"), "1")
                wait_for("the deletion", lambda: (folder / "watch.out").read_text().count("DELETE") >= 2)
                check("the watch", watching.poll(), None)

            refused = ctl("get", "subscriber/2", caller="stranger", code=1)
            check("a stranger is refused", "PermissionDenied" in refused and "recipient_unknown" in refused, True)
            refused = ctl("member", "list", code=1)
            check("a call without a route is refused", "route_unmapped" in refused, True)

            def ended():
                sent = {it["decision_id"] for it in records(folder, "dpa.decision") if it["action"] == "allowed"}
                outcomes = records(folder, "dpa.outcome")
                return {it["decision_id"] for it in outcomes} == sent and len(outcomes) == len(sent) and outcomes
            outcomes = {it["decision_id"]: it["outcome"] for it in wait_for("one outcome of each call", ended)}
            for decision in records(folder, "dpa.decision"):
                stays = decision.get("route") in ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/{*call}"]
                outcome = outcomes.get(decision["decision_id"])
                if outcome not in (["completed", "aborted"] if stays else ["completed", None]):
                    raise SystemExit(f"{decision.get('route')}: {outcome}")


def main():
    binary = program()
    with tempfile.TemporaryDirectory(prefix="dpa-etcd-") as name:
        use(pathlib.Path(name), binary)
    print("etcd: all as it should be")


if __name__ == "__main__":
    main()
