"""Counts of what the player wrote, as a table for people and a verdict for make."""

import json
import os
from collections import Counter

# Verdicts, as they are counted: what is right, what is refused, what should not be.
RIGHT = ("same", "same error")
REFUSED = ("refused", "both refuse")
BAD = (
    "wrong", "does more", "tables differ", "transaction state", "order", "catalog", "float",
    "refused without a hint", "error", "other sqlstate", "hang", "connection lost",
)  # fmt: skip
SILENT = ("wrong", "does more", "tables differ", "transaction state", "order")
UNDETERMINED = ("wrong", "order", "catalog", "float", "does more", "other sqlstate", "tables differ")
NOT_STATEMENTS = (
    "script done", "script took too long", "tables not compared", "table not compared",
)  # fmt: skip


EXCEPTED = os.path.join(os.path.dirname(__file__), "excepted.txt")


def exceptions():
    """[(script, beginning of the statement)] that are listed with a reason."""
    with open(EXCEPTED, encoding="utf-8") as file:
        lines = [line.split("|") for line in file if not line.startswith("#")]
    return [(script.strip(), beginning.strip()) for script, beginning, _ in lines]


def excepted(record, listed):
    statement = " ".join(record["sql"].split()).removeprefix("public.")
    return any(
        record["file"] == script and statement.startswith(beginning) for script, beginning in listed
    )


def records(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def place(record):
    """Where in the suite a record is: statements by number, tables by name."""
    named = record["verdict"] == "tables differ"
    return (record["file"], record["sql"] if named else record["number"], named)


def count(path, baseline):
    """(counts, records that are bad) of a run. What two plain servers answer differently is not
    determined by SQL, and left out."""
    undetermined = {place(r) for r in records(baseline) if r["verdict"] in UNDETERMINED}
    listed = exceptions()
    counts, bad = Counter(), []
    for record in records(path):
        verdict = record["verdict"]
        if verdict in NOT_STATEMENTS:
            counts[verdict] += verdict != "script done"
            continue
        if record.get("again"):
            continue
        if verdict in UNDETERMINED and place(record) in undetermined:
            counts["not determined"] += 1
            continue
        if verdict in SILENT and excepted(record, listed):
            counts["excepted"] += 1
            continue
        counts[verdict] += 1
        if verdict in BAD:
            bad.append(record)
    return counts, bad


def lines(runs):
    """A Markdown table: runs is [(title, counts)]."""
    sum_of = lambda counts, verdicts: sum(counts[verdict] for verdict in verdicts)
    known = RIGHT + REFUSED + BAD + ("cascade", "not determined", "excepted")
    others = sorted({verdict for _, counts in runs for verdict in counts} - set(known))
    rows = [("right", RIGHT), ("refused, with a hint", REFUSED)]
    rows += [(verdict, (verdict,)) for verdict in BAD]
    rows += [("not done, as an earlier statement was not", ("cascade",))]
    rows += [("not determined by SQL, left out", ("not determined",))]
    rows += [("order of rows, or one server's own numbers: excepted.txt", ("excepted",))]
    rows += [(verdict, (verdict,)) for verdict in others]
    yield "| verdict | " + " | ".join(title for title, _ in runs) + " |"
    yield "|---" * (len(runs) + 1) + "|"
    for title, verdicts in rows:
        numbers = [sum_of(counts, verdicts) for _, counts in runs]
        if any(numbers):
            yield f"| {title} | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def silent(counts):
    """How many statements were answered, and not as one Postgres does."""
    return sum(counts[verdict] for verdict in SILENT)
