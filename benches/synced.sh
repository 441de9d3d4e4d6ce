#!/usr/bin/env bash
# How many waiting requests one fdatasync serves under `durability: synced`, on a disk that takes 5 ms.
#
#   benches/synced.sh
#
# The sidecar runs with two workers under strace, which makes each fdatasync take 5 ms longer; wrk keeps 64
# requests waiting. Prints requests, fdatasyncs and their ratio. Only the ratio says something: strace slows all.
# Exit codes: 0 measured; 1 an answer was not 200; 2 cannot measure here. DPA_SIDECAR names the binary.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
for tool in strace wrk python3; do command -v "$tool" >/dev/null || { echo "skipped: no $tool" >&2; exit 2; }; done
if [ -z "${DPA_SIDECAR-}" ]; then
    cargo build --release --locked --quiet
    DPA_SIDECAR=${CARGO_TARGET_DIR:-target}/release/dpa-sidecar
fi
dir=$(mktemp -d)
running=()
finish() {
    for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
front=$(port) back=$(port)
cat > "$dir/origin.py" <<'PY'
import asyncio, sys
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
async def serve(reader, writer):
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
PY
python3 "$dir/origin.py" "$back" & running+=($!)
for _ in $(seq 100); do
    python3 -c "import socket; socket.create_connection(('127.0.0.1', $back), 1)" 2>/dev/null && break
    sleep 0.1
done
cat > "$dir/sidecar.yaml" <<YAML
service: {name: bench, storage_location: US-OR}
workers: 2
policy: {file: $PWD/config/policy.yaml}
listeners: [{name: main, address: "127.0.0.1:$front", upstream: app}]
upstreams: [{name: app, address: "127.0.0.1:$back"}]
identity: [{header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}]
routes: [{path: "/{*rest}", customer: {from: context}, purpose: {from: context}, data_categories: [user.contact]}]
decision_log: {file: {path: decisions.ndjson}, durability: synced}
YAML
strace -D -f -qq -o "$dir/trace" -e trace=fdatasync -e inject=fdatasync:delay_exit=5000 \
    "$DPA_SIDECAR" run --config "$dir/sidecar.yaml" 2> "$dir/stderr" & running+=($!)
for _ in $(seq 100); do
    grep -q 'listening name=main' "$dir/stderr" && break
    sleep 0.1
done
before=$(grep -c fdatasync "$dir/trace" || true)
wrk -t1 -c64 -d8 -H 'DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk' \
    -H 'DPA-Context: customer=redwood-strand, purpose=customer_support' "http://127.0.0.1:$front/x" > "$dir/wrk"
after=$(grep -c fdatasync "$dir/trace" || true)
requests=$(awk '/requests in/ {print $1}' "$dir/wrk")
if grep -q 'Non-2xx' "$dir/wrk"; then cat "$dir/wrk" >&2; exit 1; fi
awk -v r="$requests" -v s="$((after - before))" \
    'BEGIN { printf "%d requests, %d fdatasyncs: one serves %.1f of 64 waiting requests\n", r, s, r / s }'
