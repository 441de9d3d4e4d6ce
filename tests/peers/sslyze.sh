#!/usr/bin/env bash
# What sslyze finds at the TLS of a listener, against what Mozilla recommends: a listener as it is by default against
# `modern`, one with `min_version: "1.2"` against `intermediate`. The only finding may be that nobody knows the
# authority of this test.
#
# Exit codes: 0 nothing else found; 1 a finding; 2 cannot look (it says why).
# DPA_SIDECAR names the binary; without it the release build is made and taken.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."

skip() { echo "skipped: $*" >&2; exit 2; }

for tool in openssl python3; do command -v "$tool" >/dev/null || skip "no $tool"; done
if [ -z "${DPA_SIDECAR-}" ]; then
    cargo build --release --locked --quiet
    DPA_SIDECAR=${CARGO_TARGET_DIR:-target}/release/dpa-sidecar
fi

dir=$(mktemp -d)
sidecar=
finish() {
    [ -z "$sidecar" ] || { kill "$sidecar" 2>/dev/null || true; wait "$sidecar" 2>/dev/null || true; }
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 2' INT TERM

python3 -m venv "$dir/venv" || skip 'no venv for Python'
"$dir/venv/bin/pip" install --quiet 'sslyze==6.*' || skip 'cannot install sslyze'

{
    ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${ec[@]}" -keyout "$dir/ca.key" -out "$dir/ca.crt" -days 90 -subj '/CN=Test Authority'
    openssl req "${ec[@]}" -keyout "$dir/tls.key" -out "$dir/tls.csr" -subj '/CN=localhost'
    printf 'subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n' >"$dir/extensions"
    openssl x509 -req -in "$dir/tls.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 90 \
        -out "$dir/tls.crt" -extfile "$dir/extensions"
} 2>"$dir/openssl.err" || { cat "$dir/openssl.err" >&2; skip 'openssl makes no certificates'; }

cat >"$dir/sidecar.yaml" <<CONF
service: {name: subscriber-api, storage_location: US-OR}
workers: 1
policy: {file: "$PWD/config/policy.yaml"}
listeners:
  - {name: modern, address: "127.0.0.1:0", upstream: app, tls: {certificate: tls.crt, private_key: tls.key}}
  - {name: intermediate, address: "127.0.0.1:0", upstream: app, tls: {certificate: tls.crt, private_key: tls.key, min_version: "1.2"}}
upstreams: [{name: app, address: "127.0.0.1:1"}]
identity: [{header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}]
routes: [{path: "/{*rest}", customer: {from: context}, purpose: {from: context}, data_categories: [user]}]
decision_log: {file: {path: decisions.ndjson}}
CONF
"$DPA_SIDECAR" run --config "$dir/sidecar.yaml" 2>"$dir/sidecar.err" &
sidecar=$!

port_of() { sed -n "s/.*listening name=$1 address=127\.0\.0\.1:\([0-9]*\).*/\1/p" "$dir/sidecar.err"; }

for _ in $(seq 200); do
    [ -z "$(port_of intermediate)" ] || break
    sleep 0.05
done
[ -n "$(port_of intermediate)" ] || { cat "$dir/sidecar.err" >&2; skip 'the sidecar does not start'; }

code=0
for name in modern intermediate; do
    # It ends with 1 because of the authority.
    "$dir/venv/bin/python" -m sslyze --mozilla_config "$name" "localhost:$(port_of "$name")" >"$dir/$name.txt" 2>&1 || true
    if ! grep -q "Mozilla's \"$name\" configuration" "$dir/$name.txt" || ! grep -q 'SCANS COMPLETED' "$dir/$name.txt"; then
        cat "$dir/$name.txt" >&2
        skip 'sslyze did not come to a result'
    fi
    findings=$(sed -n "/COMPLIANCE AGAINST/,\$s/^ *\* //p" "$dir/$name.txt")
    echo "$name: ${findings:-nothing found}"
    if grep -v '^certificate_path_validation: ' <<<"$findings" | grep -q .; then code=1; fi
done
exit "$code"
