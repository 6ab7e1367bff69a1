"""psycopg 3 against DATABASE_URL: many sessions at once, their settings, and large values."""

import threading
import time

import psycopg
from psycopg import errors
from psycopg_pool import ConnectionPool

from common import PLAIN, URL, equal, reference, run
from psycopg_tables import connect, table


def pool_of_threads():
    with connect() as conn:
        table(conn, "py_pool", "id int8 primary key, worker int, name text")
    failures = []
    with ConnectionPool(URL, min_size=4, max_size=10, open=True, timeout=60) as pool:

        def work(worker):
            try:
                for i in range(20):
                    key = worker * 1000 + i
                    with pool.connection() as conn:
                        conn.execute("insert into py_pool values (%s, %s, %s)",
                                     [key, worker, f"n{key}"])
                        found = conn.execute("select name from py_pool where id = %s", [key])
                        equal(found.fetchone(), (f"n{key}",))
                        if i % 5 == 0:
                            found = conn.execute(
                                "select count(*) from py_pool where worker = %s", [worker]
                            )
                            equal(found.fetchone(), (i + 1,))
            except Exception as error:
                failures.append((worker, repr(error)))

        threads = [threading.Thread(target=work, args=[i]) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    equal(failures, [])
    with connect() as conn:
        equal(conn.execute("select count(*), count(distinct worker) from py_pool").fetchone(),
              (400, 20))


def hot_rows():
    """Statements that write the same rows of every shard at once all end, and all count."""
    with connect() as conn:
        table(conn, "py_hot", "id int8 primary key, n int default 0")
        conn.execute("insert into py_hot (id) select generate_series(1, 12)")
        conn.execute("drop table if exists py_hot_copy")
        conn.execute("create table py_hot_copy (id int primary key, n int default 0)")
        conn.execute(reference("py_hot_copy"))
        conn.execute("insert into py_hot_copy (id) values (1), (2)")
    failures = []
    limit = time.monotonic() + 100

    def retry(conn, *texts):
        while time.monotonic() < limit:
            try:
                with conn.transaction():
                    for text in texts:
                        conn.execute(text)
                return
            except errors.DeadlockDetected:
                pass
        failures.append(f"out of time: {texts}")

    def work(worker):
        try:
            with connect(options="-c statement_timeout=20s") as conn:
                for i in range(6):
                    retry(conn, "update py_hot set n = n + 1")
                    retry(conn, "update py_hot_copy set n = n + 1 where id = 1")
                    order = (1, 2) if worker % 2 else (2, 1)
                    retry(conn, *(f"update py_hot set n = n + 1 where id = {i}" for i in (3, 5, 9)),
                          *(f"update py_hot_copy set n = n + 1 where id = {i}" for i in order))
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=[i], daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
    equal(failures, [])
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    with connect() as conn:
        found = conn.execute("select id, n from py_hot order by id").fetchall()
        equal(found, [(i, 48 if i in (3, 5, 9) else 24) for i in range(1, 13)])
        found = conn.execute("select id, n from py_hot_copy order by id").fetchall()
        equal(found, [(1, 48), (2, 24)])


def deadlock():
    """Two transactions that wait for each other: one fails, the other goes on."""
    with connect() as conn:
        table(conn, "py_dead", "id int8 primary key, n int default 0")
        conn.execute("insert into py_dead (id) select generate_series(1, 12)")
    # Some of these pairs lie on two shards.
    for one, two in ((1, 2), (2, 3), (3, 4)):
        with connect() as first, connect() as second:
            update = "update py_dead set n = n + 1 where id = %s"
            first.execute("begin")
            second.execute("begin")
            first.execute(update, [one])
            second.execute(update, [two])
            ended = []

            def wait_for(conn, key):
                try:
                    conn.execute("set local statement_timeout = '20s'")
                    conn.execute(update, [key])
                    ended.append("went on")
                    conn.execute("commit")
                except psycopg.Error as error:
                    ended.append(error.sqlstate)
                    conn.execute("rollback")

            threads = [threading.Thread(target=wait_for, args=pair, daemon=True)
                       for pair in ((first, two), (second, one))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            equal(sorted(ended), ["40P01", "went on"], f"keys {one} and {two}")


def settings():
    """Settings hold on every shard: what a row looks like must not depend on its place."""
    with connect() as conn:
        table(conn, "py_settings", "id int8 primary key, at timestamptz, d float8, b bytea, t text")
        conn.execute("insert into py_settings select g, '2024-07-01 12:00+00', 0.1, '\\x00ff', 'é' "
                     "from generate_series(1, 12) g")
    texts = ["select at::text, d::text, b::text, t, (at::date - date '2024-01-01')::text "
             f"from py_settings where id = {i}" for i in range(1, 13)]
    texts.append("select at::text, d::text, b::text, t, (at::date - date '2024-01-01')::text "
                 "from py_settings")

    def looks(conn, expected):
        for text in texts:
            for row in conn.execute(text).fetchall():
                equal(row, expected, text)

    plain = ("2024-07-01 12:00:00+00", "0.1", "\\x00ff", "é", "182")
    other = ("01/07/2024 22:00:00 AEST", "0.1", "\\000\\377",
             "é", "182")
    with connect(options="-c extra_float_digits=1") as conn:
        looks(conn, plain)
        conn.execute("set timezone = 'Australia/Sydney'")
        conn.execute("set datestyle = 'SQL, DMY'")
        conn.execute("set bytea_output = escape")
        looks(conn, other)
        equal(conn.info.parameter_status("DateStyle"), "SQL, DMY")
        equal(conn.info.parameter_status("TimeZone"), "Australia/Sydney")
        with connect() as neighbour:
            looks(neighbour, plain)
        conn.execute("reset all")
        conn.execute("set timezone = 'UTC'")
        looks(conn, plain)
        try:
            with conn.transaction():
                conn.execute("set local timezone = 'Australia/Sydney'")
                conn.execute("set local datestyle = 'SQL, DMY'")
                conn.execute("set bytea_output = escape")
                looks(conn, other)
                raise KeyError
        except KeyError:
            pass
        looks(conn, plain)
    options = "-c timezone=Australia/Sydney -c datestyle=SQL,DMY -c bytea_output=escape"
    with psycopg.connect(URL, options=options, application_name="checks") as conn:
        looks(conn, other)
        equal(conn.execute("show application_name").fetchone(), ("checks",))
    if PLAIN:
        return
    # Text keys are hashed as the client's bytes: the proxy speaks UTF8 only.
    try:
        psycopg.connect(URL, client_encoding="latin1").close()
    except psycopg.OperationalError as error:
        assert 'client_encoding "latin1" is not supported' in str(error), error
    else:
        raise AssertionError("latin1 is refused")

def sizes():
    """Large values, many parameters, long texts, wide and many rows."""
    large = "0123456789abcdef" * 1_000_000
    with connect() as conn:
        table(conn, "py_sizes", "id int8 primary key, t text")
        for i in range(3):
            conn.execute("insert into py_sizes values (%s, %s)", [i, large])
            found = conn.execute("select t from py_sizes where id = %s", [i]).fetchone()
            assert found == (large,), "the large value came back changed"
        equal(conn.execute("select sum(length(t)), count(distinct md5(t)) from py_sizes").fetchone(),
              (3 * len(large), 1))
        found = conn.execute("select t from py_sizes order by id", binary=True).fetchall()
        assert found == [(large,)] * 3, "the large values came back changed"
        keys = list(range(1000, 11_000))
        marks = ", ".join(["(%s, %s)"] * len(keys))
        values = [value for key in keys for value in (key, f"n{key}")]
        equal(conn.execute(f"insert into py_sizes values {marks}", values).rowcount, len(keys))
        marks = ", ".join(["%s"] * len(keys))
        found = conn.execute(f"select count(*), sum(id) from py_sizes where id in ({marks})", keys)
        equal(found.fetchone(), (len(keys), sum(keys)))
        client = psycopg.ClientCursor(conn)
        values = [value for key in keys for value in (key + 20_000, f"m{key}")]
        marks = ", ".join(["(%s, %s)"] * len(keys))
        client.execute(f"insert into py_sizes values {marks} returning id", values)
        equal([row[0] for row in client.fetchall()], [key + 20_000 for key in keys])
        columns = ", ".join(f"id + {i} as c{i}" for i in range(1000))
        wide = conn.execute(f"select {columns} from py_sizes where id in (1000, 1001, 1002) "
                            "order by id").fetchall()
        equal(wide, [tuple(range(key, key + 1000)) for key in (1000, 1001, 1002)])
        found = [row[0] for row in conn.cursor().stream(
            "select id from py_sizes where id >= 1000 order by id")]
        equal(found, keys + [key + 20_000 for key in keys])
        # A client that stops reading in the middle.
        for row in conn.cursor().stream("select id, t from py_sizes order by id desc"):
            equal(row[0], 30_999)
            break
        equal(conn.execute("select count(*) from py_sizes").fetchone(), (20_003,))


run([
    pool_of_threads,
    hot_rows,
    deadlock,
    settings,
    sizes,
])
