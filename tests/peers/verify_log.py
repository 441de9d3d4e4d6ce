"""Verifies one decision log from docs/decision-log.md alone: python3 verify_log.py SEGMENT...

Prints "ok RECORDS LAST_HASH", or "FILE:LINE what is wrong" and exits with 1. Signatures need more than hashlib.
"""
import hashlib
import json
import re
import sys

LINE = re.compile(rb'(\{".*),"seq":([1-9][0-9]*),"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}\n')


def wrong(path, line, what):
    print(f"{path}:{line} {what}")
    sys.exit(1)


def opening(path):
    with open(path, "rb") as file:
        return json.loads(file.readline())


segments = sorted(sys.argv[1:], key=lambda path: opening(path)["segment"])
log, seq, prev = opening(segments[0])["log"], 0, b"0" * 64
for number, path in enumerate(segments, 1):
    first = opening(path)
    if (first["event"], first.get("what"), first["segment"]) != ("dpa.log", "opened", number):
        wrong(path, 1, f"not the opening of segment {number}")
    with open(path, "rb") as file:
        for place, line in enumerate(file, 1):
            form = LINE.fullmatch(line)
            if not form:
                wrong(path, place, "not a record")
            if hashlib.sha256(prev + line[: line.rindex(b',"hash":')]).hexdigest().encode() != form[4]:
                wrong(path, place, "its hash is not that of its content")
            if int(form[2]) != seq + 1 or form[3] != prev:
                wrong(path, place, "does not follow the record before it")
            record = json.loads(line)
            if record["log"] != log:
                wrong(path, place, "of another log")
            if record["event"] == "dpa.checkpoint" and (record["count"], record["head"]) != (seq, prev.decode()):
                wrong(path, place, "says something else than the chain")
            seq, prev = int(form[2]), form[4]
print("ok", seq, prev.decode())
