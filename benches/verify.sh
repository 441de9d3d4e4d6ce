#!/usr/bin/env bash
# How fast `audit verify` is, next to `sha256sum` over the same files: both hash every byte once.
#
#   benches/verify.sh [MIB]      1024 MiB of log by default, in segments of 128 MiB
#
# The log is made here: decisions and outcomes as a sidecar writes them, a checkpoint after every thousand records.
# Both take turns, three times each, on one core and then on all that there are; sha256sum uses one in any case. The
# files are in memory by then. How to read it: the medians, and their ratio; below 1 `audit verify` is the faster one.
#
# Exit codes: 0 measured; 1 the log was not found as written; 2 cannot measure here (it says why).
# DPA_SIDECAR names the binary; without it the release build is made and taken.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

mib=${1-1024}
skip() { echo "skipped: $*" >&2; exit 2; }
for tool in python3 sha256sum taskset; do command -v "$tool" >/dev/null || skip "no $tool"; done
if [ -z "${DPA_SIDECAR-}" ]; then
    cargo build --release --locked --quiet
    DPA_SIDECAR=${CARGO_TARGET_DIR:-target}/release/dpa-sidecar
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
[ "$(df --output=avail -m "$dir" | tail -1)" -gt $((mib + 512)) ] || skip "no room for $mib MiB in $dir"

python3 - "$dir" "$mib" <<'PY'
import hashlib, sys, uuid
folder, most = sys.argv[1], int(sys.argv[2]) << 20
log = "01a206f5-e4b9-731f-9735-af4d76753c68"
who = f'"service":"subscriber-api","instance":"pod-0","log":"{log}"'
at = '"time":"2026-11-23T05:51:48.905904Z"'
seq, prev, written, segment, file, size = 0, "0" * 64, 0, 0, None, 0

def seal(record):
    global seq, prev, written, size
    seq += 1
    text = f'{record},"seq":{seq},"prev":"{prev}"'
    prev = hashlib.sha256((prev + text).encode()).hexdigest()
    line = f'{text},"hash":"{prev}"}}\n'
    written, size = written + len(line), size + len(line)
    file.write(line)

while written < most:
    if file is None or size > 128 << 20:
        segment, size = segment + 1, 0
        file = open(f"{folder}/decisions-{segment:06}.ndjson", "w")
        why = "rotated" if segment > 1 else "new"
        seal(f'{{"event":"dpa.log","what":"opened",{at},{who},"segment":{segment},"why":"{why}"')
    id = uuid.uuid4()
    seal(f'{{"event":"dpa.decision",{at},"decision_id":"{id}","request_id":"{uuid.uuid4()}","trace_id":"{uuid.uuid4().hex}",{who},'
         '"decision":"permit","action":"allowed","enforcement":"enforce","on_failure":"deny","durability":"written",'
         '"authority":"permitted_purpose","customer_id":"redwood-strand","caller_id":"care-desk","recipient":{"type":"internal",'
         '"id":"care-desk"},"purpose":"customer_support","operation":"retrieve","data_categories":["user.contact"],"location":'
         '{"storage":"US-OR","access":"US-OR"},"transport":{"tls_version":"none","proof":"header"},"route":'
         '"/v1/customers/{customer}/subscribers/{id}","method":"GET","sources":{"caller":"header","customer":"path","purpose":'
         '"context","operation":"method","subscriber":"path"},"policy":{"name":"lumenfield-dpa","revision":12,"digest":'
         '"676e7995557215b650cfe1979938056222bf2b53945fa045fe1c7d7aea65b109"}')
    seal(f'{{"event":"dpa.outcome",{at},"decision_id":"{id}",{who},"outcome":"completed","status":200,"request_bytes":0,'
         '"response_bytes":50,"duration_us":20106')
    if seq % 1000 < 2:
        seal(f'{{"event":"dpa.checkpoint",{at},{who},"count":{seq},"head":"{prev}","policy_digest":"","unrecorded":0')
PY
"$DPA_SIDECAR" audit verify "$dir" >"$dir/.said" || { cat "$dir/.said"; exit 1; }
grep -o 'holds .*' "$dir/.said"

# Seconds of a command.
seconds() {
    local begin end
    begin=$(date +%s%N)
    "$@" >/dev/null
    end=$(date +%s%N)
    awk -v ns=$((end - begin)) 'BEGIN { printf "%.3f\n", ns / 1e9 }'
}
median() { sort -n | sed -n 2p; }
measure() {
    local cores=$1 round
    for round in 1 2 3; do
        seconds taskset -c "$cores" sha256sum "$dir"/*.ndjson >>"$dir/.sha256sum"
        seconds taskset -c "$cores" "$DPA_SIDECAR" audit verify "$dir" >>"$dir/.verify"
    done
    local a b
    a=$(median <"$dir/.verify")
    b=$(median <"$dir/.sha256sum")
    awk -v a="$a" -v b="$b" -v what="$2" \
        'BEGIN { printf "%-10s audit verify %.2f s   sha256sum %.2f s   ratio %.2f\n", what, a, b, a / b }'
    rm "$dir/.verify" "$dir/.sha256sum"
}
measure 0 'one core'
measure "0-$(($(nproc) - 1))" "$(nproc) cores"
