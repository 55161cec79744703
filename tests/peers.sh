#!/usr/bin/env bash
# Other people's programs against a running Holdfast: Python's websockets, Node's ws, mqtt and graphql-ws, Chromium, HAProxy, Autobahn's
# cases, curl, promtool; and systemd on its unit.
# Installs what is missing by package name (apt, pip, npm), into a temporary directory where it can. A program that
# cannot be had is a failure, not a skipped check.
#
# Usage: tests/peers.sh            builds the debug binary and tests it
#        HOLDFAST=path tests/peers.sh   tests that binary
set -euo pipefail

tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-peers.XXXXXX")
servers=()

finish() {
    local status=$?
    for server in "${servers[@]}"; do
        # The second SIGTERM skips the drain.
        kill -TERM "$server" 2>/dev/null && kill -TERM "$server" 2>/dev/null || true
        tail --pid="$server" -f /dev/null
    done
    if [[ $status -ne 0 ]]; then
        for log in "$work"/*.log; do
            [[ -f $log ]] && { echo "--- $log"; tail -n 40 "$log"; }
        done
        echo "peers: FAILED" >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }

# need PACKAGE TEST...: installs the Debian package unless the test command succeeds; it must succeed afterwards.
need() {
    local package=$1 as_root=()
    shift
    "$@" >/dev/null 2>&1 && return
    [[ $(id -u) -eq 0 ]] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    "$@" >/dev/null || { echo "$package is installed, and yet this fails: $*" >&2; return 1; }
}

# start NAME FLAG...: a Holdfast on ports of the kernel's choice; sets address, admin and socket.
start() {
    local name=$1 log line
    shift
    exec {log}< <(exec "$HOLDFAST" run --listen 127.0.0.1:0 --admin 127.0.0.1:0 --run-dir "$work/$name" \
        --workers 2 "$@" 2>&1)
    servers+=($!)
    address=
    while IFS= read -r line <&"$log"; do
        echo "$line" >>"$work/$name.log"
        if [[ $line =~ ready\ listen=([^ ]+)\ admin=([^ ]+) ]]; then
            address=${BASH_REMATCH[1]} admin=${BASH_REMATCH[2]} socket=$work/$name/control.sock
            break
        fi
    done
    [[ -n $address ]] || { echo "$name did not become ready" >&2; return 1; }
    cat <&"$log" >>"$work/$name.log" &
}

step "programs"
need curl curl --version
need prometheus promtool --version
need systemd systemd-analyze --version
need nodejs node --version
need npm npm --version
need haproxy haproxy -v
need chromium chromium --version
need python3-venv python3 -c 'import venv, ensurepip'
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check websockets kosoku
npm install --silent --no-fund --no-audit --prefix "$work" ws mqtt graphql graphql-ws playwright-core
"$work/venv/bin/pip" list --disable-pip-version-check --format freeze | grep -E '^(websockets|kosoku)='
for package in ws mqtt graphql-ws playwright-core; do
    echo "$package==$(node -p "JSON.parse(require('fs').readFileSync('$work/node_modules/$package/package.json')).version")"
done

if [[ -z ${HOLDFAST:-} ]]; then
    cargo build -q --manifest-path "$tests/../Cargo.toml" -p holdfast --bin holdfast
    target=$(cargo metadata --manifest-path "$tests/../Cargo.toml" --format-version 1 --no-deps |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
    HOLDFAST=$target/debug/holdfast
fi

step "systemd-analyze verify"
# The unit names the program where it is installed; here it is where it was built.
sed "s|/usr/local/bin/holdfast|$HOLDFAST|" "$tests/../deploy/systemd/holdfast.service" >"$work/holdfast.service"
# Before systemd 253 there is no notify-reload, and the line before it counts.
complaints=$(systemd-analyze verify --man=no "$work/holdfast.service" 2>&1 | grep -v 'ignoring: notify-reload$' || true)
[[ -z $complaints ]] || { echo "$complaints" >&2; exit 1; }
systemd-analyze --version | head -n 1

step "Python's websockets"
start default --set limits.max_connections_per_address=0
"$work/venv/bin/python" "$tests/peers/websockets_client.py" "ws://$address/"

step "Node's ws"
NODE_PATH=$work/node_modules node "$tests/peers/ws_client.cjs" "ws://$address/"

step "curl --unix-socket"
curl -sS --fail --unix-socket "$socket" http://localhost/totals | python3 "$tests/peers/check_totals.py"
[[ $(curl -sS -o /dev/null -w '%{http_code}' --unix-socket "$socket" http://localhost/nothing) == 404 ]]
[[ $(curl -sS -o /dev/null -w '%{http_code}' "http://$address/health") == 200 ]]
[[ $(curl -sS -o /dev/null -w '%{http_code}' "http://$address/") == 426 ]]

step "promtool check metrics"
curl -sS --fail "http://$admin/metrics" | promtool check metrics
curl -sS --fail --unix-socket "$socket" http://localhost/metrics | promtool check metrics

step "mqtt and graphql-ws"
printf '[[routes]]\npath = "/"\nprotocol = "echo"\nsubprotocols = ["mqtt", "graphql-transport-ws"]\n' >"$work/subprotocols.toml"
start subprotocols --config "$work/subprotocols.toml"
with_subprotocols=$address
NODE_PATH=$work/node_modules node "$tests/peers/subprotocols.cjs" "ws://$with_subprotocols/"

step "Chromium"
start full --max-connections 1 --set limits.refusal=close
# The one place is taken for as long as this runs.
"$work/venv/bin/python" -c 'import signal, sys; from websockets.sync.client import connect; taken = connect(sys.argv[1]); print("in", flush=True); signal.pause()' \
    "ws://$address/" >"$work/taken" 2>"$work/taken.log" &
servers+=($!)
for _ in $(seq 100); do [[ ! -s $work/taken ]] || break; sleep 0.1; done
[[ -s $work/taken ]] || { echo "nobody takes the one place" >&2; exit 1; }
NODE_PATH=$work/node_modules node "$tests/peers/browser.cjs" "$(command -v chromium)" "ws://$with_subprotocols/" "ws://$address/"

. "$tests/peers/haproxy.sh"

step "Autobahn's cases, sections 1 to 7, 9 and 10"
# Section 9 sends messages of 16 MiB, and as many as 65,536 fragments. The cases know exactly what is to come back: no pings.
start autobahn --set limits.max_message_size=32MiB --set limits.max_queued_output=64MiB \
    --set limits.max_connections_per_address=0 --set timeouts.ping_interval=0s
include=()
for section in 1 2 3 4 5 6 7 9 10; do include+=(-i "$section.*"); done
"$work/venv/bin/kosoku" -o "$work/report" -p 2 "${include[@]}" "$address"
python3 "$tests/peers/check_autobahn.py" "$work/report/index.json"

step "the servers are well"
for name in default autobahn; do
    curl -sS --fail --unix-socket "$work/$name/control.sock" http://localhost/totals |
        python3 -c 'import json, sys; totals = json.load(sys.stdin); assert totals["restarts_total"] == 0, totals'
done
printf '\npeers: all passed\n'
