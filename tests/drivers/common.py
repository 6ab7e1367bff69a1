"""Runs the checks of one script: all of them, each failure told with its traceback.

DATABASE_URL says where. With PLAIN set the server is plain Postgres, where nothing is distributed:
the same script must pass there. CHECKS keeps those checks whose name contains it. LIMIT is the
script's time limit in seconds; shortly before it the stacks of all threads are written.
"""

import asyncio
import faulthandler
import inspect
import os
import sys
import time
import traceback

URL = os.environ["DATABASE_URL"]
PLAIN = bool(os.environ.get("PLAIN"))


def distribute(table, key):
    """The statement that distributes `table` by `key`."""
    return "select 1" if PLAIN else f"select create_distributed_table('{table}', '{key}')"


def reference(table):
    """The statement that copies `table` to every shard."""
    return "select 1" if PLAIN else f"select create_reference_table('{table}')"


def equal(found, expected, what=""):
    """Fails and shows both unless they are equal."""
    if found != expected:
        raise AssertionError(f"{what}\n  expected {expected!r:.2000}\n  found    {found!r:.2000}")


def run(checks):
    """Runs every check, then exits with 1 if one failed."""
    limit = float(os.environ.get("LIMIT", "120"))
    faulthandler.dump_traceback_later(max(limit - 2, 1))
    wanted = os.environ.get("CHECKS", "")
    failed = []
    for check in checks:
        name = check.__name__
        if wanted not in name:
            continue
        print(f"... {name}", flush=True)
        start = time.monotonic()
        try:
            result = check()
            if inspect.iscoroutine(result):
                asyncio.run(asyncio.wait_for(result, 30))
        except Exception:  # every failure is told, whatever it is
            failed.append(name)
            traceback.print_exc()
            print(f"FAILED {name}", flush=True)
        print(f"    {time.monotonic() - start:.1f} s", flush=True)
    faulthandler.cancel_dump_traceback_later()
    if failed:
        print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}", flush=True)
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads of a broken connection must not keep the process.
        os._exit(1)
