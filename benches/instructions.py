#!/usr/bin/env python3
"""How many instructions a request takes in user space, counted by callgrind, against the figures that stand below.

    benches/instructions.py [--program target/release/dpa-sidecar] [--only http1,mtls,h2,grpc]

What is counted does not depend on how fast the machine is at the moment, so this shows what a change costs before
benches/whole-process.sh can: the same load, one worker, and the threads apart. Figures hold for one compiler and one
machine's instruction set; a new compiler is a reason to write them anew.
The program is one without what debuggers need; it is slowed down fifty times, so more requests meet in a turn of its loop.

0: none is more than 5 % above its figure; 1: one is; 2: cannot be counted here (it says why).
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import comparison

# Instructions of the worker for a request. Those of the writer are not counted: most are SHA-256, for which a processor
# has instructions that callgrind does not know.
STANDING = {"http1": 85_000, "mtls": 117_000, "h2": 104_000, "grpc": 144_500}
TOLERANCE = 1.05


def records(folder):
    return sum(path.read_bytes().count(b'"event":"dpa.decision"') for path in folder.glob("sidecar*.log"))


def control(process, *words):
    subprocess.run(["callgrind_control", *words, str(process.pid)], check=True, capture_output=True)


def counted(folder, process, load):
    """Instructions that the thread which runs most, the worker, takes for a request."""
    control(process, "-i", "on")
    before = records(folder)
    load()
    control(process, "-i", "off")
    control(process, "-d")
    time.sleep(1)
    requests = records(folder) - before
    threads = [path.read_text() for path in folder.glob("callgrind.out.*")]
    return max(int(total) for text in threads for total in re.findall(r"^totals: (\d+)", text, re.M)) // requests


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", default=str(comparison.ROOT / "target/release/dpa-sidecar"))
    parser.add_argument("--only", default=",".join(STANDING), help="scenarios, with commas between")
    given = parser.parse_args()
    comparison.TOOLS["valgrind"] = "valgrind"
    comparison.install()
    if not os.access(given.program, os.X_OK):
        comparison.skip(f"no {given.program}: cargo build --release")
    is_over = False
    print(f"{'':8} {'instructions':>12} {'standing':>9}")
    for kind in given.only.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            folder.chmod(0o755)
            bench = comparison.Bench(folder, given.program, 12)
            bench.under = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes", f"--callgrind-out-file={folder}/callgrind.out"]
            service, serving = bench.service(kind)
            [port] = comparison.free_ports(1)
            with serving, comparison.sidecar(bench, kind, port, service) as process:
                found = []
                comparison.measured = lambda process, load: found.append(counted(folder, process, load))
                comparison.RUNS[kind](bench, process, port)
            is_over |= found[0] > STANDING[kind] * TOLERANCE
            print(f"{kind:8} {found[0]:12} {STANDING[kind]:9}", flush=True)
    if is_over:
        comparison.fail("more instructions than stand in this file: find out what brought them, or write the new figures")


if __name__ == "__main__":
    main()
