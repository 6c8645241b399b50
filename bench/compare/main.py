"""The table by which Sluice's CPU backend is judged; bench/compare-llamacpp.sh starts it."""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import engine_rows
import service_rows
from measure import Machine, Peer, say

ROWS = {"a": [engine_rows.row_a], "b": [engine_rows.row_b], "c": [engine_rows.row_c],
        "d": [engine_rows.row_d, service_rows.row_d], "e": [service_rows.row_e],
        "f": [service_rows.row_f], "g": [service_rows.row_g], "h": [engine_rows.row_h]}


class Run:
    """What rows need: options, models, the peer's process, the machine's counters."""

    def __init__(self, options):
        self.quick, self.threads, self.rounds = options.quick, options.threads, options.rounds
        self.patience_s = options.patience
        self.tokens, self.prompt = 128, 512
        self.python, self.tools = options.python, options.tools
        self.machine = Machine(options.others_max)
        self.peer = Peer("llama.cpp", options.python, "peer.py")
        self.vllm = options.vllm
        self.machine.running.append(self.peer)
        self.models = {}

    def make_models(self, names):
        script = pathlib.Path(__file__).with_name("models.py")
        done = subprocess.run([self.python, str(script), "models", *sorted(names)], check=True,
                              stdout=subprocess.PIPE)
        self.models = json.loads(done.stdout)


def number(value):
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value):
    return "" if value is None else f"{value:.2f}"


def note(line):
    """What a reader must know of a line besides its figures."""
    parts = []
    if line.get("ours_over_one_stream"):
        parts.append(f"{line['ours_over_one_stream']:.2f} x one stream")
    parts += line.get("notes", [])
    if line.get("peer_setting"):
        parts.append(f"peer: {line['peer_setting']}")
    if line.get("limit_of"):
        parts.append(f"limit: {line['limit_of']}")
    if line["rounds"] < line["rounds_wanted"]:
        parts.append("TOO FEW ROUNDS")
    return "; ".join(parts)


HEAD = ("row", "what", "unit", "ours", "peer", "ours/peer", "limit", "ours/limit",
        "rounds (thrown away)", "others' CPU", "notes")


def cells(line):
    if "failed" in line:
        return (line["row"], line["what"], *[""] * 8, line["failed"])
    return (line["row"], line["what"], line["unit"], number(line["ours"]), number(line["peer"]),
            ratio(line["ours_over_peer"]), number(line.get("limit")),
            ratio(line.get("ours_over_limit")),
            f"{line['rounds']} ({line['rounds_thrown_away']})", f"{line['others_cpu_share']:.0%}",
            note(line))


def table(lines):
    """Markdown, with columns as wide as what is in them."""
    rows = [HEAD, *map(cells, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in rows]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def git(*arguments):
    done = subprocess.run(["git", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()


def read_options():
    parser = argparse.ArgumentParser(
        prog="bench/compare-llamacpp.sh", description="Sluice's CPU backend beside llama.cpp: the "
        "same files, threads and machine, medians of alternating rounds.")
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer formats, and one round")
    parser.add_argument("--rounds", type=int, help="rounds that must count (5; quick: 1)")
    parser.add_argument("--patience", type=float, metavar="SECONDS", default=300,
                        help="how long a line of the table may wait for rounds that count (300)")
    parser.add_argument("--others-max", type=float, metavar="SHARE", default=0.15,
                        help="of the processors that others may take in such a round (0.15)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of both engines (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--python", required=True, metavar="PATH",
                        help="a Python that has the peer, instead of installing it")
    parser.add_argument("--vllm", metavar="PATH",
                        help="a Python that has vLLM for CPUs, instead of installing it")
    parser.add_argument("--tools", type=pathlib.Path, metavar="FOLDER",
                        help="where llama-server and llama-simple lie, instead of building them")
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"--rows: no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if "h" in options.rows and not options.vllm:
        parser.error("--rows: row h needs --vllm")
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def main():
    options = read_options()
    run = Run(options)
    began = time.time()
    run.make_models(engine_rows.models(options.rows) | service_rows.models(options.rows))
    engine_rows.warn_of_others(run)
    report = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
              "commit": git("describe", "--always", "--dirty"), "processor": processor(),
              "cores": os.cpu_count(), "threads": options.threads,
              "rounds_wanted": options.rounds, "quick": options.quick,
              "peer": run.peer.call("describe"), "peaks_gop_s": engine_rows.peaks(run),
              "rows": []}

    def keep():
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    for name, part in ((name, part) for name in options.rows for part in ROWS[name]):
        for what, measure in part(run):
            try:
                lines = measure()
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                lines = [{"row": name, "what": what, "failed": f"not measured: {error}"}]
            for line in lines:
                line["rounds_wanted"] = options.rounds
                say("  ".join(cell for cell in cells(line) if cell))
            report["rows"] += lines
            keep()
    run.peer.close()
    report["seconds"] = round(time.time() - began)
    keep()
    print(table(report["rows"]))
    print(f"\n{report['processor']}, {report['cores']} cores; {options.threads} threads; llama.cpp "
          f"by llama-cpp-python {report['peer']['version']}; commit {report['commit']}; medians of "
          f"{options.rounds} rounds; {report['seconds']} s")
    print("arithmetic peaks: " + ", ".join(
        f"{kind} {value:.0f} Gop/s" for kind, value in report["peaks_gop_s"].items()))
    return 1 if any("failed" in line for line in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
