#!/usr/bin/env python3
"""gRPC through the sidecar, with the service and the client of grpcio: calls of all four kinds, permitted and refused.

    tests/peers/grpc.py

Metadata and statuses both ways, large messages, streams whose sides take turns, deadlines, cancellation, a service that
goes away. A tap between the sidecar and the service counts bytes: of what is refused, nothing may reach the service.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# The folder of this file has modules named like those of the packages that its children import.
from services import PERMITTED, REFUSED, Tap, sidecar
from sidecar import CARE, ROOT, check, free_port, listens, process, program, records, skip, wait_for

GRPCIO = "grpcio==1.85.1"

SERVICE = r"""
import concurrent.futures, sys, threading
import grpc

cancelled = threading.Event()
left = []

def find(message, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-first", "1"), ("x-bytes-bin", metadata.get("x-bytes-bin", b"none"))))
    context.set_trailing_metadata((("x-last", metadata.get("x-word", "none")), ("x-raw-bin", b"\x00\xff")))
    assert not any(name.startswith("dpa-caller") for name in metadata), metadata
    assert metadata["dpa-decision-id"] and metadata["via"] == "2.0 dpa-sidecar", metadata
    return message[::-1]

def none(message, context):
    context.set_trailing_metadata((("x-last", "none"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such subscriber: é %")

def slow(message, context):
    left.append(context.time_remaining())
    context.add_callback(cancelled.set)
    cancelled.wait(20)
    return b""

def report(message, context):
    ended = cancelled.wait(10)
    cancelled.clear()
    return f"{ended} {left[-1] if left else 0:.3f}".encode()

def numbers(message, context):
    for number in range(int(message)):
        yield str(number).encode()

def forever(message, context):
    context.add_callback(cancelled.set)
    yield b"begun"
    cancelled.wait(20)

def total(messages, context):
    return str(sum(len(message) for message in messages)).encode()

def chat(messages, context):
    for message in messages:
        yield b"heard " + message

unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
handlers = {
    "Find": unary(find), "None": unary(none), "Slow": unary(slow), "Report": unary(report), "Echo": unary(lambda it, _: it),
    "Numbers": stream(numbers), "Forever": stream(forever),
    "Total": grpc.stream_unary_rpc_method_handler(total), "Chat": grpc.stream_stream_rpc_method_handler(chat),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("care.Subscribers", handlers),))
assert server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
server.wait_for_termination()
"""

CLIENT = r"""
import json, queue, sys
import grpc

port, caller, permitted, refused = sys.argv[1:5]
options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
metadata = [("dpa-caller", caller), ("dpa-context", f"purpose={permitted}")]
base = "/care.Subscribers/"

def check(what, found, expected):
    assert found == expected, f"{what}: {found!r}, not {expected!r}"

def fails(what, status, act, text=None):
    try:
        act()
    except grpc.RpcError as error:
        check(what, error.code(), status)
        if text:
            assert text in error.details(), f"{what}: {error.details()!r}"
        return error
    raise AssertionError(f"{what}: it did not fail")

find = channel.unary_unary(base + "Find")
answer, call = find.with_call(b"abc", metadata=metadata + [("x-word", "w"), ("x-bytes-bin", bytes(range(256)))], timeout=20)
check("a call", answer, b"cba")
first, last = dict(call.initial_metadata()), dict(call.trailing_metadata())
check("first metadata", (first["x-first"], first["x-bytes-bin"]), ("1", bytes(range(256))))
check("last metadata", (last["x-last"], last["x-raw-bin"]), ("w", b"\x00\xff"))

error = fails("a status", grpc.StatusCode.NOT_FOUND, lambda: channel.unary_unary(base + "None")(b"", metadata=metadata, timeout=20))
check("its text", error.details(), "no such subscriber: é %")
check("its metadata", dict(error.trailing_metadata())["x-last"], "none")

numbers = [int(it) for it in channel.unary_stream(base + "Numbers")(b"5000", metadata=metadata, timeout=20)]
check("a stream of the service", numbers, list(range(5000)))
total = channel.stream_unary(base + "Total")((b"x" * 1000 for _ in range(2000)), metadata=metadata, timeout=20)
check("a stream of the caller", total, b"2000000")

words = queue.Queue()
chat = channel.stream_stream(base + "Chat")(iter(words.get, None), metadata=metadata, timeout=20)
for word in [b"one", b"two", b"three"]:
    words.put(word)
    check("a turn", next(chat), b"heard " + word)
words.put(None)
check("the end of both streams", list(chat), [])

# The two directions at once, more than any window.
big = b"\x00\xff" * (4 << 20)
check("8 MiB there and back", channel.unary_unary(base + "Echo")(big, metadata=metadata, timeout=20), big)
heard = list(channel.stream_stream(base + "Chat")((b"x" * 60000 for _ in range(200)), metadata=metadata, timeout=20))
check("12 MB there and back", (len(heard), {len(it) for it in heard}), (200, {60006}))

fails("a deadline", grpc.StatusCode.DEADLINE_EXCEEDED,
      lambda: channel.unary_unary(base + "Slow")(b"", metadata=metadata, timeout=1.5))
ended, left = channel.unary_unary(base + "Report")(b"", metadata=metadata, timeout=20).decode().split()
check("the service was told", ended, "True")
# gRPC rounds up what it tells of a deadline.
assert 0 < float(left) < 1.7, left

watch = channel.unary_stream(base + "Forever")(b"", metadata=metadata)
check("a stream that stays", next(watch), b"begun")
watch.cancel()
ended = channel.unary_unary(base + "Report")(b"", metadata=metadata, timeout=20).decode().split()[0]
check("the service was told of the cancellation", ended, "True")
print(json.dumps({"decisions": 11}))

denied = [("dpa-caller", caller), ("dpa-context", f"purpose={refused}")]
for name, kind, argument in [("Find", channel.unary_unary, b""), ("Numbers", channel.unary_stream, b"1"),
                             ("Total", channel.stream_unary, iter([b"secret"] * 3)), ("Chat", channel.stream_stream, iter([b"secret"] * 3))]:
    def act():
        answer = kind(base + name)(argument, metadata=denied, timeout=20)
        list(answer) if kind in (channel.unary_stream, channel.stream_stream) else answer
    error = fails(f"refused: {name}", grpc.StatusCode.PERMISSION_DENIED, act, "purpose_not_bound_to_caller")
    assert dict(error.trailing_metadata() or error.initial_metadata()), name
fails("nobody", grpc.StatusCode.UNAUTHENTICATED, lambda: find(b"", timeout=20), "caller_unidentified")
fails("a call whose operation nobody stated", grpc.StatusCode.PERMISSION_DENIED,
      lambda: channel.unary_unary("/care.Unsaid/Find")(b"", metadata=metadata, timeout=20), "route_unmapped")
"""

ROUTES = """
    operation: retrieve
  - path: /care.Unsaid/{*method}
    customer: redwood-strand
    purpose: {from: context}
    data_categories: [user.contact]
"""

ABSENT = r"""
import sys, grpc
channel = grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}", [("grpc.enable_retries", 0)])
metadata = [("dpa-caller", sys.argv[2]), ("dpa-context", f"purpose={sys.argv[3]}")]
try:
    channel.unary_unary("/care.Subscribers/Find")(b"", metadata=metadata, timeout=20)
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNAVAILABLE and "upstream_unavailable" in error.details(), error
else:
    raise AssertionError("it did not fail")
"""


def python():
    home = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "peers/grpc"
    python = home / "bin/python"
    install = [[sys.executable, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "--quiet", GRPCIO]]
    for words in install if not list(home.glob("lib/*/site-packages/grpc/__init__.py")) else []:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            skip(f"no grpcio: {error}")
        if done.returncode != 0:
            skip(f"`{GRPCIO}` cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return str(python)


def calls(folder, binary):
    program, port = python(), free_port()
    with (folder / "service.stderr").open("w") as stderr, \
            process([program, "-c", SERVICE, str(port)], cwd=folder, stderr=stderr):
        wait_for("the service", lambda: listens(port))
        tap = Tap(port)
        with sidecar(folder, binary, tap.port, ROUTES, ", protocol: http2") as proxy:
            words = [program, "-c", CLIENT, str(proxy), CARE, PERMITTED, REFUSED]
            with process(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
                out, err = client.communicate(timeout=120)
            check(f"the client: {err[-3000:]} {(folder / 'service.stderr').read_text()[-3000:]}", client.returncode, 0)
            before = tap.bytes
            expected = json.loads(out)["decisions"]

            def ended():
                sent = {it["decision_id"] for it in records(folder, "dpa.decision") if it["action"] == "allowed"}
                outcomes = [it for it in records(folder, "dpa.outcome")]
                ids = {it["decision_id"] for it in outcomes}
                return sent == ids and len(outcomes) == len(sent) and outcomes
            outcomes = wait_for("one outcome of each call", ended)
            check("calls that were permitted", len(outcomes), expected)
            kinds = sorted(it["outcome"] for it in outcomes)
            check("how they ended", kinds, ["aborted"] * 2 + ["completed"] * (expected - 2))
            denied = [it for it in records(folder, "dpa.decision") if it["action"] == "denied"]
            check("calls that were refused", len(denied), 6)
            check("bytes behind the last call", tap.bytes - before, 0)
    with sidecar(folder, binary, port, ROUTES, ", protocol: http2") as proxy:
        done = subprocess.run([program, "-c", ABSENT, str(proxy), CARE, PERMITTED], cwd=folder, capture_output=True, text=True)
        check(f"a service that is gone: {done.stderr[-2000:]}", done.returncode, 0)


def main():
    binary = program()
    with tempfile.TemporaryDirectory(prefix="dpa-grpc-") as name:
        calls(pathlib.Path(name), binary)
    print("grpc: all as it should be")


if __name__ == "__main__":
    main()
