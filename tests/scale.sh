#!/usr/bin/env bash
# Holds as many idle clients as one machine can, for a minute, kills a worker in the middle, and says what that cost: who
# was lost, what the supervisor did meanwhile, how fast it answered, what its answers about single connections cost those
# who echo, and where the memory is.
#
# A process has no more descriptors than its limit, so both sides are spread: many workers, many client processes, many
# source addresses. Figures of the machine it runs on; not part of any other test.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: tests/scale.sh [OPTIONS]

  --clients N     idle clients [default: 300000]
  --workers N     workers of the server [default: 24]
  --hold N        seconds they stay, all being in [default: 60]
  --no-build      use what target/release holds

Needs bash, pgrep, cargo and python3, and some 10 KB of memory for each client, most of it the kernel's.
TEXT
}

cd "$(dirname "$0")/.."
. tests/processes.sh
clients=300000 workers=24 hold=60 echo=20 build=yes port=$(free_port)
while (($#)); do
    case $1 in
    --clients) clients=$2 && shift 2 ;;
    --workers) workers=$2 && shift 2 ;;
    --hold) hold=$2 && shift 2 ;;
    --no-build) build=no && shift ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
    esac
done
[[ $build == no ]] || cargo build --release --quiet -p holdfast -p holdfast-tests --bins

bin=target/release
run_dir=$(mktemp -d)
load_pid=
clean_up() {
    [[ -z $load_pid ]] || kill -KILL "$load_pid" 2>/dev/null || true
    [[ ! -S $run_dir/control.sock ]] || ctl stop >/dev/null 2>&1 || true
    rm -rf "$run_dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ctl() { "$bin/holdfast" ctl --run-dir "$run_dir" "$@"; }
total() { ctl --json totals | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }

# Waits until the totals have $2 for $1, for at most $3 seconds.
await_total() {
    for _ in $(seq "$3"); do
        [[ $(total "$1") != "$2" ]] || return 0
        sleep 1
    done
    echo "scale.sh: $1 is $(total "$1") after $3 s, not $2" >&2
    tail -n 5 "$run_dir/log" >&2
    exit 1
}

# Clock ticks of CPU that a process has used.
cpu_ticks() { python3 -c "f = open('/proc/$1/stat').read().rsplit(')', 1)[1].split(); print(int(f[11]) + int(f[12]))"; }

"$bin/holdfast" --listen "127.0.0.1:$port" --workers "$workers" --admin= --run-dir "$run_dir" \
    --max-connections $((clients + echo)) --max-connections-per-address 0 --set timeouts.idle=0s \
    --set degraded.notify_clients=false --set degraded.messages_per_second=0 >"$run_dir/log" 2>&1 &
server_pid=$!
for _ in $(seq 100); do
    [[ ! -S $run_dir/control.sock ]] || break
    sleep 0.1
done
await_total workers_ready "$workers" 60

"$bin/holdfast-load" idle "127.0.0.1:$port" --json --clients "$clients" --hold "${hold}s" --connect-timeout 5m \
    --server-pid-tree "$server_pid" >"$run_dir/load.json" 2>"$run_dir/load.log" &
load_pid=$!
await_total connections "$clients" 300

# The supervisor, left alone for the first half.
before=$(cpu_ticks "$server_pid")
sleep $((hold / 2))
after=$(cpu_ticks "$server_pid")

read -r victim slot < <(ctl --json workers | python3 -c "
import json, sys
worker = max(json.load(sys.stdin), key=lambda worker: worker['connections'])
print(worker['pid'], worker['slot'])")
kill -KILL "$victim"
await_total restarts_total 1 10
await_total workers_ready "$workers" 60

# Asks for $1 twenty times, a tenth of a second apart; prints the median and the slowest in milliseconds.
ask() {
    python3 - "$run_dir/control.sock" "$1" <<'PY'
import socket, statistics, sys, time
times = []
for _ in range(20):
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(sys.argv[1])
        control.sendall(f"GET {sys.argv[2]} HTTP/1.1\r\nHost: holdfast\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := control.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
    times.append((time.monotonic() - began) * 1000)
    time.sleep(0.1)
print(f"{statistics.median(times):.1f} {max(times):.1f}")
PY
}

# The latency of a few who echo beside the idle: p99 in microseconds.
echo_p99() {
    "$bin/holdfast-load" echo "127.0.0.1:$port" --json --clients "$echo" --rate 2000 --duration 4s |
        python3 -c "import json, sys; print(round(json.load(sys.stdin)['latency_microseconds']['p99']))"
}
read -r median slowest < <(ask /totals)
quiet=$(echo_p99)
echo_p99 >"$run_dir/asked" &
echo_pid=$!
sleep 1
read -r list_median list_slowest < <(ask "/connections?sort=idle&limit=20")
read -r explain_median explain_slowest < <(ask "/explain?address=127.0.0.1")
wait "$echo_pid"
asked=$(cat "$run_dir/asked")
await_total connections "$clients" 10
# Asked while they are still there: the holding time has a second half.
lost=$(total lost_total) connections=$(total connections)
wait "$load_pid" || { cat "$run_dir/load.log" "$run_dir/load.json" >&2; exit 1; }
load_pid=

python3 - "$run_dir/load.json" "$clients" "$workers" "$hold" "$((after - before))" "$connections" "$lost" "$median" "$slowest" "$slot" \
    "$list_median" "$list_slowest" "$explain_median" "$explain_slowest" "$quiet" "$asked" <<'PY'
import json, os, sys
report = json.load(open(sys.argv[1]))
clients, workers, hold, ticks, connections, lost = map(int, sys.argv[2:8])
median, slowest, slot = sys.argv[8:11]
list_median, list_slowest, explain_median, explain_slowest, quiet, asked = sys.argv[11:17]
share = ticks / os.sysconf("SC_CLK_TCK") / (hold // 2)
rows = [
    ("clients held, as they say", f"{report['open']:,} of {clients:,}"),
    ("connections, as the totals say after the kill", f"{connections:,}"),
    (f"lost when the worker of slot {slot} was killed", f"{lost:,}"),
    ("pings answered while they were held", f"{report['pings']:,}"),
    ("time until all were in", f"{report['connect_seconds']:.0f} s"),
    ("CPU of the supervisor meanwhile", f"{share:.2%} of a core"),
    ("GET /totals, median and slowest of 20", f"{median} ms, {slowest} ms"),
    ("GET /connections?sort=idle&limit=20, likewise", f"{list_median} ms, {list_slowest} ms"),
    ("GET /explain, likewise", f"{explain_median} ms, {explain_slowest} ms"),
    ("p99 of 2,000 echoes a second, nobody asking, and while those two were asked", f"{quiet} us, {asked} us"),
    ("user memory of the server per connection (Pss)", f"{report['server']['pss_bytes_per_connection']:.0f} B"),
]
kernel = report.get("kernel_bytes_per_connection")
if kernel is not None:
    rows.append(("kernel memory per connection, both ends", f"{kernel:,.0f} B"))
print(f"| {clients:,} idle clients, {workers} workers, {hold} s | |\n|---|---|")
for name, value in rows:
    print(f"| {name} | {value} |")
if report["open"] != clients or connections != clients or lost != 0 or report["pings"] == 0:
    sys.exit("scale.sh: not everybody was kept")
PY
