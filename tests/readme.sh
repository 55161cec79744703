#!/usr/bin/env bash
# What the README tells a newcomer to type: starts the server with its first command, runs the commands of the tour against it, kills every worker
# and looks whether it is still well. Needs Rust, and the default ports free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --locked
exec {log}< <(exec cargo run --release 2>&1)
server=$!
# The second SIGTERM skips the drain.
trap 'kill -TERM "$server" 2>/dev/null && kill -TERM "$server" 2>/dev/null; true' EXIT

while IFS= read -r line <&"$log"; do
    echo "$line"
    [[ $line == *" ready listen="* ]] && break
done
[[ $line == *" ready listen="* ]] || { echo "readme: the server did not become ready" >&2; exit 1; }
server=$(cat "${line##*run_dir=}/holdfast.pid")
cat <&"$log" &

tour=$(sed -n '/^## A five-minute tour/,/^## /p' README.md | grep '^cargo run --release -- ')
while IFS= read -r command; do
    echo "\$ $command"
    $command </dev/null
done <<<"$tour"

for keeper in $(pgrep -P "$server"); do
    pkill -KILL -P "$keeper"
done
cargo run --release -q -- ctl health
echo "readme: all commands work"
