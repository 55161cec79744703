#!/usr/bin/env bash
# The README's five-minute tour, command by command, as a newcomer types it, with its thousand clients connected: none of them may be lost, but
# for those whose message a killed worker was handling. Needs Rust, and the default ports and run directory free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-readme.XXXXXX")
started=()

finish() {
    local status=$? process
    for process in "${started[@]}"; do
        # The second SIGTERM skips the drain.
        kill -TERM "$process" 2>/dev/null && kill -TERM "$process" 2>/dev/null || true
        tail --pid="$process" -f /dev/null
    done
    if [[ $status -ne 0 ]]; then
        tail -n 40 "$work"/*.log
        echo "readme: FAILED" >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

fail() { echo "readme: $*" >&2; exit 1; }

# Waits until the command succeeds.
until_true() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 600; tries++)); do
        "$@" && return
        sleep 0.1
    done
    fail "not within a minute: $what"
}

# serve COMMAND: the server in the background, until it is ready.
serve() {
    servers=$((${servers:-0} + 1))
    log=$work/server-$servers.log
    $1 >"$log" 2>&1 &
    supervisor=$!
    started+=("$supervisor")
    until_true "the server is ready" grep -q ' ready listen=' "$log"
    grep ' ready listen=' "$log"
}

# watch COMMAND: the clients in the background, until all are in.
watch() {
    $1 >"$work/clients.log" 2>&1 &
    started+=("$!")
    until_true "all clients are in" grep -q '^1,000 clients, 0 lost' "$work/clients.log"
}

lines() { wc -l <"$work/clients.log"; }
counter() { tail -n 1 "$work/clients.log" | sed 's/.*counter //; s/,//g'; }
moves() { [[ $(lines) -ge $1 && $(counter) -gt $2 ]]; }

# all_are_well ALLOWED: the counter moves on, and no more than so many clients have been lost so far.
all_are_well() {
    local allowed=$1 line lost
    until_true "the counter moves" moves $(($(lines) + 2)) "$(counter)"
    line=$(tail -n 1 "$work/clients.log")
    lost=$(sed 's/.* clients, \(.*\) lost.*/\1/' <<<"$line")
    echo "    $line"
    [[ $lost -le $allowed ]] || fail "$lost clients lost, at most $allowed allowed"
}

allowed=0
tour=$(sed -n '/^## A five-minute tour/,/^## /p' README.md | sed -n '/^```sh/,/^```/p' | grep -v '^```')
while IFS= read -r command <&3; do
    echo "\$ $command"
    case $command in
    "holdfast --config "*) serve "$command" ;;
    "holdfast-load watch") watch "$command" ;;
    "kill -9 WORKER")
        kill -9 "$(holdfast ctl --json workers | sed 's/.*"slot":0,"pid":\([0-9]*\).*/\1/')"
        allowed=2
        ;;
    "kill -9 SUPERVISOR") kill -9 "$supervisor" ;;
    *) eval "$command" ;;
    esac
    [[ ! -f $work/clients.log ]] || all_are_well "$allowed"
done 3<<<"$tour"
holdfast ctl health
echo "readme: all commands work"
