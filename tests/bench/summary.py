"""Sums up the runs of bench.sh: `table DIR` prints and writes the medians, `half-rate DIR` prints a rate for latency."""

import json
import statistics
import sys
from pathlib import Path

ROWS = {
    "echo-125": "echo, 1,000 clients, 1 in flight, 125 B",
    "pipelined-20": "echo, 200 clients, 16 in flight, 20 B",
    "echo-16k": "echo, 64 clients, 16 KiB",
    "echo-1m": "echo, 16 clients, 1 MiB",
    "handshake": "handshakes (connect, upgrade, close)",
    "handshake-1": "handshakes, 1 worker",
    "handshake-8": "handshakes, 8 workers",
    "accepted": "a crowd of 14,000 let in",
    "refused": "a crowd of 14,000 refused at the cap",
    "latency": "echo latency at half the rate, 125 B",
    "idle": "memory of an idle connection (15,000, own addresses)",
    "burst": "memory around a burst (10,000 clients, 256 KiB each)",
}
SERVERS = ["floor", "holdfast", "node-ws", "bun", "tokio-tungstenite", "fastwebsockets"]


def read_runs(directory):
    """{row: {server: {round: report}}}; a run that failed has no report."""
    runs = {}
    for path in sorted((directory / "runs").glob("*.json")):
        row, round_number, server = path.name[: -len(".json")].split(".")
        text = path.read_text().strip()
        if text:
            runs.setdefault(row, {}).setdefault(server, {})[int(round_number)] = json.loads(text)
    return runs


def per_cpu_second(report):
    return report["server"]["units_per_cpu_second"]


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def summarize(row, servers):
    """{server: figures} for one row."""
    summary = {}
    for server, rounds in servers.items():
        figures = {"ok": all(report["ok"] for report in rounds.values())}
        if row == "idle":
            figures["bytes"] = spread([r["server"]["pss_bytes_per_connection"] for r in rounds.values()])
            figures["kernel_bytes"] = spread([r["kernel_bytes_per_connection"] for r in rounds.values()])
        elif row == "burst":
            for moment in ("idle", "peak", "after"):
                figures[moment] = spread([r["server"][f"pss_bytes_{moment}"] for r in rounds.values()])
        elif row == "latency":
            for quantile in ("p50", "p99"):
                figures[quantile] = spread([r["latency_microseconds"][quantile] for r in rounds.values()])
            figures["rate"] = spread([r["units_per_second"] for r in rounds.values()])
        else:
            figures["per_cpu_second"] = spread([per_cpu_second(r) for r in rounds.values()])
            figures["per_second"] = spread([r["units_per_second"] for r in rounds.values()])
            floor = servers.get("floor", {})
            ratios = [per_cpu_second(r) / per_cpu_second(floor[n]) for n, r in rounds.items() if n in floor]
            if ratios:
                figures["to_floor"] = spread(ratios)
        summary[server] = figures
    return summary


def short(number):
    if number >= 1e6:
        return f"{number / 1e6:.2f}M"
    if number >= 1e4:
        return f"{number / 1e3:.0f}k"
    return f"{number:,.0f}"


def cell(row, server, figures):
    note = "" if figures["ok"] else " (!)"
    if row == "idle":
        bytes_ = figures["bytes"]
        return f"{bytes_['median']:,.0f} B ({bytes_['min']:,.0f} to {bytes_['max']:,.0f}){note}"
    if row == "burst":
        idle, peak, after = (figures[moment]["median"] / 2**20 for moment in ("idle", "peak", "after"))
        return f"{idle:,.1f} MiB, {peak:,.0f} MiB, {after:,.1f} MiB ({after / idle - 1:+.0%}){note}"
    if row == "latency":
        return f"p50 {figures['p50']['median']:,.0f} µs, p99 {figures['p99']['median']:,.0f} µs{note}"
    work = short(figures["per_cpu_second"]["median"])
    ratio = figures.get("to_floor")
    if server == "floor" or not ratio:
        return work + note
    return f"{work}, {ratio['median']:.0%} ({ratio['min']:.0%} to {ratio['max']:.0%}){note}"


def table(summaries):
    present = [server for server in SERVERS if any(server in servers for servers in summaries.values())]
    lines = [["per server CPU second, share of the floor"] + present]
    for row in ROWS:
        if row in summaries:
            cells = [cell(row, s, summaries[row][s]) if s in summaries[row] else "" for s in present]
            lines.append([ROWS[row]] + cells)
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    padded = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |" for line in lines]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def main():
    verb, directory = sys.argv[1], Path(sys.argv[2])
    runs = read_runs(directory)
    if verb == "half-rate":
        rates = [
            statistics.median(r["units_per_second"] for r in runs["echo-125"][server].values())
            for server in ("holdfast", "floor")
        ]
        print(int(min(rates) / 2))
        return
    machine = dict(line.split("\t", 1) for line in (directory / "machine.tsv").read_text().splitlines())
    summaries = {row: summarize(row, servers) for row, servers in runs.items()}
    text = table(summaries)
    notes = "\n".join(f"- {name}: {value.strip()}" for name, value in machine.items())
    explanation = "Medians, in brackets minimum to maximum; (!) marks rows with a failed or lost connection."
    (directory / "results.md").write_text(f"{text}\n\n{explanation}\n\n{notes}\n")
    (directory / "results.json").write_text(json.dumps({"machine": machine, "rows": summaries}, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
