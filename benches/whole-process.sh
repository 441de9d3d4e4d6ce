#!/usr/bin/env bash
# What one authorized and recorded request costs the processor, next to nginx that neither authorizes nor
# records more than an access log.
#
#   benches/whole-process.sh [--quick]      under five minutes; --quick under one, and coarser
#
# The sidecar runs with one worker, the whole sample policy (config/policy.yaml) and its decision log in a file;
# nginx as a plain proxy with one worker and a JSON access log, unbuffered as by default. Behind both stands the
# same nginx that answers 1 KiB of JSON, before both the same wrk: 64 connections, keep-alive on both sides, GETs
# that rotate over 256 permitted combinations of caller, customer, purpose and subscriber. The proxy has core 0
# for itself, load and backend share core 1. The two take turns, so that a machine that gets slower or faster
# does so for both.
#
# How to read it
#   us/request        utime + stime of all processes and threads of the proxy (/proc/PID/stat), over the requests
#                     that wrk counts. The kernel's share is in it: about two thirds for a fast proxy.
#   ratio             median of the sidecar over median of nginx: the result. The microseconds belong to the machine,
#                     and a virtual core drifts by tens of percent: compare ratios, and those of one run only.
#   req/s             coarse, since load and backend share a core and may be the limit.
#   records/request   lines of the decision log (decisions) or the access log, over requests. At most the 64 that
#                     wrk has under way when it stops may be more; fewer fails the run.
#   syscalls/request  from a run of its own under strace, which slows the proxy, so that more is done in each turn
#                     of its loop than without: lower than in truth where a proxy batches.
#
# Exit codes: 0 measured; 1 an answer was not 200, or a record is missing; 2 cannot measure here (it says why).
# DPA_SIDECAR names the binary; without it the release build is made and taken.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

seconds=8 rounds=3 traced=3
case "${1-}" in
    --quick) seconds=2 traced=1 ;;
    '') ;;
    *) echo "usage: benches/whole-process.sh [--quick]" >&2; exit 2 ;;
esac

skip() { echo "skipped: $*" >&2; exit 2; }

missing=()
for tool in nginx wrk; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if [ "${#missing[@]}" -gt 0 ]; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "no ${missing[*]}, and only root can install them"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 \
        || skip "cannot install ${missing[*]}"
fi
for tool in taskset python3 curl; do command -v "$tool" >/dev/null || skip "no $tool"; done
[ "$(nproc)" -ge 2 ] || skip "it takes two cores to keep the load off the proxy's"
if [ -z "${DPA_SIDECAR-}" ]; then
    cargo build --release --locked --quiet
    DPA_SIDECAR=${CARGO_TARGET_DIR:-target}/release/dpa-sidecar
fi

dir=$(mktemp -d)
running=()
finish() {
    # First TERM, since only on that a master of nginx ends its workers.
    for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
    sleep 0.2
    for pid in "${running[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    for pid in "${running[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 2' INT TERM
chmod 755 "$dir"

read -r backend proxy < <(python3 - <<'PY'
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
)

nginx_of() { # name, what stands in its http block
    mkdir -p "$dir/$1"
    cat >"$dir/$1.conf" <<CONF
worker_processes 1;
daemon off;
pid $dir/$1/pid;
error_log $dir/$1/error.log;
events { worker_connections 4096; }
http {
    keepalive_requests 1000000000;
    client_body_temp_path $dir/$1/body;
    proxy_temp_path $dir/$1/proxy;
    fastcgi_temp_path $dir/$1/fastcgi;
    uwsgi_temp_path $dir/$1/uwsgi;
    scgi_temp_path $dir/$1/scgi;
$2
}
CONF
}
body=$(python3 -c 'print("{\"subscriber\":\"" + "x" * (1024 - len("{\"subscriber\":\"\"}")) + "\"}")')
nginx_of backend "    access_log off;
    server { listen 127.0.0.1:$backend; location / { default_type application/json; return 200 '$body'; } }"
# shellcheck disable=SC2016  # the variables are nginx's
nginx_of proxy '    log_format json escape=json '"'"'{"time":"$time_iso8601","id":"$request_id","remote":"$remote_addr","method":"$request_method",'"'"'
        '"'"'"uri":"$request_uri","caller":"$http_dpa_caller","context":"$http_dpa_context","status":$status,"bytes":$body_bytes_sent,'"'"'
        '"'"'"duration":$request_time,"upstream":"$upstream_addr","upstream_status":"$upstream_status"}'"'"';
    access_log '"$dir"'/proxy.log json;
    upstream service { server 127.0.0.1:'"$backend"'; keepalive 256; keepalive_requests 1000000000; }
    server { listen 127.0.0.1:'"$proxy"'; location / { proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection ""; } }'

cat >"$dir/sidecar.yaml" <<CONF
service: {name: subscriber-api, storage_location: US-OR}
workers: 1
policy: {file: "$PWD/config/policy.yaml"}
listeners: [{name: main, address: "127.0.0.1:0", upstream: app}]
upstreams: [{name: app, address: "127.0.0.1:$backend"}]
identity: [{header: {name: DPA-Caller, trusted_peers: [127.0.0.1/32]}}]
routes:
  - path: /v1/customers/{customer}/subscribers/{id}
    methods: [GET]
    customer: {from: path, name: customer}
    subscriber: {from: path, name: id}
    purpose: {from: context}
    data_categories: [user.name, user.contact, user.account]
decision_log: {file: {path: "$dir/sidecar.log"}}
CONF

cat >"$dir/load.lua" <<'LUA'
local callers = {
    {"spiffe://lumenfield.example/ns/care/sa/care-desk", "customer_support"},
    {"spiffe://lumenfield.example/ns/care/sa/care-desk", "account_management"},
    {"spiffe://lumenfield.example/ns/bill/sa/biller", "billing_payment"},
    {"spiffe://ticketriver.example/sa/sync", "customer_support"},
}
local requests, next = {}, 0
function init()
    for number = 0, 255 do
        local caller = callers[number % 4 + 1]
        local customer = number % 8 < 4 and "redwood-strand" or "granite-notch"
        requests[number] = wrk.format("GET", string.format("/v1/customers/%s/subscribers/%04x", customer, number), {
            ["Host"] = "subscribers.test",
            ["Accept"] = "application/json",
            ["DPA-Caller"] = caller[1],
            ["DPA-Context"] = string.format('customer="%s", purpose=%s', customer, caller[2]),
        })
    end
end
function request()
    next = (next + 1) % 256
    return requests[next]
end
LUA

answers() { # port: waits until something answers there
    for _ in $(seq 200); do
        curl --silent --noproxy '*' --output /dev/null "http://127.0.0.1:$1/" && return
        sleep 0.05
    done
    skip "nothing answers on port $1"
}

start() { # sidecar or nginx: sets pid, port and log
    if [ "$1" = nginx ]; then
        : >"$dir/proxy.log"
        taskset -c 0 nginx -c "$dir/proxy.conf" 2>"$dir/nginx.err" &
        pid=$! port=$proxy log=$dir/proxy.log
    else
        rm -f "$dir"/sidecar*.log
        : >"$dir/sidecar.err"
        taskset -c 0 "$DPA_SIDECAR" run --config "$dir/sidecar.yaml" 2>"$dir/sidecar.err" &
        pid=$! port='' log=$dir/sidecar.log
        for _ in $(seq 200); do
            port=$(sed -n 's/.*address=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$dir/sidecar.err")
            [ -z "$port" ] || break
            sleep 0.05
        done
        [ -n "$port" ] || { cat "$dir/sidecar.err" >&2; skip "the sidecar does not start"; }
    fi
    running+=("$pid")
    answers "$port"
}

stop() {
    kill "$pid"
    local turn
    for turn in $(seq 200); do
        # Gone, or dead and not yet waited for.
        case $(sed 's/.*) //;s/ .*//' "/proc/$pid/stat" 2>/dev/null) in '' | Z) break ;; esac
        sleep 0.05
        [ "$turn" -lt 200 ] || { echo "note: $who did not stop within 10 s of SIGTERM, and was killed" >&2; kill -9 "$pid"; }
    done
    wait "$pid" 2>/dev/null || true
    unset 'running[-1]'
}

processes() { echo "$pid"; pgrep -P "$pid" || true; }

ticks() { # utime + stime of all its processes, in clock ticks
    local sum=0 one fields
    for one in $(processes); do
        read -r -a fields <<<"$(sed 's/.*) //' "/proc/$one/stat")"
        sum=$((sum + fields[11] + fields[12]))
    done
    echo "$sum"
}

load() { # seconds: sets requests, rate; fails if an answer was not 200
    taskset -c 1 wrk --threads 1 --connections 64 --duration "${1}s" --script "$dir/load.lua" "http://127.0.0.1:$port" >"$dir/wrk.txt"
    requests=$(sed -n 's/^ *\([0-9]*\) requests in .*/\1/p' "$dir/wrk.txt")
    rate=$(sed -n 's/^Requests\/sec: *//p' "$dir/wrk.txt")
    if grep -qE 'Non-2xx|Socket errors' "$dir/wrk.txt" || [ "${requests:-0}" = 0 ]; then
        cat "$dir/wrk.txt" >&2
        echo "failed: not every request was answered 200" >&2
        exit 1
    fi
}

records() {
    # With the closed segments.
    if [ "$log" = "$dir/sidecar.log" ]; then cat "$dir"/sidecar*.log | grep -c '"event":"dpa.decision"' || true; else wc -l <"$log"; fi
}

taskset -c 1 nginx -c "$dir/backend.conf" 2>"$dir/nginx.err" &
running+=($!)
answers "$backend"

hertz=$(getconf CLK_TCK)
echo "$(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), load $(cut -d' ' -f1 /proc/loadavg); $(nginx -v 2>&1 | sed 's/.*: //')"
printf '%-8s %5s %10s %10s %12s %16s\n' proxy round requests req/s us/request records/request
for round in $(seq "$rounds"); do
    for who in sidecar nginx; do
        start "$who"
        load 1
        # nginx logs an answer after it was sent: what is under way when wrk stops is done a moment later.
        sleep 0.2
        first=$(records) before=$(ticks)
        load "$seconds"
        sleep 0.2
        after=$(ticks) last=$(records)
        micros=$(awk "BEGIN { printf \"%.2f\", ($after - $before) * 1e6 / $hertz / $requests }")
        printf '%-8s %5s %10s %10.0f %12s %16s\n' "$who" "$round" "$requests" "$rate" "$micros" \
            "$(awk "BEGIN { printf \"%.3f\", ($last - $first) / $requests }")"
        echo "$micros" >>"$dir/$who.micros"
        if [ $((last - first)) -lt "$requests" ] || [ $((last - first - requests)) -gt 64 ]; then
            echo "failed: $((last - first)) records of $requests requests" >&2
            exit 1
        fi
        stop
    done
done
median() { sort -n "$1" | sed -n "$(((rounds + 1) / 2))p"; }
ours=$(median "$dir/sidecar.micros") theirs=$(median "$dir/nginx.micros")
echo "median: sidecar $ours us, nginx $theirs us; ratio $(awk "BEGIN { printf \"%.2f\", $ours / $theirs }")"

if ! command -v strace >/dev/null; then
    echo "skipped: system calls per request (no strace)"
    exit 0
fi
for who in sidecar nginx; do
    start "$who"
    attach=()
    for one in $(processes); do attach+=(-p "$one"); done
    strace -c -f "${attach[@]}" -o "$dir/$who.calls" 2>"$dir/strace.err" &
    tracer=$!
    running+=("$tracer")
    for _ in $(seq 100); do
        grep -q attached "$dir/strace.err" && break
        kill -0 "$tracer" 2>/dev/null || break
        sleep 0.05
    done
    if ! grep -q attached "$dir/strace.err"; then
        echo "skipped: system calls per request ($(head -1 "$dir/strace.err"))"
        exit 0
    fi
    load "$traced"
    kill -INT "$tracer"
    wait "$tracer" 2>/dev/null || true
    unset 'running[-1]'
    awk -v who="$who" -v requests="$requests" '
        $NF == "total" { total = ($1 == "100.00") ? $4 : $3; next }
        $4 ~ /^[0-9]+$/ && $1 ~ /^[0-9.]+$/ { if ($4 / requests >= 0.05) calls = calls sprintf(", %s %.2f", $NF, $4 / requests) }
        END { printf "syscalls/request: %s %.2f (%s)\n", who, total / requests, substr(calls, 3) }' "$dir/$who.calls"
    stop
done
