#!/usr/bin/env bash
# What Prometheus' own tool says: of a scrape of a running sidecar, of the alerts and their tests, and of each
# expression of the dashboard.
# 2: promtool cannot be had here.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v promtool >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null 2>&1 || true
    fi
    command -v promtool >/dev/null || { echo 'no promtool' >&2; exit 2; }
fi
sidecar=${DPA_SIDECAR:-${CARGO_TARGET_DIR:-target}/release/dpa-sidecar}
dir=$(mktemp -d)
pid=
cleanup() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    [ -z "$pid" ] || wait "$pid" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT

cp config/policy.yaml "$dir/"
cat >"$dir/sidecar.yaml" <<'YAML'
service: {name: subscriber-api, storage_location: US-OR}
policy: {file: policy.yaml}
listeners: [{name: main, address: 127.0.0.1:0, upstream: app}]
upstreams: [{name: app, address: 127.0.0.1:9}]
identity: [{header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}]
routes:
  - path: /v1/customers/{customer}/{*rest}
    customer: {from: path, name: customer}
    purpose: {from: context}
    data_categories: [user.contact]
decision_log: {file: {path: decisions.ndjson}}
health: {address: 127.0.0.1:0}
YAML
"$sidecar" run --config "$dir/sidecar.yaml" 2>"$dir/said" &
pid=$!
for _ in $(seq 200); do
    ! grep -q '^  warnings' "$dir/said" || break
    kill -0 "$pid" || { cat "$dir/said" >&2; exit 1; }
    sleep 0.05
done
address=$(sed -n 's/.*listening name=main address=//p' "$dir/said")
health=$(sed -n 's/^  health *//p' "$dir/said")
# A denial, and a permit that nobody answers.
for purpose in customer_marketing customer_support; do
    curl -s -o "$dir/answer" "http://$address/v1/customers/redwood-strand/contacts.json" \
        -H 'DPA-Caller: spiffe://lumenfield.example/ns/care/sa/care-desk' -H "DPA-Context: purpose=$purpose"
done

echo 'promtool check metrics'
curl -sf "http://$health/metrics" >"$dir/scrape"
promtool check metrics <"$dir/scrape"
grep -c '^# TYPE' "$dir/scrape"

echo 'promtool check rules, test rules'
promtool check rules deploy/prometheus/rules.yaml
promtool test rules deploy/prometheus/rules.test.yaml

echo 'each expression of the dashboard'
python3 - "$dir/dashboard.yaml" <<'PY'
import json, re, sys

def expressions(tree):
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "expr" and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from expressions(item)

found = list(expressions(json.load(open("deploy/grafana/dpa-sidecar.json"))))
assert len(found) > 40, found
with open(sys.argv[1], "w") as out:
    print("groups:\n- name: dashboard\n  rules:", file=out)
    for place, expression in enumerate(found):
        plain = expression.replace("$__rate_interval", "5m")
        print(f"  - record: panel:expression:{place}\n    expr: {json.dumps(plain)}", file=out)
PY
promtool check rules "$dir/dashboard.yaml"
