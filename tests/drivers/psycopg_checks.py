"""psycopg 3 against DATABASE_URL."""

import asyncio
import datetime
import decimal
import struct
import threading
import time
import uuid

import psycopg
from psycopg import errors, pq
from psycopg.rows import dict_row
from psycopg.types.json import Json, Jsonb

from common import PLAIN, URL, distribute, equal, reference, run
from psycopg_tables import connect, table

UTC = datetime.timezone.utc


TYPES = {
    "i2": ("int2", [-32768, 0, 32767]),
    "i4": ("int4", [-(2**31), 0, 2**31 - 1]),
    "i8": ("int8", [-(2**63), 0, 2**63 - 1]),
    "num": (
        "numeric",
        [decimal.Decimal("-12345678901234567890.123456789"), decimal.Decimal("0.00"),
         decimal.Decimal("1e-20")],
    ),
    "f4": ("float4", [-1.5, 0.0, 3.25]),
    "f8": ("float8", [-1e300, 0.1, float("inf")]),
    "t": ("text", ["", "grün ✓ 'quoted' \\ \"double\"", "a" * 100_000]),
    "v": ("varchar(20)", ["x", "ä", "twenty characters ok"]),
    "c": ("char(4)", ["abcd", "a   ", "    "]),
    "by": ("bytea", [b"", bytes(range(256)), b"\\x00"]),
    "b": ("bool", [True, False, True]),
    "d": ("date", [datetime.date(1, 1, 1), datetime.date(2024, 2, 29),
                   datetime.date(9999, 12, 31)]),
    "tm": ("time", [datetime.time(0, 0), datetime.time(12, 30, 1, 5),
                    datetime.time(23, 59, 59, 999999)]),
    "ts": ("timestamp", [datetime.datetime(1999, 12, 31, 23, 59, 59, 1),
                         datetime.datetime(2000, 1, 1), datetime.datetime(2038, 1, 19)]),
    "tz": ("timestamptz", [datetime.datetime(1999, 12, 31, 23, 59, 59, 1, UTC),
                           datetime.datetime(2000, 1, 1, tzinfo=UTC),
                           datetime.datetime(2038, 1, 19, tzinfo=UTC)]),
    "iv": ("interval", [datetime.timedelta(days=-3, seconds=7), datetime.timedelta(0),
                        datetime.timedelta(days=30, microseconds=1)]),
    "u": ("uuid", [uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-1234-567812345678"),
                   uuid.UUID(int=2**128 - 1)]),
    "j": ("json", [{"a": [1, None]}, [], "text"]),
    "jb": ("jsonb", [{"a": [1, None], "ü": "\n"}, [1], 7]),
    "ia": ("int4[]", [[], [1, None, 3], [[1, 2], [3, 4]]]),
    "ta": ("text[]", [["a,b", "{}", '"'], [None], ["NULL", ""]]),
    "na": ("numeric[]", [[decimal.Decimal("1.5")], [], [None]]),
}


def types_round_trip():
    columns = ", ".join(f"{name} {sql}" for name, (sql, _) in TYPES.items())
    with connect() as conn:
        table(conn, "py_types", f"id int8 primary key, {columns}")
        names = ", ".join(TYPES)
        for form, rows_from in (("%s", 0), ("%b", 10), ("%t", 20)):
            marks = ", ".join([form] * len(TYPES))
            for i in range(3):
                values = [values[i] for _, values in TYPES.values()]
                values = [
                    Json(v) if name == "j" else Jsonb(v) if name == "jb" else v
                    for name, v in zip(TYPES, values)
                ]
                conn.execute(
                    f"insert into py_types (id, {names}) values ({form}, {marks})",
                    [rows_from + i, *values],
                )
            conn.execute("insert into py_types (id) values (%s)", [rows_from + 3])
        for binary in (False, True):
            for rows_from in (0, 10, 20):
                for i in range(4):
                    row = conn.execute(
                        f"select {names} from py_types where id = %s", [rows_from + i],
                        binary=binary,
                    ).fetchone()
                    for (name, (_, values)), found in zip(TYPES.items(), row):
                        expected = values[i] if i < 3 else None
                        equal(found, expected, f"{name} {rows_from} {i} binary={binary}")
            rows = conn.execute(
                f"select {names} from py_types where id < 10 order by id", binary=binary
            ).fetchall()
            expected = [tuple(values[i] for _, values in TYPES.values()) for i in range(3)]
            equal(rows, [*expected, (None,) * len(TYPES)], f"gather binary={binary}")


def parameters_in_every_place():
    with connect() as conn:
        table(conn, "py_params", "id int8 primary key, name text, score float8")
        conn.execute("insert into py_params select g, 'n' || g, g / 2.0 "
                     "from generate_series(1, 30) g")
        found = conn.execute("select name from py_params where id = %s", [7]).fetchall()
        equal(found, [("n7",)])
        found = conn.execute(
            "select id from py_params where id = any(%s) order by id", [[3, 4, 5, 99]]
        ).fetchall()
        equal(found, [(3,), (4,), (5,)])
        found = conn.execute(
            "select id from py_params where score > %s order by id limit %s offset %s",
            [5.0, 3, 1],
        ).fetchall()
        equal(found, [(12,), (13,), (14,)])
        found = conn.execute("select %s::text, %s::int, %s::bool", [None, 3, True]).fetchone()
        equal(found, (None, 3, True))
        found = conn.execute(
            "select count(*), sum(score) from py_params where name like %s", ["n1%"]
        ).fetchone()
        equal(found, (11, sum(g / 2 for g in [1, *range(10, 20)])))
        cur = conn.cursor(row_factory=dict_row)
        cur.execute("select id, name from py_params where id = %(id)s", {"id": 2})
        equal(cur.fetchone(), {"id": 2, "name": "n2"})
        cur = conn.execute("update py_params set score = score + %s where id <= %s", [1.0, 10])
        equal((cur.rowcount, cur.statusmessage), (10, "UPDATE 10"))
        cur = conn.execute("delete from py_params where id > %s returning id", [28])
        equal(sorted(cur.fetchall()), [(29,), (30,)])
        client = psycopg.ClientCursor(conn)
        client.execute("select name from py_params where id = %s and name = %s", [3, "n3"])
        equal(client.fetchall(), [("n3",)])


def description_of_columns():
    with connect() as conn:
        table(conn, "py_columns", "id int8 primary key, name varchar(20), price numeric(10,2)")
        for text in ("select * from py_columns where id = 1", "select * from py_columns"):
            found = conn.execute(text).description
            equal([(c.name, c.type_code) for c in found],
                  [("id", 20), ("name", 1043), ("price", 1700)])
            equal((found[1].display_size, found[2].precision, found[2].scale), (20, 10, 2), text)


def prepared_statements():
    with connect(prepare_threshold=0) as conn:
        conn.prepared_max = 5
        table(conn, "py_prepared", "id int8 primary key, name text")
        for i in range(60):
            conn.execute("insert into py_prepared values (%s, %s)", [i, f"n{i}"])
        for i in range(60):
            # More texts than prepared_max: old ones are deallocated.
            found = conn.execute(
                f"select id, name, {i % 12} from py_prepared where id = %s", [i]
            ).fetchall()
            equal(found, [(i, f"n{i}", i % 12)])
            found = conn.execute(
                f"select count(*) from py_prepared where id <> %s and {i % 7} < 7", [i]
            ).fetchone()
            equal(found, (59,))
        if PLAIN:
            # Through the proxy the view shows what a shared server connection holds.
            held = conn.execute("select count(*) from pg_prepared_statements").fetchone()[0]
            assert held <= 6, f"{held} prepared statements are left"
        conn.execute("deallocate all")
        equal(conn.execute("select name from py_prepared where id = 4").fetchone(), ("n4",))
        conn.execute("discard all")
        equal(conn.execute("select name from py_prepared where id = 5").fetchone(), ("n5",))
    with connect(prepare_threshold=2, autocommit=False) as conn:
        for i in range(10):
            with conn.transaction():
                equal(conn.execute("select name from py_prepared where id = %s", [i]).fetchone(),
                      (f"n{i}",))
        conn.execute("select name from py_prepared where id = %s", [3], prepare=True)
        conn.rollback()
        conn.execute("select name from py_prepared where id = %s", [4], prepare=True)


def prepared_across_ddl():
    """A statement never answers with other types than it was described with."""

    def prepare(conn, name):
        done = conn.pgconn.prepare(name, b"select * from py_ddl where id = $1")
        equal(done.error_message, b"")
        found = conn.pgconn.describe_prepared(name)
        equal(found.error_message, b"")
        return [found.ftype(i) for i in range(found.nfields)]

    def execute(conn, name, key):
        found = conn.pgconn.exec_prepared(name, [str(key).encode()], None, 1)
        if found.status == pq.ExecStatus.FATAL_ERROR:
            return found.error_field(pq.DiagnosticField.SQLSTATE)
        return found.get_value(0, 1)

    whole, real = struct.pack("!i", 7), struct.pack("!f", 7)
    with connect() as first, connect() as second, connect() as other:
        table(other, "py_ddl", "id int8 primary key, v int4")
        other.execute("insert into py_ddl select g, 7 from generate_series(1, 8) g")
        for conn in (first, second):
            equal(prepare(conn, b"s"), [20, 23])
            equal([execute(conn, b"s", i) for i in range(1, 9)], [whole] * 8)
        other.execute("alter table py_ddl alter v type float4")
        for conn in (first, second):
            equal([execute(conn, b"s", i) for i in range(1, 9)], [b"0A000"] * 8)
        other.execute("alter table py_ddl alter v type int4")
        for conn in (second, first):
            equal([execute(conn, b"s", i) for i in range(1, 9)], [whole] * 8)
        other.execute("alter table py_ddl alter v type float4")
        with connect() as third:
            equal(prepare(third, b"s"), [20, 700])
            equal([execute(third, b"s", i) for i in range(1, 9)], [real] * 8)
        equal(prepare(first, b"again"), [20, 700])
        equal([execute(first, b"again", i) for i in range(1, 9)], [real] * 8)
        equal([execute(first, b"s", i) for i in range(1, 9)], [b"0A000"] * 8)
        # Another table of that name.
        table(other, "py_ddl", "id int8 primary key, v text")
        other.execute("insert into py_ddl select g, 'x' from generate_series(1, 8) g")
        equal([execute(first, b"again", i) for i in range(1, 9)], [b"0A000"] * 8)
        with connect() as third:
            equal(prepare(third, b"s"), [20, 25])
            equal([execute(third, b"s", i) for i in range(1, 9)], [b"x"] * 8)


def pipeline():
    with connect() as conn:
        table(conn, "py_pipeline", "id int8 primary key, name text")
        with conn.pipeline():
            for i in range(300):
                conn.execute("insert into py_pipeline values (%s, %s)", [i, f"n{i}"])
            cursors = [
                conn.execute("select name from py_pipeline where id = %s", [i])
                for i in range(300)
            ]
            total = conn.execute("select count(*), sum(id) from py_pipeline")
            equal([c.fetchone() for c in cursors], [(f"n{i}",) for i in range(300)])
            equal(total.fetchone(), (300, 44850))
        # An error in the middle: what follows up to the Sync is aborted.
        before = after = None
        try:
            with conn.pipeline() as pipe:
                before = conn.execute("select name from py_pipeline where id = 1")
                pipe.sync()
                broken = conn.execute("insert into py_pipeline values (1, 'again')")
                after = conn.execute("select name from py_pipeline where id = 2")
                pipe.sync()
                broken.fetchall()
            raise AssertionError("no error from the pipeline")
        except errors.UniqueViolation as error:
            equal(error.diag.sqlstate, "23505")
        equal(before.fetchone(), ("n1",))
        try:
            after.fetchone()
            raise AssertionError("a statement after the error ran")
        except (errors.PipelineAborted, psycopg.ProgrammingError):
            pass
        equal(conn.execute("select count(*) from py_pipeline").fetchone(), (300,))
        # An explicit transaction in a pipeline, rolled back as a whole.
        try:
            with conn.pipeline(), conn.transaction():
                for i in range(1000, 1030):
                    conn.execute("insert into py_pipeline values (%s, 'x')", [i])
                conn.execute("insert into py_pipeline values (5, 'twice')")
        except errors.UniqueViolation:
            pass
        equal(conn.execute("select count(*) from py_pipeline").fetchone(), (300,))
        # executemany uses a pipeline of its own.
        cur = conn.cursor()
        cur.executemany("update py_pipeline set name = %s where id = %s",
                        [(f"m{i}", i) for i in range(100)])
        equal(cur.rowcount, 100)
        equal(conn.execute("select count(*) from py_pipeline where name like 'm%'").fetchone(),
              (100,))


def pipeline_without_sync_is_one_transaction():
    with connect() as conn:
        table(conn, "py_implicit", "id int8 primary key, name text")
        try:
            with conn.pipeline():
                for i in range(20):
                    conn.execute("insert into py_implicit values (%s, 'x')", [i])
                conn.execute("insert into py_implicit values (3, 'twice')")
            raise AssertionError("no error")
        except errors.UniqueViolation:
            pass
        equal(conn.execute("select count(*) from py_implicit").fetchone(), (0,))


COUNT = 10_000


def copy_text_and_binary():
    rows = [
        (i, None if i % 10 == 0 else f"tab\t line\n back\\ é {i}", i * 0.5, i % 3 == 0)
        for i in range(COUNT)
    ]
    numbers = sum(i for i in range(COUNT))
    lengths = sum(len(name) for _, name, _, _ in rows if name is not None)
    checksum = ("select count(*), sum(id), count(name), sum(length(name)), sum(score), "
                "count(*) filter (where flag) from py_copy")
    expected = (COUNT, numbers, COUNT - COUNT // 10, lengths, numbers / 2, (COUNT + 2) // 3)
    with connect() as conn:
        for binary in (False, True):
            table(conn, "py_copy", "id int8 primary key, name text, score float8, flag bool")
            form = "(format binary)" if binary else ""
            cur = conn.cursor()
            with cur.copy(f"copy py_copy from stdin {form}") as copy:
                copy.set_types(["int8", "text", "float8", "bool"])
                for row in rows:
                    copy.write_row(row)
            equal(cur.rowcount, COUNT, "rowcount of COPY FROM")
            equal(conn.execute(checksum).fetchone(), expected, f"binary={binary}")
            found = []
            with cur.copy(f"copy py_copy to stdout {form}") as copy:
                copy.set_types(["int8", "text", "float8", "bool"])
                found.extend(copy.rows())
            equal(len(found), COUNT)
            equal(sorted(found, key=lambda row: row[0]), rows, "rows of COPY TO")
            found = []
            query = "select name, id from py_copy where id % 1000 = 1 order by id desc"
            with cur.copy(f"copy ({query}) to stdout {form}") as copy:
                copy.set_types(["text", "int8"])
                found.extend(copy.rows())
            equal(found, [(rows[i][1], i) for i in range(9001, 0, -1000)])
        # A failing COPY leaves nothing and the connection works.
        try:
            with conn.cursor().copy("copy py_copy (id, name) from stdin") as copy:
                for i in range(COUNT, COUNT + 500):
                    copy.write_row((i, "x"))
                copy.write_row((1, "twice"))
            raise AssertionError("no error")
        except errors.UniqueViolation as error:
            equal(error.diag.constraint_name, "py_copy_pkey")
        equal(conn.execute(checksum).fetchone(), expected)
        try:
            with conn.cursor().copy("copy py_copy (id, name) from stdin") as copy:
                copy.write_row((COUNT, "x"))
                raise KeyError("the client gives up")
        except KeyError:
            pass
        equal(conn.execute(checksum).fetchone(), expected)
        with conn.transaction(force_rollback=True):
            with conn.cursor().copy("copy py_copy (id, name) from stdin") as copy:
                for i in range(COUNT, COUNT + 500):
                    copy.write_row((i, "x"))
            equal(conn.execute("select count(*) from py_copy").fetchone(), (COUNT + 500,))
        equal(conn.execute(checksum).fetchone(), expected)


def server_side_cursors():
    with connect(autocommit=False) as conn:
        conn.autocommit = True
        table(conn, "py_cursor", "id int8 primary key, name text")
        conn.execute("insert into py_cursor select g, 'n' || g from generate_series(1, 500) g")
        conn.autocommit = False
        with conn.cursor(name="forward") as cur:
            cur.itersize = 70
            cur.execute("select id from py_cursor order by id")
            equal(cur.fetchone(), (1,))
            equal(cur.fetchmany(3), [(2,), (3,), (4,)])
            equal([row[0] for row in cur], list(range(5, 501)))
        conn.commit()
        with conn.cursor(name="with param") as cur:
            cur.execute("select name from py_cursor where id = %s", [77])
            equal(cur.fetchall(), [("n77",)])
            equal(cur.description[0].name, "name")
        conn.commit()
        with conn.cursor(name="scroll", scrollable=True) as cur:
            cur.execute("select id from py_cursor where id > %s order by id", [0])
            cur.scroll(100)
            equal(cur.fetchone(), (101,))
            cur.scroll(-50)
            equal(cur.fetchone(), (52,))
            cur.scroll(499, mode="absolute")
            equal(cur.fetchmany(5), [(500,)])
            cur.scroll(0, mode="absolute")
            equal(cur.fetchone(), (1,))
        conn.commit()
        cur = conn.cursor(name="hold", withhold=True)
        cur.execute("select id from py_cursor order by id")
        equal(cur.fetchmany(2), [(1,), (2,)])
        conn.commit()
        with psycopg.connect(URL, autocommit=True) as other:
            other.execute("delete from py_cursor where id = 400")
        equal(len(cur.fetchall()), 498, "rows of a held cursor after commit")
        equal(conn.execute("select count(*) from py_cursor").fetchone(), (499,))
        cur.close()
        conn.commit()
        cur = conn.cursor(name="hold one", withhold=True)
        cur.execute("select id from py_cursor where id = 9")
        conn.commit()
        equal(cur.fetchall(), [(9,)])
        cur.close()
        conn.rollback()
    with connect(autocommit=True) as conn:
        # Without a transaction, only a held cursor lives beyond its statement.
        try:
            with conn.cursor(name="outside") as cur:
                cur.execute("select id from py_cursor")
            raise AssertionError("no error")
        except errors.NoActiveSqlTransaction:
            pass
        cur = conn.cursor(name="held", withhold=True)
        cur.execute("select id from py_cursor order by id")
        equal(len(cur.fetchall()), 499)
        cur.close()


def transactions():
    with connect() as conn:
        table(conn, "py_trans", "id int8 primary key, name text")

        def count():
            return conn.execute("select count(*) from py_trans").fetchone()[0]

        def insert(key):
            conn.execute("insert into py_trans values (%s, 'x')", [key])

        with conn.transaction():
            insert(1)
            with conn.transaction():
                insert(2)
                try:
                    with conn.transaction():
                        insert(3)
                        insert(4)
                        insert(1)
                except errors.UniqueViolation:
                    pass
                equal(count(), 2, "after a failed savepoint")
                with conn.transaction() as inner:
                    insert(5)
                    insert(6)
                    raise psycopg.Rollback(inner)
                insert(7)
            equal(count(), 3)
        equal(count(), 3)
        with conn.transaction() as outer:
            insert(10)
            with conn.transaction():
                insert(11)
                raise psycopg.Rollback(outer)
        equal(count(), 3)
        equal(conn.info.transaction_status.name, "IDLE")
        try:
            with conn.transaction():
                conn.execute("select 1 / 0")
        except errors.DivisionByZero:
            pass
        try:
            with conn.transaction():
                try:
                    conn.execute("select 1 / 0")
                except errors.DivisionByZero:
                    equal(conn.info.transaction_status.name, "INERROR")
                conn.execute("select 1")
            raise AssertionError("no error")
        except errors.InFailedSqlTransaction:
            pass
        conn.autocommit = False
        conn.read_only = True
        try:
            insert(20)
            raise AssertionError("no error")
        except errors.ReadOnlySqlTransaction:
            conn.rollback()
        equal(count(), 3)
        conn.rollback()
        conn.read_only = None
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        equal(conn.execute("show transaction_isolation").fetchone(), ("repeatable read",))
        equal(count(), 3)
        conn.rollback()


def cancel():
    with connect() as conn:
        table(conn, "py_cancel", "id int8 primary key")
        conn.execute("insert into py_cancel select generate_series(1, 30)")
        for text in (
            "select pg_sleep(25)",
            "select pg_sleep(25) from py_cancel where id = 3",
            "select id, pg_sleep(25) from py_cancel order by id",
        ):
            for ask in (conn.cancel, conn.cancel_safe):
                ended = threading.Event()

                refused = []

                def interrupt():
                    # A cancel that comes before the statement is lost, so ask until it ends.
                    while not ended.wait(0.2):
                        try:
                            ask()
                        except psycopg.Error as error:
                            refused.append(repr(error))

                thread = threading.Thread(target=interrupt)
                start = time.monotonic()
                thread.start()
                try:
                    conn.execute(text)
                    raise AssertionError(f"not cancelled: {text}")
                except errors.QueryCanceled as error:
                    equal(error.diag.sqlstate, "57014")
                finally:
                    ended.set()
                    thread.join()
                took = time.monotonic() - start
                assert took < 10, f"{text}: cancelled only after {took} s"
                for _ in range(20):
                    # The last request may still hit this connection.
                    try:
                        equal(conn.execute("select count(*) from py_cancel").fetchone(), (30,))
                        break
                    except errors.QueryCanceled:
                        pass
                equal(refused, [], f"errors of {ask.__name__}")
        conn.execute("set statement_timeout = 200")
        try:
            conn.execute("select pg_sleep(25)")
            raise AssertionError("no timeout")
        except errors.QueryCanceled as error:
            assert "statement timeout" in error.diag.message_primary, error
        conn.execute("reset statement_timeout")


def notices():
    with connect() as conn:
        seen = []
        conn.add_notice_handler(lambda diag: seen.append((diag.severity, diag.message_primary)))
        conn.execute("do $$ begin raise notice 'hello %', 7; raise warning 'careful'; end $$")
        equal(seen, [("NOTICE", "hello 7"), ("WARNING", "careful")])
        seen.clear()
        conn.execute("drop table if exists py_not_there")
        equal(seen, [("NOTICE", 'table "py_not_there" does not exist, skipping')])
        seen.clear()
        conn.execute("set client_min_messages = warning")
        conn.execute("drop table if exists py_not_there")
        equal(seen, [])


def listen_and_notify():
    with connect() as listener, connect() as sender:
        listener.execute("listen py_channel")
        with sender.transaction():
            sender.execute("notify py_channel, 'one'")
            sender.execute("select pg_notify('py_channel', %s)", ["two"])
        with sender.transaction() as transaction:
            sender.execute("notify py_channel, 'never'")
            raise psycopg.Rollback(transaction)
        sender.execute("notify py_other, 'x'")
        sender.execute("notify py_channel, 'three'")
        found = [n.payload for n in listener.notifies(timeout=10, stop_after=3)]
        equal(found, ["one", "two", "three"])
        # It works for other statements meanwhile, and stays subscribed.
        equal(listener.execute("select 1").fetchone(), (1,))
        sender.execute("notify py_channel, 'four'")
        notice = next(listener.notifies(timeout=10, stop_after=1))
        equal((notice.channel, notice.payload), ("py_channel", "four"))
        listener.execute("unlisten *")
        sender.execute("notify py_channel, 'five'")
        equal(list(listener.notifies(timeout=0.3)), [])


def executemany_returning():
    with connect() as conn:
        table(conn, "py_many", "id bigserial primary key, name text")
        cur = conn.cursor()
        cur.executemany(
            "insert into py_many (name) values (%s) returning id, name",
            [(f"n{i}",) for i in range(50)],
            returning=True,
        )
        found = []
        while True:
            found.append(cur.fetchone())
            if not cur.nextset():
                break
        equal([name for _, name in found], [f"n{i}" for i in range(50)])
        equal(len({key for key, _ in found}), 50)
        cur.execute("insert into py_many (name) values ('a'), ('b'), ('c') returning id")
        keys = [row[0] for row in cur.fetchall()]
        equal(keys, sorted(keys))
        cur = conn.execute("select 1; select 2, 3; insert into py_many (name) values ('z')")
        equal(cur.fetchall(), [(1,)])
        assert cur.nextset()
        equal(cur.fetchall(), [(2, 3)])
        assert cur.nextset()
        equal(cur.statusmessage, "INSERT 0 1")
        assert cur.nextset() is None


def error_fields():
    with connect() as conn:
        table(conn, "py_errors", "id int8 primary key, email text not null, "
              "age int constraint adult check (age >= 18), unique (id, email)")
        conn.execute("insert into py_errors values (1, 'a', 20), (2, 'b', 20)")

        def fails(text, kind, *parameters):
            try:
                conn.execute(text, parameters)
            except kind as error:
                return error.diag
            raise AssertionError(f"no error: {text}")

        diag = fails("insert into py_errors values (%s, 'x', 30)", errors.UniqueViolation, 1)
        equal((diag.sqlstate, diag.constraint_name, diag.table_name, diag.schema_name,
               diag.message_detail),
              ("23505", "py_errors_pkey", "py_errors", "public",
               "Key (id)=(1) already exists."))
        diag = fails("insert into py_errors values (3, 'x', 30), (4, 'y', 30), (2, 'z', 30)",
                     errors.UniqueViolation)
        equal(diag.constraint_name, "py_errors_pkey")
        diag = fails("insert into py_errors values (5, 'x', 3)", errors.CheckViolation)
        equal((diag.sqlstate, diag.constraint_name), ("23514", "adult"))
        diag = fails("insert into py_errors values (5, null, 30)", errors.NotNullViolation)
        equal((diag.sqlstate, diag.column_name, diag.table_name), ("23502", "email", "py_errors"))
        diag = fails("select nonsense from py_errors", errors.UndefinedColumn)
        equal((diag.sqlstate, diag.statement_position), ("42703", "8"))
        diag = fails("select * from py_errors where id = 1 and nonsense", errors.UndefinedColumn)
        equal(diag.statement_position, "42")
        diag = fails("selec 1", errors.SyntaxError)
        equal((diag.sqlstate, diag.severity, diag.statement_position), ("42601", "ERROR", "1"))
        diag = fails("select * from py_absent", errors.UndefinedTable)
        equal((diag.sqlstate, diag.statement_position), ("42P01", "15"))
        diag = fails("select 'x'::int", errors.InvalidTextRepresentation)
        equal(diag.sqlstate, "22P02")
        diag = fails("select id from py_errors where email = %s and 1 / (id - id) = 1",
                     errors.DivisionByZero, "a")
        equal(diag.sqlstate, "22012")
        equal(conn.execute("select count(*) from py_errors").fetchone(), (2,))


def enum_and_composite():
    from psycopg.types.composite import CompositeInfo, register_composite
    from psycopg.types.enum import EnumInfo, register_enum

    with connect() as conn:
        conn.execute("drop table if exists py_enum")
        conn.execute("drop type if exists py_mood, py_pair")
        conn.execute("create type py_mood as enum ('sad', 'ok')")
        conn.execute("create type py_pair as (a int, b text)")
        table(conn, "py_enum", "id int8 primary key, mood py_mood, pair py_pair, moods py_mood[]")
        mood = EnumInfo.fetch(conn, "py_mood")
        register_enum(mood, conn)
        pair = CompositeInfo.fetch(conn, "py_pair")
        register_composite(pair, conn)
        for i in range(12):
            conn.execute(
                "insert into py_enum values (%s, %s, %s, %s)",
                [i, mood.enum.ok, pair.python_type(i, f"b {i}"), [mood.enum.sad, mood.enum.ok]],
            )
        for binary in (False, True):
            for i in range(12):
                found = conn.execute("select mood, pair, moods from py_enum where id = %s", [i],
                                     binary=binary).fetchone()
                equal(found, (mood.enum.ok, (i, f"b {i}"), [mood.enum.sad, mood.enum.ok]),
                      f"row {i} binary={binary}")
            found = conn.execute("select mood, pair from py_enum order by id",
                                 binary=binary).fetchall()
            equal(found, [(mood.enum.ok, (i, f"b {i}")) for i in range(12)])


def reference_tables():
    with connect() as conn:
        table(conn, "py_orders", "id int8 primary key, country int")
        conn.execute("drop table if exists py_country")
        conn.execute("create table py_country (id int primary key, name text)")
        conn.execute(reference("py_country"))
        conn.execute("insert into py_country values (1, 'de'), (2, 'fr')")
        conn.execute("insert into py_orders select g, 1 + g % 2 from generate_series(1, 20) g")
        found = conn.execute(
            "select c.name, count(*) from py_orders o join py_country c on c.id = o.country "
            "group by 1 order by 1"
        ).fetchall()
        equal(found, [("de", 10), ("fr", 10)])


async def is_running(text):
    """Waits until a server runs this statement."""
    seen = "select count(*) from pg_stat_activity where state = 'active' and query = %s"
    deadline = time.monotonic() + 20
    async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as watcher:
        while (await (await watcher.execute(seen, [text])).fetchone()) == (0,):
            assert time.monotonic() < deadline, f"{text} does not run"


async def asynchronous():
    conn = await psycopg.AsyncConnection.connect(URL, autocommit=True)
    async with conn:
        await conn.execute("drop table if exists py_async")
        await conn.execute("create table py_async (id int8 primary key, name text)")
        await conn.execute(distribute("py_async", "id"))
        async with conn.pipeline():
            for i in range(50):
                await conn.execute("insert into py_async values (%s, %s)", [i, f"n{i}"])
        async with conn.transaction():
            cur = await conn.execute("select count(*) from py_async")
            equal(await cur.fetchone(), (50,))
        task = asyncio.create_task(conn.execute("select pg_sleep(25)"))
        await is_running("select pg_sleep(25)")
        task.cancel()
        try:
            await task
            raise AssertionError("not cancelled")
        except (asyncio.CancelledError, errors.QueryCanceled):
            pass
        cur = await conn.execute("select name from py_async where id = %s", [3])
        equal(await cur.fetchone(), ("n3",))
        rows = []
        async with conn.cursor().copy("copy py_async to stdout") as copy:
            async for row in copy.rows():
                rows.append(row)
        equal(len(rows), 50)
        cur = conn.cursor()
        found = [row async for row in cur.stream("select id from py_async order by id")]
        equal(found, [(i,) for i in range(50)])


run([
    types_round_trip,
    parameters_in_every_place,
    description_of_columns,
    prepared_statements,
    prepared_across_ddl,
    pipeline,
    pipeline_without_sync_is_one_transaction,
    copy_text_and_binary,
    server_side_cursors,
    transactions,
    cancel,
    notices,
    listen_and_notify,
    executemany_returning,
    error_fields,
    enum_and_composite,
    reference_tables,
    asynchronous,
])
