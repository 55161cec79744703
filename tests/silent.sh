#!/usr/bin/env bash
# What operations cost the people who are connected: 15,000 idle clients stay over all of them, 300 echo through each, and a
# table says who was lost and the longest that an echo took meanwhile.
#
# Figures of the machine it runs on, which clients and server share. tests/tests/{upgrade,restart,adoption}.rs check the same
# with fewer clients.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/silent.sh [OPTIONS] [OPERATION...]

  --idle N        idle clients [default: 15000]
  --echo N        echoing clients [default: 300]
  --workers N     workers of the server [default: 2]
  --debug         use and build target/debug instead of target/release
  --no-build      use what is there

Operations, in this order unless named: nothing upgrade restart reload-workers supervisor-dies keeper-dies workers-die

Needs bash, pgrep, cargo and python3.
TEXT
}

cd "$(dirname "$0")/.."
. tests/processes.sh
idle=15000 echo=300 workers=2 build=yes profile=release port=$(free_port)
operations=()
while (($#)); do
    case $1 in
    --idle) idle=$2 && shift 2 ;;
    --echo) echo=$2 && shift 2 ;;
    --workers) workers=$2 && shift 2 ;;
    --debug) profile=debug && shift ;;
    --no-build) build=no && shift ;;
    -h | --help) usage && exit ;;
    -*) usage >&2 && exit 2 ;;
    *) operations+=("$1") && shift ;;
    esac
done
((${#operations[@]})) || operations=(nothing upgrade restart reload-workers supervisor-dies keeper-dies workers-die)
flags=(--quiet)
[[ $profile == debug ]] || flags+=(--release)
[[ $build == no ]] || cargo build "${flags[@]}" -p holdfast -p holdfast-tests --bins

bin=target/$profile
run_dir=$(mktemp -d)
idle_pid=
clean_up() {
    [[ -z $idle_pid ]] || kill -KILL "$idle_pid" 2>/dev/null || true
    [[ ! -S $run_dir/control.sock ]] || ctl stop >/dev/null 2>&1 || true
    rm -rf "$run_dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ctl() { "$bin/holdfast" ctl --run-dir "$run_dir" "$@"; }
field() { python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }
total() { ctl --json totals | field "['$1']"; }

# Waits until the totals have $2 for $1, for at most $3 tenths of a second.
await_total() {
    for _ in $(seq "$3"); do
        [[ $(total "$1" 2>/dev/null) != "$2" ]] || return 0
        sleep 0.1
    done
    echo "silent.sh: $1 is $(total "$1") after $3 tenths of a second, not $2" >&2
    tail -n 10 "$run_dir/log" >&2
    exit 1
}

# Puts a program where the server's is, as a package manager does it.
install_program() {
    cp "$1" "$run_dir/new"
    chmod 755 "$run_dir/new"
    mv "$run_dir/new" "$run_dir/holdfast"
}

start_server() {
    "$run_dir/holdfast" --config "$run_dir/config" >>"$run_dir/log" 2>&1 </dev/null &
    # Its end, by kill -9, is no news.
    disown
    server_pid=$!
}

write_config() {
    cat >"$run_dir/config" <<TOML
listen = "127.0.0.1:$port"
workers = $1
run_dir = "$run_dir"
admin.listen = ""
degraded.notify_clients = false
degraded.messages_per_second = 0
limits.max_connections = $((idle + 2 * echo))
limits.max_connections_per_address = 0
timeouts.idle = "0s"
TOML
}

# The operations. Each ends when what it did is done; "in_flight" is how much every echoing client has under way.

op_nothing() { :; }

op_upgrade() {
    install_program "$bin/holdfast-next"
    ctl upgrade >"$run_dir/upgrade" || { cat "$run_dir/upgrade" && false; }
    tail -n 1 "$run_dir/upgrade" >>"$run_dir/notes"
}

op_restart() { ctl restart >/dev/null; }

op_supervisor-dies() {
    kill -KILL "$server_pid"
    start_server
}

# To four workers and back to three; those who come after it find as many as there were.
op_reload-workers() {
    local count
    for count in $((workers + 2)) $((workers + 1)) "$workers"; do
        write_config "$count"
        ctl reload >/dev/null
        await_total workers "$count" 300
        await_total workers_ready "$count" 300
    done
}

op_keeper-dies() { kill -KILL "$(ctl --json workers | field "[0]['keeper_pid']")"; }

op_workers-die() {
    local slot
    for slot in $(seq 0 $((workers - 1))); do
        kill -KILL "$(ctl --json workers | field "[$slot]['pid']")"
        await_total workers_ready "$workers" 100
    done
}

# One operation under echoing clients, as a row of the table.
measure() {
    local operation=$1 in_flight=1 before
    [[ $operation != workers-die ]] || in_flight=16
    before=$(total connections)
    "$bin/holdfast-load" echo "127.0.0.1:$port" --json --clients "$echo" --in-flight "$in_flight" --warmup 1s \
        --duration 8s >"$run_dir/echo.json" 2>"$run_dir/echo.log" &
    local echo_pid=$!
    await_total connections $((before + echo)) 300
    sleep 3
    "op_$operation" || echo "silent.sh: $operation failed" >&2
    await_total workers_ready "$workers" 300
    # Lost connections make it fail; the table says how many they were.
    wait "$echo_pid" || true
    await_gone
    python3 - "$operation" "$in_flight" "$echo" "$before" "$(total connections)" "$run_dir/echo.json" <<'PY'
import json, sys
operation, in_flight, clients, before, after = sys.argv[1], *map(int, sys.argv[2:6])
report = json.load(open(sys.argv[6]))
lost = sum(report["lost"].values())
reasons = ", ".join(f"{count} {reason}" for reason, count in report["lost"].items()) or "-"
latency = report["latency_microseconds"] or {"max": 0, "p50": 0}
print(f"| {operation} | {in_flight} | {before - after:,} of {before:,} | {lost:,} of {clients:,} ({lost / clients:.1%}) |"
      f" {latency['p50'] / 1000:.1f} ms | {latency['max'] / 1000:.0f} ms | {reasons} |", flush=True)
PY
}

# Waits until the echoing clients are not counted any more.
await_gone() {
    local last=-1 now
    for _ in $(seq 100); do
        now=$(total connections)
        [[ $now != "$last" || $now -gt $idle ]] || return 0
        last=$now
        sleep 0.1
    done
}

write_config "$workers"
install_program "$bin/holdfast"
start_server
for _ in $(seq 100); do
    [[ ! -S $run_dir/control.sock ]] || break
    sleep 0.1
done
await_total workers_ready "$workers" 100
"$bin/holdfast-load" idle "127.0.0.1:$port" --json --clients "$idle" --hold 1h >"$run_dir/idle.json" 2>"$run_dir/idle.log" &
idle_pid=$!
await_total connections "$idle" 1200

echo "$idle idle clients on $workers workers; $echo echoing clients for each operation"
echo
echo "| operation | in flight | idle clients lost | echoing clients lost | echo p50 | echo longest | why |"
echo "|---|---|---|---|---|---|---|"
for operation in "${operations[@]}"; do
    measure "$operation"
done
[[ ! -s $run_dir/notes ]] || { echo && cat "$run_dir/notes"; }
