"""Clients of an HAProxy in front of Holdfast, each from a loopback address of its own."""

import json
import socket
import sys
import time

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def unix(path, request):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        stream.sendall(request)
        return b"".join(iter(lambda: stream.recv(65536), b"")).decode()


def status(stats):
    rows = unix(stats, b"show stat\n").splitlines()
    names = rows[0].lstrip("# ").split(",")
    for row in rows[1:]:
        fields = dict(zip(names, row.split(",")))
        if fields.get("svname") == "one":
            return f"{fields['status']} {fields['check_code']}"
    return "?"


def wait_for_refusal(what, stats):
    """Its health check must have been answered, with 503: a refused connection would be no answer."""
    for _ in range(100):
        if status(stats) == "DOWN 503":
            print(f"{what}: HAProxy's check says", status(stats))
            return
        time.sleep(0.1)
    raise SystemExit(f"{what}, and HAProxy's check says {status(stats)}")


def knock(front, source):
    host, port = front.rsplit(":", 1)
    stream = socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))
    stream.sendall(REQUEST)
    answer = stream.recv(4096)
    return int(answer.split()[1]), stream


def addresses(front, control, cap):
    clients = []
    for source in ["127.0.0.2", "127.0.0.3"]:
        for n in range(cap + 1):
            code, stream = knock(front, source)
            assert code == (101 if n < cap else 429), (source, n, code)
            clients.append(stream)
    answer = unix(control, b"GET /connections HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    found = json.loads(answer.split("\r\n\r\n", 1)[1])
    found = found if isinstance(found, list) else found["connections"]
    seen = sorted(connection["address"] for connection in found if connection["phase"] == "open")
    assert seen == sorted(["127.0.0.2", "127.0.0.3"] * cap), seen
    print("addresses", seen)


def fill(front, count, stats):
    clients = [knock(front, f"127.0.0.{10 + n}") for n in range(count)]
    assert [code for code, _ in clients] == [101] * count, clients
    wait_for_refusal("full", stats)


def drain(front, control, stats):
    code, client = knock(front, "127.0.0.20")
    assert code == 101, code
    # The one client is told to go some time within this.
    unix(control, b"POST /drain?duration=60s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    wait_for_refusal("draining", stats)
    client.close()


command, *arguments = sys.argv[1:]
if command == "status":
    print(status(*arguments))
elif command == "addresses":
    addresses(arguments[0], arguments[1], int(arguments[2]))
elif command == "drain":
    drain(*arguments)
else:
    fill(arguments[0], int(arguments[1]), arguments[2])
