"""Python's websockets against the echo of a Holdfast with default limits. Usage: websockets_client.py URL"""

import sys

from websockets.exceptions import ConnectionClosedError
from websockets.frames import CloseCode
from websockets.sync.client import connect

MIB = 1024 * 1024


def echoes(url):
    messages = [
        "hello",
        "",
        "Grüße, 世界, 🦀",
        b"",
        bytes(range(256)),
        b"\x00" * 125,
        b"\x01" * 126,
        b"\x02" * 65_535,
        b"\x03" * 65_536,
        bytes(n % 251 for n in range(MIB)),
        "é" * (MIB // 2),
    ]
    with connect(url, max_size=None) as ws:
        for message in messages:
            ws.send(message)
            assert ws.recv() == message, f"{len(message)} came back changed"


def fragments(url):
    with connect(url, max_size=None) as ws:
        ws.send(["frag", "ment", "ed ", "text"])
        assert ws.recv() == "fragmented text"
        ws.send([b"a" * 1000, b"", b"b" * 1000])
        assert ws.recv() == b"a" * 1000 + b"b" * 1000


def pings(url):
    with connect(url) as ws:
        for payload in [b"", b"are you there?", b"x" * 125]:
            assert ws.ping(payload).wait(30), "no pong"


def close_codes(url):
    for code in [1000, 1001, 1003, 1008, 1011, 3000, 4999]:
        with connect(url) as ws:
            ws.close(code, "enough")
            received = ws.protocol.close_rcvd
            assert received is not None and received.code == code, f"{code} was answered with {received}"


def too_big(url):
    for message in [b"x" * (MIB + 1), [b"x" * MIB, b"x"]]:
        with connect(url) as ws:
            try:
                ws.send(message)
                ws.recv()
                raise AssertionError("a message above the limit came back")
            except ConnectionClosedError as closed:
                assert closed.rcvd is not None, "closed without a word"
                assert closed.rcvd.code == CloseCode.MESSAGE_TOO_BIG, closed.rcvd


for check in [echoes, fragments, pings, close_codes, too_big]:
    check(sys.argv[1])
    print(f"ok {check.__name__}")
