"""Reads an answer of GET /totals from standard input and checks that every promised name is there."""

import json
import sys

NUMBERS = """connections max_connections utilization workers workers_ready accepted_total restarts_total lost_total
messages_received_total messages_sent_total pending_handshakes uptime_seconds""".split()
MAPS = ["rejected_total", "closed_total"]
WORDS = {"level": ["normal", "warning", "degraded", "full"], "state": ["running", "draining"]}

totals = json.load(sys.stdin)
for name in NUMBERS:
    assert isinstance(totals[name], (int, float)), (name, totals)
for name in MAPS:
    assert all(isinstance(count, int) for count in totals[name].values()) and totals[name], (name, totals)
for name, words in WORDS.items():
    assert totals[name] in words, (name, totals)
assert totals["version"], totals
assert totals["messages_received_total"] > 0, totals
print(f"ok {totals['accepted_total']} accepted, {totals['messages_received_total']} messages")
