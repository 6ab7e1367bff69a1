"""Plays regression scripts on a plain server and on the one that is scored, statement by statement.

How both sides stay equal: the scored server answers first. What it does not do, the plain one does
in a transaction that is rolled back (sequences are set back): the tables stay equal, and it is known
whether Postgres would have done it. Names in a statement that was not done are remembered: a later
error that speaks of one of them is "cascade", no new failure. At the end of each script the rows of
all tables are compared.
"""

import json
import os
import re
import time
from collections import Counter

from psycopg.pq import TransactionStatus

import compare
from connection import Connection, failure
from script import Script

SCRIPT_SECONDS = 300  # then the rest of a script is left out and said so
READS = {
    "SelectStmt", "ExplainStmt", "VariableShowStmt", "FetchStmt", "ExecuteStmt",
    "DeclareCursorStmt", "ClosePortalStmt", "TransactionStmt", "CheckPointStmt", "ListenStmt",
    "NotifyStmt", "empty",
}  # fmt: skip
WRITES = {"InsertStmt", "CopyStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "CreateTableAsStmt", "SelectInto"}
# What is said of an object that is not there because an earlier statement was not done.
MISSING = {
    "42P01", "42704", "42883", "42703", "3F000", "34000", "26000", "42P07", "42710", "42723",
    "2BP01", "42P06", "42809", "42P16", "42P17", "42501", "42P10", "22P02", "42804", "42P18",
    "42846", "42725",
}  # fmt: skip
ABORTED = "25P02"
UNSUPPORTED = "0A000"
TOO_MUCH = "53400"
# Statements that Postgres does not run inside of a transaction.
OUTSIDE = {"25001", "2D000"}
KEY_TYPES = "int2 int4 int8 text varchar uuid date timestamp timestamptz".split()
AUTHORIZATION = re.compile(r"\s*(re)?set\s+(session|local)?\s*session\s+authorization\s*(.*?);?\s*$", re.I | re.S)
FROM_FILE = re.compile(r"\s*copy\s+(.*?)\s+from\s+'([^']*/data/[^']*)'(.*)$", re.I | re.S)
FROM_STDIN = re.compile(r"\s*copy\b.*\bfrom\s+stdin\b", re.I | re.S)

SEQUENCES = "select schemaname || '.' || quote_ident(sequencename), last_value from pg_sequences"
KEY_CANDIDATES = """
    select a.attname from pg_attribute a join pg_type t on t.oid = a.atttypid
    join pg_class c on c.oid = a.attrelid
    left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
    where a.attrelid = {table}::regclass and c.relkind = 'r' and not c.relispartition
        and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and t.typname in ({types})
    order by coalesce(array_position(i.indkey::int2[], a.attnum), 999), a.attnum limit 4"""
TABLES = """
    select quote_ident(n.nspname) || '.' || quote_ident(relname)
    from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind = 'r' and nspname !~ '^(pg_|information_schema|automator67)'
        and relname !~ '^a67_' order by 1"""
WRITTEN = """
    select c.oid::regclass::text, (select string_agg(quote_ident(attname), ',' order by attnum)
        from pg_attribute a where a.attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = '')
    from pg_class c where relkind = 'r' and relname in ({names}) and relname <> 'a67_turned'
        and relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        and pg_relation_size(c.oid) between 1 and 4000000"""


def literal(name):
    return "'" + name.replace("'", "''") + "'"


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


class Player:
    """`mode`: "plain" for a second plain server; "local" for one that refuses nothing on purpose;
    "shard" distributes every new table by its first key, else the first column that can be one.
    `turn`: rows are written again in another order after each change, which finds the statements
    whose answer SQL does not determine."""

    def __init__(self, plain, scored, source, out, mode):
        self.plain = Connection(plain)
        self.scored = Connection(scored)
        self.source = source
        self.out = open(out, "w", encoding="utf-8")
        self.mode = mode
        self.not_done = set()  # names of what a statement that was not done would have made
        self.was_aborted = False
        self.placed = Counter()
        self.written = set()
        self.seen = {}

    def log(self, verdict, sql="", **more):
        record = dict(file=self.file, number=self.number, verdict=verdict, sql=sql, **more)
        self.out.write(json.dumps(record, default=str) + "\n")
        self.out.flush()

    # ---- scripts ----

    def play(self, name):
        self.file, self.number = name, 0
        started = time.time()
        variables = {
            "abs_srcdir": self.source, "libdir": "/nolib", "dlsuffix": ".so", "abs_builddir": "/nobuild",
            "DBNAME": "app", "USER": "app", "HOST": "127.0.0.1", "PORT": "1", "AUTOCOMMIT": "on",
        }  # fmt: skip
        path = os.path.join(self.source, "sql", name + ".sql")
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            script = Script(file.read(), variables)
        for item in script:
            if time.time() - started > SCRIPT_SECONDS:
                self.log("script took too long")
                break
            if item[0] == "sql":
                self.play_sql(script, variables, item[1], item[2])
            elif item[1] == "q":
                break
            else:
                self.play_command(script, variables, item[1], item[2])
        self.compare_tables()
        self.reconnect()
        seconds = round(time.time() - started, 1)
        self.log("script done", seconds=seconds, placed=dict(self.placed))
        self.placed.clear()
        print(f"{name}: {self.number} statements, {seconds} s", flush=True)

    def play_command(self, script, variables, command, rest):
        if command == "set":
            set_variable(variables, rest)
        elif command in ("c", "connect"):
            self.reconnect()
            role = rest.split()[1:2]
            if role and role != ["-"]:
                self.both("set role " + role[0])
        elif command == "copy":
            if re.search(r"from\s+stdin", rest, re.I):
                self.statement("copy " + rest, script.copy_data())
            elif re.search(r"to\s+stdout", rest, re.I):
                self.statement("copy " + rest)

    def play_sql(self, script, variables, sql, end):
        copy = script.copy_data() if FROM_STDIN.match(sql) else None
        # Files are on the machine of the scripts, not on the servers'.
        from_file = FROM_FILE.match(sql)
        if from_file and os.path.exists(from_file.group(2)):
            sql = f"COPY {from_file.group(1)} FROM STDIN{from_file.group(3)}"
            with open(from_file.group(2), encoding="utf-8", errors="surrogateescape") as file:
                copy = file.read()
        if end.startswith("gdesc"):
            return
        theirs, ours = self.statement(sql, copy)
        rows = theirs[-1].rows
        if end.startswith("gset") and rows and not failure(theirs):
            for (column, _), value in zip(theirs[-1].columns, rows[0]):
                if value is not None:
                    variables[end[4:].strip() + column] = value
        if end.startswith("gexec") and rows and not failure(ours):
            for value in (value for row in rows for value in row if value):
                self.statement(value)

    # ---- statements ----

    def statement(self, sql, copy=None, again=False):
        """Both servers' results; `again` is what is tried once more and counts no second time."""
        self.number += not again
        about = compare.look_at(sql)
        ours = self.scored.run(sql, copy)
        our_notices = self.scored.notices
        our_failure = failure(ours)
        theirs = self.plain_results(sql, copy, about, our_failure)
        their_failure = failure(theirs)
        for connection, failed in ((self.plain, their_failure), (self.scored, our_failure)):
            if failed and failed.sqlstate in ("DEAD", "HANG") or not connection.is_open():
                connection.open()
        verdict, detail = self.verdict(about, theirs, ours)
        more = {"kind": about.kind, "again": again} | ({"difference": detail} if detail else {})
        for key, failed in (("theirs", their_failure), ("ours", our_failure)):
            if failed:
                more[key] = [failed.sqlstate, failed.message, failed.hint]
        if not their_failure and not our_failure and self.plain.notices != our_notices:
            more["notices"] = [self.plain.notices[:6], our_notices[:6]]
        self.log(verdict, sql.strip()[:3000], **more)
        if self.undistributes(our_failure) and not again:
            return self.statement(sql, copy, again=True)
        if our_failure and verdict != "same error" and about.kind not in READS | {"VariableSetStmt"}:
            self.not_done |= {name for name in about.names if len(name) > 2}
        self.follow_role(sql)
        self.follow_transaction()
        if self.mode == "shard" and about.creates is not None and not their_failure and not our_failure:
            self.place(about.creates)
        if self.mode == "plain":
            self.turn(sql, about)
        return theirs, ours

    def plain_results(self, sql, copy, about, our_failure):
        idle = self.plain.status == TransactionStatus.IDLE
        alone = about.kind in READS - {"SelectStmt", "ExecuteStmt"}
        if not our_failure or alone or self.mode == "plain" or not idle:
            return self.plain.run(sql, copy)
        sequences = self.plain.rows(SEQUENCES)
        self.plain.run("begin")
        results = self.plain.run(sql, copy)
        notices = self.plain.notices
        if not failure(results):
            deferred = self.plain.run("set constraints all immediate")
            results = deferred if failure(deferred) else results
        self.plain.run("rollback")
        failed = failure(results)
        if failed and failed.sqlstate in OUTSIDE:
            return self.plain.run(sql, copy)
        if not failed or failed.sqlstate != our_failure.sqlstate:
            self.set_back(sequences)
        self.plain.notices = notices
        return results

    def set_back(self, before):
        before = dict(before or [])
        for name, value in self.plain.rows(SEQUENCES) or []:
            if name in before and before[name] != value:
                called = "true" if before[name] else "false"
                self.plain.run(f"select setval({literal(name)}, {before[name] or 1}, {called})")

    def verdict(self, about, theirs, ours):
        their_failure, our_failure = failure(theirs), failure(ours)
        for failed, whose in ((our_failure, ""), (their_failure, "plain server: ")):
            if failed and failed.sqlstate in ("DEAD", "HANG"):
                return whose + {"DEAD": "connection lost", "HANG": "hang"}[failed.sqlstate], None
        if our_failure:
            return self.verdict_of_failure(their_failure, our_failure), None
        if their_failure:
            missing = their_failure.sqlstate in MISSING | {"23505"}
            return "cascade" if missing and self.is_not_done(their_failure) else "does more", None
        found = compare.difference(theirs, ours)
        if about.kind == "ExplainStmt" or found and found[0] == "order" and not about.sorted:
            found = None
        if not found:
            return "same", None
        if found[0] in ("float", "order"):
            return found[0], found
        return "catalog" if about.reads_catalog else "wrong", found

    def verdict_of_failure(self, theirs, ours):
        cascade = (
            ours.sqlstate == ABORTED and self.was_aborted
            or ours.sqlstate in MISSING and self.is_not_done(ours)
        )
        if theirs and theirs.sqlstate == ours.sqlstate:
            return "cascade" if cascade else "same error"
        if theirs:
            if cascade:
                return "cascade"
            return "both refuse" if ours.sqlstate == UNSUPPORTED else "other sqlstate"
        if ours.sqlstate in (UNSUPPORTED, TOO_MUCH):
            return "refused" if ours.hint else "refused without a hint"
        return "cascade" if cascade else "error"

    def is_not_done(self, failed):
        words = set(re.findall(r"[A-Za-z0-9_]+", failed.message))
        return bool(words & self.not_done) or any(
            name in failed.message for name in self.not_done if not re.fullmatch(r"[A-Za-z0-9_]+", name)
        )

    def undistributes(self, failed):
        """Does what a hint says, so that what comes after still has its tables."""
        if not failed or self.mode != "shard" or self.scored.status != TransactionStatus.IDLE:
            return False
        if failed.sqlstate != UNSUPPORTED or "undistribute" not in (failed.hint + failed.message).lower():
            return False
        for name in re.findall(r'"([^"]+)"', failed.message):
            self.scored.run(f"select undistribute_table({literal(name)})")
        return True

    def follow_role(self, sql):
        """What SET SESSION AUTHORIZATION would have done, where it is refused."""
        found = AUTHORIZATION.match(sql)
        if not found or self.mode == "plain":
            return
        role = found.group(3).strip()
        back = found.group(1) or role.lower() == "default"
        self.both("reset session authorization")
        self.both("reset role" if back else "set role " + role)

    def follow_transaction(self):
        plain, scored = self.plain.status, self.scored.status
        if plain == scored:
            self.was_aborted = self.was_aborted and plain == TransactionStatus.INERROR
        elif {plain, scored} == {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            (self.plain if plain == TransactionStatus.INTRANS else self.scored).run("select 1/0")
            self.was_aborted = True
        else:
            self.both("rollback")
            self.was_aborted = False
            self.log("transaction state", detail=f"{TransactionStatus(plain).name} against {TransactionStatus(scored).name}")

    def place(self, relation):
        if relation.relpersistence == "t" or (relation.schemaname or "").startswith("pg_temp"):
            return
        parts = [part for part in (relation.schemaname, relation.relname) if part]
        table = literal(".".join(map(quoted, parts)))
        types = ", ".join(map(literal, KEY_TYPES))
        candidates = self.scored.rows(KEY_CANDIDATES.format(table=table, types=types)) or []
        inside = self.scored.status == TransactionStatus.INTRANS
        outcome = "no column can be a key"
        for (column,) in candidates:
            if inside:
                self.scored.run("savepoint place")
            failed = failure(
                self.scored.run(f"select create_distributed_table({table}, {literal(column)})")
            )
            if inside:
                self.scored.run("rollback to place" if failed else "release place")
            if not failed:
                outcome = "distributed"
                break
            outcome = f"{failed.sqlstate} " + re.sub(r'"[^"]*"', "..", failed.message)
        self.placed[outcome] += 1

    def turn(self, sql, about):
        """Writes the tables that were changed again, in another order."""
        if about.kind in WRITES or about.kind == "SelectStmt" and re.search("insert|update|delete", sql, re.I):
            self.written |= about.names
        if not self.written or self.scored.status != TransactionStatus.IDLE:
            return
        names = ", ".join(map(literal, self.written))
        self.written = set()
        for table, columns in self.scored.rows(WRITTEN.format(names=names)) or []:
            if not columns:
                continue
            turned = self.scored.run(
                "begin; set local session_replication_role = replica;"
                f" create temp table a67_turned on commit drop as"
                f" select {columns} from only {table} order by hashtext(ctid::text);"
                f" delete from only {table};"
                f" insert into {table}({columns}) overriding system value select {columns} from a67_turned;"
                " commit"
            )
            if failure(turned):
                self.scored.run("rollback")

    # ---- around scripts ----

    def compare_tables(self):
        for reset in ("rollback", "reset role", "reset search_path"):
            self.both(reset)
        plain, scored = self.plain.rows(TABLES), self.scored.rows(TABLES)
        if plain is None or scored is None:
            self.log("tables not compared")
            return
        for (table,) in plain:
            if (table,) not in scored:
                continue
            query = f"select count(*), coalesce(sum(hashtext(x::text)::bigint), 0) from {table} x"
            theirs, ours = self.plain.run(query), self.scored.run(query)
            if failure(ours):
                self.log("table not compared", table, ours=list(failure(ours)[4:]))
            elif theirs[-1].rows != ours[-1].rows:
                rows = [theirs[-1].rows, ours[-1].rows]
                if self.seen.get(table) != rows:
                    self.seen[table] = rows
                    self.log("tables differ", table, difference=rows)

    def both(self, sql):
        self.plain.run(sql)
        self.scored.run(sql)

    def reconnect(self):
        self.plain.open()
        self.scored.open()


def set_variable(variables, rest):
    parts = re.findall(r"""'(?:[^']|'')*'|:'[^']*'|:"[^"]*"|\S+""", rest)
    if not parts:
        return
    value = ""
    for part in parts[1:]:
        if re.match(r":\w+$", part):
            part = variables.get(part[1:], part)
        elif part.startswith("'"):
            part = part[1:-1].replace("''", "'")
        value += part
    variables[parts[0]] = value
