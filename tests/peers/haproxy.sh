# HAProxy in front, sourced by peers.sh: clients' addresses by PROXY protocol and by X-Forwarded-For, and its health checks.
# Uses step, start, servers, tests and work of peers.sh, which ends what is started here.

# in_front ADDRESS SERVER_OPTION BACKEND_LINE: an HAProxy on a free port that passes to ADDRESS; sets front and stats.
in_front() {
    front=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print("127.0.0.1:%d" % s.getsockname()[1])')
    stats=$work/haproxy.$RANDOM.sock
    cat >"$stats.cfg" <<CONFIG
global
    stats socket $stats mode 600
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend public
    bind $front
    default_backend holdfast
backend holdfast
    option httpchk
    $3
    server one $1 check inter 100 fall 1 rise 1 $2
CONFIG
    haproxy -db -f "$stats.cfg" >"$stats.log" 2>&1 &
    servers+=($!)
    wait_for_server UP
}

# wait_for_server STATUS: until HAProxy's own health check says so.
wait_for_server() {
    for _ in $(seq 100); do
        python3 "$tests/peers/haproxy_client.py" status "$stats" 2>/dev/null | grep -q "^$1" && return
        sleep 0.1
    done
    echo "HAProxy does not find the server $1: $(python3 "$tests/peers/haproxy_client.py" status "$stats" 2>&1)" >&2
    return 1
}

for way in send-proxy-v2 forwardfor; do
    step "HAProxy: $way"
    has_proxy_header=false server_option='' backend_line='option forwardfor'
    [[ $way == forwardfor ]] || has_proxy_header=true server_option=send-proxy-v2 backend_line=''
    start "haproxy-$way" --set 'proxy.trusted=["127.0.0.1"]' --set proxy.proxy_protocol=$has_proxy_header \
        --max-connections-per-address 2 --max-connections 5
    in_front "$address" "$server_option" "$backend_line"
    python3 "$tests/peers/haproxy_client.py" addresses "$front" "$socket" 2
    # The clients of that have left, so that it is not full.
    wait_for_server UP
    python3 "$tests/peers/haproxy_client.py" fill "$front" 5 "$stats"
    wait_for_server UP
    python3 "$tests/peers/haproxy_client.py" drain "$front" "$socket" "$stats"
done
