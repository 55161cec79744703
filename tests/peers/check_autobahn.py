"""Checks an Autobahn report. Usage: check_autobahn.py INDEX_JSON

Every case must be OK in behaviour and close; only cases that Autobahn itself calls informational may say so. NON-STRICT,
UNCLEAN, FAILED and cases that did not run are failures."""

import json
import sys

SECTIONS = {"1", "2", "3", "4", "5", "6", "7", "9", "10"}

# Sections 1 to 7, 9 and 10 of the suite, counted; a report with fewer ran something else.
CASES = 301

# 7.1.6 closes in the middle of a large message; 7.13.* use close codes that RFC 6455 leaves open.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

with open(sys.argv[1], encoding="utf-8") as file:
    (cases,) = json.load(file).values()

bad = {}
for case, result in cases.items():
    allowed = {"OK", "INFORMATIONAL"} if case in INFORMATIONAL else {"OK"}
    if result["behavior"] not in allowed or result["behaviorClose"] not in allowed:
        bad[case] = (result["behavior"], result["behaviorClose"])

assert {case.split(".")[0] for case in cases} == SECTIONS, sorted(cases)
assert len(cases) >= CASES, f"{len(cases)} cases instead of {CASES}"
assert not bad, bad
print(f"ok {len(cases)} cases")
