# Sourced by the scripts beside it: a port to listen on, and the end of a server with all its processes.

# A port that nobody listens on, at 127.0.0.1.
free_port() {
    python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
}

# The process and all its descendants, parents first.
process_tree() {
    local pid=$1 child
    echo "$pid"
    for child in $(pgrep -P "$pid"); do process_tree "$child"; done
}

# Ends the process and all its descendants. All are stopped before the first is killed: what a keeper or a worker leaves
# behind is taken up at once by the others, in a new process that no list made before has. Then children first: a stopped
# process whose parent dies is continued by the kernel when that orphans its process group (setpgid(2)).
kill_tree() {
    local tree frozen=
    while tree=$(process_tree "$1") && [[ $tree != "$frozen" ]]; do
        # shellcheck disable=SC2086 # one word for each process
        kill -STOP $tree 2>/dev/null || true
        frozen=$tree
    done
    # shellcheck disable=SC2046
    kill -KILL $(tac <<<"$tree") 2>/dev/null || true
}
