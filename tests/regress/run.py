"""Postgres's own regression scripts on the proxy: every statement on it and on a plain server.

    run.py --binary AUTOMATOR67 --postgres BIN --source .../src/test/regress --out FOLDER [SCRIPT...]

Writes FOLDER/{plain,shards-1,shards-3}.jsonl, a line for each statement, and FOLDER/regress.md.
Exit status 1: a statement was answered otherwise than one Postgres answers it.
"""

import argparse
import contextlib
import os
import subprocess
import sys

import report
import servers
from player import Player

# Scripts left out: they are about files and the operating system of the server, about psql itself, or
# C functions that only the suite builds. Of prepared_xacts nothing is left when the client's own
# two-phase commit is refused, and its locks then hold up both servers differently.
LEFT_OUT = {
    "tablespace", "psql", "psql_crosstab", "infinite_recurse", "create_function_c", "largeobject",
    "maintain_every", "vacuum_parallel", "subscription", "euc_kr", "conversion", "indirect_toast",
    "regproc", "random", "prepared_xacts",
}  # fmt: skip


def scripts(source):
    """The scripts in the order of the suite's schedule."""
    with open(os.path.join(source, "parallel_schedule"), encoding="utf-8") as file:
        lines = [line.split()[1:] for line in file if line.startswith("test:")]
    return [name for line in lines for name in line if name not in LEFT_OUT]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--postgres", required=True)
    arguments.add_argument("--source", required=True)
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--shards", default="1,3")
    arguments.add_argument("scripts", nargs="*")
    options = arguments.parse_args()
    options.source = os.path.abspath(options.source)
    names = options.scripts or scripts(options.source)
    os.makedirs(options.out, exist_ok=True)
    out = lambda name: os.path.join(options.out, name)

    baseline = out("plain.jsonl")
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(servers.plain(options.postgres)) for _ in range(2)]
        play(Player(*pair, options.source, baseline, "plain"), names)

    runs, bad = [], []
    for shards in map(int, options.shards.split(",")):
        path = out(f"shards-{shards}.jsonl")
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(servers.plain(options.postgres))
            scored = stack.enter_context(servers.automator67(options.binary, shards))
            mode = "local" if shards == 1 else "shard"
            play(Player(plain, scored, options.source, path, mode), names)
        counts, found = report.count(path, baseline)
        runs.append((f"{shards} shard" + "s" * (shards > 1), counts))
        bad += found
    table = "\n".join(report.lines(runs))
    print(table)
    with open(out("regress.md"), "w", encoding="utf-8") as file:
        print(heading(options, len(names)), table, sep="\n\n", file=file)
    for record in bad:
        if record["verdict"] in report.SILENT:
            print(f"{record['verdict']}: {record['file']} {record['number']}: {record['sql'][:200]}")
    return 1 if any(report.silent(counts) for _, counts in runs) else 0


def play(player, names):
    for name in names:
        player.play(name)


def heading(options, count):
    version = subprocess.run([options.binary, "--version"], capture_output=True, text=True, check=True)
    server = subprocess.run([f"{options.postgres}/postgres", "--version"], capture_output=True, text=True, check=True)
    return (
        f"{count} regression scripts of PostgreSQL, {version.stdout.strip()} beside {server.stdout.strip()}. "
        "On one shard every table is local; on three, each new table is distributed by its first key."
    )


if __name__ == "__main__":
    sys.exit(main())
