#!/usr/bin/env bash
# Measures Holdfast against the cost of the bare system calls (holdfast-floor), and with --peers against other servers.
#
# What counts is work per CPU second of the server (user + system, all its processes), as the ratio to the floor of the
# same round: servers take turns (A B A B ...), so that whatever else the machine does hits all alike. Every run has a
# freshly started server with two workers (some handshakes: one, eight), warmed by some handshakes. Medians, with minimum and maximum, are printed
# and written as Markdown and JSON.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/bench.sh [OPTIONS]

  --rounds N      runs of each server and row [default: 5]
  --seconds N     seconds measured in each run [default: 5]
  --quick         two rounds of a second without the memory rows: a smoke test of well under a minute
  --peers         also Node ws, Bun, tokio-tungstenite and fastwebsockets, from their package registries
  --only ROWS     only these rows, with commas: echo-125, pipelined-20, echo-16k, echo-1m, handshake, handshake-1,
                  handshake-8 (with as many workers), accepted, refused (a crowd that is let in, or turned away at the
                  cap), latency, idle, burst
  --out DIR       where results go [default: target/bench]
  --no-build      use what target/release holds

Needs bash, pgrep, cargo and python3; --peers also node and npm.
TEXT
}

cd "$(dirname "$0")/.."
. tests/processes.sh
command_line="tests/bench.sh $*"
rounds=5 seconds=5 warmup=1s settle=500ms peers=no build=yes out=target/bench
rows=echo-125,pipelined-20,echo-16k,echo-1m,handshake,handshake-1,handshake-8,accepted,refused,latency,idle,burst
while (($#)); do
    case $1 in
    --rounds) rounds=$2 && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --quick)
        rounds=2 seconds=1 warmup=200ms settle=100ms rows=echo-125,pipelined-20,echo-16k,echo-1m,handshake
        shift
        ;;
    --peers) peers=yes && shift ;;
    --only) rows=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    --no-build) build=no && shift ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
    esac
done

bin=target/release
peer_dir=target/bench-peers
port=
clients_idle=15000
server_pid= workers=2 cap=
run_dir=$(mktemp -d)

stop_server() {
    [[ -n $server_pid ]] || return 0
    kill_tree "$server_pid"
    wait "$server_pid" 2>/dev/null || true
    server_pid=
    for _ in $(seq 200); do
        port_answers || return 0
        sleep 0.05
    done
    echo "bench.sh: a server still listens on port $port after its end: $(pgrep -af "holdfast|$peer_dir")" >&2
    exit 1
}
trap 'stop_server; rm -rf "$run_dir"' EXIT
trap 'exit 130' INT TERM

build_all() {
    cargo build --release --quiet -p holdfast -p holdfast-tests --bins
    [[ $peers == yes ]] || return 0
    mkdir -p "$peer_dir/node"
    cp tests/bench/peers/package.json tests/bench/peers/*.js "$peer_dir/node/"
    npm install --prefix "$peer_dir/node" --no-audit --no-fund --loglevel=error
    cargo build --release --quiet --manifest-path tests/bench/peers/rust/Cargo.toml --target-dir "$peer_dir/rust"
}

server_command() {
    case $1 in
    holdfast)
        # No limit that the load is not about.
        echo "$bin/holdfast" --listen "127.0.0.1:$port" --workers "$workers" --admin= --run-dir "$run_dir" \
            --max-connections "$cap" --max-connections-per-address 0 --set timeouts.idle=0s \
            --set degraded.notify_clients=false --set degraded.messages_per_second=0 \
            --set limits.max_message_size=2MiB --set limits.max_queued_output=4MiB
        ;;
    floor) echo "$bin/holdfast-floor" --listen "127.0.0.1:$port" --processes "$workers" ;;
    node-ws) echo node "$peer_dir/node/ws.js" $port ;;
    bun) echo "$peer_dir/node/node_modules/.bin/bun" "$peer_dir/node/bun.js" $port ;;
    tokio-tungstenite | fastwebsockets) echo "$peer_dir/rust/release/$1" $port ;;
    esac
}

port_answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null
}

start_server() {
    local command
    port=$(free_port)
    read -ra command <<<"$(server_command "$1")"
    "${command[@]}" >"$run_dir/log" 2>&1 </dev/null &
    server_pid=$!
    for _ in $(seq 200); do
        if ! kill -0 "$server_pid" 2>/dev/null; then break; fi
        if port_answers; then
            # Its other processes may need a little longer; this also warms it.
            [[ $cap == 1 ]] || load handshake --concurrency 50 --warmup "$settle" --duration 200ms >/dev/null
            return
        fi
        sleep 0.05
    done
    echo "bench.sh: $1 does not start:" >&2
    tail -n 20 "$run_dir/log" >&2
    exit 1
}

load() {
    local mode=$1
    shift
    "$bin/holdfast-load" "$mode" "127.0.0.1:$port" --json --server-pid-tree "$server_pid" "$@"
}

# One run; its report goes to $out/runs/ROW.ROUND.SERVER.json.
measure() {
    local row=$1 server=$2 file=$3
    local timed=(--duration "${seconds}s" --warmup "$warmup") raw=()
    [[ $server != floor ]] || raw=(--raw)
    case $row in
    echo-125) load echo "${raw[@]}" "${timed[@]}" --clients 1000 --size 125 ;;
    pipelined-20) load echo "${raw[@]}" "${timed[@]}" --clients 200 --in-flight 16 --size 20 ;;
    echo-16k) load echo "${raw[@]}" "${timed[@]}" --clients 64 --size 16KiB ;;
    echo-1m) load echo "${raw[@]}" "${timed[@]}" --clients 16 --size 1MiB ;;
    handshake | handshake-*) load handshake "${timed[@]}" --concurrency 100 --sources 127.0.0.2-127.0.0.17 ;;
    accepted | refused) load storm --clients 14000 --hold 1s --sources 127.0.0.2-127.0.0.17 ;;
    latency) load echo "${raw[@]}" "${timed[@]}" --clients 1000 --size 125 --in-flight 4 --rate "$latency_rate" ;;
    # Every client from an address of its own: the dearest case for a server that counts by address.
    # What connecting took beyond the connections goes back some seconds later.
    idle) load idle --clients $clients_idle --hold 8s --sources 127.1.0.1-127.1.58.152 ;;
    burst) load burst --clients 10000 --size 256KiB --pause 10s --hold 20s ;;
    *) echo "bench.sh: no row named $row" >&2 && exit 2 ;;
    esac >"$file" || {
        echo "bench.sh: $row against $server did not go well: $(cat "$file")" >&2
        failed=yes
    }
}

describe_machine() {
    local cpu
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf '%s\t%s\n' \
        command "$command_line" \
        date "$(date -u +%F)" \
        holdfast "$("$bin/holdfast" --version) $(git rev-parse --short HEAD 2>/dev/null || true)" \
        rustc "$(rustc --version)" \
        kernel "$(uname -sr)" \
        cpu "$(nproc) x ${cpu:-unknown}"
    [[ $peers == yes ]] || return 0
    printf '%s\t%s\n' \
        node-ws "node $(node --version), ws $(node -p "require('./$peer_dir/node/node_modules/ws/package.json').version")" \
        bun "$("$peer_dir/node/node_modules/.bin/bun" --version)"
    local peer
    for peer in tokio-tungstenite fastwebsockets; do
        printf '%s\t%s\n' $peer \
            "$(cargo metadata --format-version 1 --manifest-path tests/bench/peers/rust/Cargo.toml |
                python3 -c "import json,sys; print(next(p['version'] for p in json.load(sys.stdin)['packages'] if p['name'] == '$peer'))")"
    done
}

[[ $build == no ]] || build_all
servers=(holdfast floor)
[[ $peers == no ]] || servers+=(node-ws bun tokio-tungstenite fastwebsockets)
rm -rf "$out/runs" && mkdir -p "$out/runs"
describe_machine >"$out/machine.tsv"
failed=no
for row in ${rows//,/ }; do
    if [[ $row == latency ]]; then
        # Half of what the slower of Holdfast and the floor did.
        latency_rate=$(python3 tests/bench/summary.py half-rate "$out") || {
            echo "bench.sh: latency needs echo-125 before it" >&2
            exit 2
        }
    fi
    for round in $(seq "$rounds"); do
        for server in "${servers[@]}"; do
            # The floor keeps nothing, so there is nothing for it to give back.
            [[ $row != burst || $server != floor ]] || continue
            [[ ! $row =~ ^(accepted|refused)$ || $server == holdfast ]] || continue
            [[ ! -t 2 ]] || printf '\r%s, round %s of %s: %s\e[K' "$row" "$round" "$rounds" "$server" >&2
            # What admission costs must not grow with the number of those who ask for it.
            workers=2
            [[ $row != handshake-* ]] || workers=${row#handshake-}
            # As many connections as workers carry in 20,000 descriptors each, or next to none.
            cap=$((14000 * workers))
            [[ $row != refused ]] || cap=1
            start_server "$server"
            measure "$row" "$server" "$out/runs/$row.$round.$server.json"
            stop_server
        done
    done
done
[[ ! -t 2 ]] || printf '\r\e[K' >&2
python3 tests/bench/summary.py table "$out"
[[ $failed == no ]]
