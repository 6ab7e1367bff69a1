"""asyncpg against DATABASE_URL."""

import asyncio
import datetime
import decimal
import uuid

import asyncpg

from common import URL, distribute, equal, run


async def connect(**options):
    """A connection."""
    return await asyncpg.connect(URL, timeout=10, **options)


async def table(conn, name, columns):
    """Makes a table anew that is distributed by id."""
    await conn.execute(f"drop table if exists {name} cascade")
    await conn.execute(f"create table {name} ({columns})")
    await conn.execute(distribute(name, "id"))


async def prepared_statements():
    conn = await connect()
    await table(conn, "ay_prepared", "id int8 primary key, name text, price numeric(10,2)")
    insert = await conn.prepare("insert into ay_prepared values ($1, $2, $3)")
    equal([t.name for t in insert.get_parameters()], ["int8", "text", "numeric"])
    for i in range(40):
        await insert.fetch(i, f"n{i}", decimal.Decimal(i) / 4)
    one = await conn.prepare("select name, price from ay_prepared where id = $1")
    equal([(a.name, a.type.name) for a in one.get_attributes()],
          [("name", "text"), ("price", "numeric")])
    for i in range(40):
        equal(tuple(await one.fetchrow(i)), (f"n{i}", decimal.Decimal(i) / 4))
    equal(await one.fetchrow(99), None)
    many = await conn.prepare("select count(*) n, sum(price) from ay_prepared where id < $1")
    equal([(a.name, a.type.name) for a in many.get_attributes()],
          [("n", "int8"), ("sum", "numeric")])
    equal(tuple(await many.fetchrow(4)), (4, decimal.Decimal("1.50")))
    equal(await many.fetchval(40), 40)
    equal(insert.get_statusmsg(), "INSERT 0 1")
    equal(len(await conn.fetch("explain select name from ay_prepared where id = 3")) > 0, True)
    # More texts than the cache of 100 holds.
    for i in range(150):
        equal(await conn.fetchval(f"select id + {i} from ay_prepared where id = $1", 3), 3 + i)
    await conn.close()


async def types_round_trip():
    conn = await connect()
    values = {
        "int2": [-32768, 7], "int4": [-(2**31), 7], "int8": [-(2**63), 7],
        "numeric": [decimal.Decimal("-123456789012345678.000000001"), decimal.Decimal(0)],
        "float4": [1.5, -0.25], "float8": [1e300, float("-inf")],
        "text": ["", "ü ✓"], "varchar(9)": ["x", "ninechars"], "bytea": [b"", bytes(range(256))],
        "bool": [True, False], "date": [datetime.date(1, 1, 1), datetime.date(9999, 12, 31)],
        "time": [datetime.time(0, 0), datetime.time(23, 59, 59, 999999)],
        "timestamp": [datetime.datetime(1970, 1, 1, 1, 2, 3, 4), datetime.datetime(2038, 1, 19)],
        "timestamptz": [datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc),
                        datetime.datetime(2038, 1, 19, 3, tzinfo=datetime.timezone.utc)],
        "interval": [datetime.timedelta(days=3, seconds=1), datetime.timedelta(0)],
        "uuid": [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)],
        "json": ['{"a": 1}', "null"], "jsonb": ['{"a": 1}', "[1, 2]"],
        "int8[]": [[], [1, None, 3]], "text[]": [["a,b", '"'], [None]],
        "int4range": [asyncpg.Range(1, 5), asyncpg.Range(empty=True)],
    }
    columns = ", ".join(f"c{i} {sql}" for i, sql in enumerate(values))
    names = ", ".join(f"c{i}" for i in range(len(values)))
    marks = ", ".join(f"${i + 2}" for i in range(len(values)))
    await table(conn, "ay_types", f"id int8 primary key, {columns}")
    for i in range(6):
        await conn.execute(f"insert into ay_types (id, {names}) values ($1, {marks})", i,
                           *[v[i % 2] for v in values.values()])
    await conn.execute("insert into ay_types (id) values (6)")
    expected = [tuple(v[i % 2] for v in values.values()) for i in range(6)]
    expected.append((None,) * len(values))
    for i in range(7):
        row = await conn.fetchrow(f"select {names} from ay_types where id = $1", i)
        equal(tuple(row), expected[i], f"row {i}")
    rows = await conn.fetch(f"select {names} from ay_types order by id")
    equal([tuple(row) for row in rows], expected)
    await conn.close()


async def enum_and_composite():
    conn = await connect()
    await conn.execute("drop table if exists ay_enum")
    await conn.execute("drop type if exists ay_pair, ay_mood, ay_small cascade")
    await conn.execute("create type ay_mood as enum ('sad', 'ok')")
    await conn.execute("create type ay_pair as (a int, b ay_mood)")
    await conn.execute("create domain ay_small as int check (value < 100)")
    await table(conn, "ay_enum",
                "id int8 primary key, mood ay_mood, pair ay_pair, moods ay_mood[], small ay_small")
    for i in range(12):
        await conn.execute("insert into ay_enum values ($1, $2, $3, $4, $5)",
                           i, "ok", (i, "sad"), ["sad", "ok"], i)
    for i in range(12):
        row = await conn.fetchrow("select * from ay_enum where id = $1", i)
        equal(tuple(row), (i, "ok", (i, "sad"), ["sad", "ok"], i))
        equal(row["pair"]["b"], "sad")
    rows = await conn.fetch("select * from ay_enum order by id")
    equal([tuple(row) for row in rows], [(i, "ok", (i, "sad"), ["sad", "ok"], i)
                                         for i in range(12)])
    rows = await conn.fetch("select id from ay_enum where mood = $1 and pair = $2::ay_pair", "ok",
                            (3, "sad"))
    equal([row["id"] for row in rows], [3])
    await conn.set_type_codec("ay_mood", encoder=str.lower, decoder=str.upper)
    equal(await conn.fetchval("select mood from ay_enum where id = 5"), "OK")
    await conn.reset_type_codec("ay_mood")
    codes = await conn.fetch("select id from ay_enum where mood = any($1)", ["ok"])
    equal(len(codes), 12)
    try:
        await conn.execute("insert into ay_enum (id, mood) values (50, 'bad')")
        raise AssertionError("no error")
    except asyncpg.InvalidTextRepresentationError:
        pass
    await conn.close()


async def cursors():
    conn = await connect()
    await table(conn, "ay_cursor", "id int8 primary key")
    await conn.execute("insert into ay_cursor select generate_series(1, 200)")
    async with conn.transaction():
        cur = await conn.cursor("select id from ay_cursor order by id")
        equal([row[0] for row in await cur.fetch(5)], [1, 2, 3, 4, 5])
        equal(await cur.forward(10), 10)
        equal((await cur.fetchrow())[0], 16)
        found = [row[0] async for row in conn.cursor(
            "select id from ay_cursor where id > $1 order by id", 100, prefetch=7)]
        equal(found, list(range(101, 201)))
        # Two at once, with a statement between.
        first = await conn.cursor("select id from ay_cursor where id = $1", 7)
        second = await conn.cursor("select id from ay_cursor where id <> $1 order by 1", 1)
        equal((await second.fetchrow())[0], 2)
        equal(await conn.fetchval("select count(*) from ay_cursor"), 200)
        equal((await first.fetchrow())[0], 7)
        equal((await second.fetchrow())[0], 3)
    try:
        await conn.cursor("select id from ay_cursor")
        raise AssertionError("no error")
    except asyncpg.NoActiveSQLTransactionError:
        pass
    await conn.close()


async def copy():
    conn = await connect()
    await table(conn, "ay_copy", "id int8 primary key, name text, at timestamptz")
    at = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    rows = [(i, None if i % 5 == 0 else f"n\t{i}", at) for i in range(5000)]
    equal(await conn.copy_records_to_table("ay_copy", records=rows), "COPY 5000")
    equal(tuple(await conn.fetchrow("select count(*), sum(id), count(name) from ay_copy")),
          (5000, sum(range(5000)), 4000))
    for i in (0, 1, 2, 3, 4999):
        equal(tuple(await conn.fetchrow("select * from ay_copy where id = $1", i)), rows[i])
    data = bytearray()

    async def take(chunk):
        data.extend(chunk)

    status = await conn.copy_from_query("select id from ay_copy where id < $1 order by id desc",
                                        100, output=take)
    equal(status, "COPY 100")
    equal(bytes(data), b"".join(b"%d\n" % i for i in range(99, -1, -1)))
    data.clear()
    equal(await conn.copy_from_table("ay_copy", columns=["id"], output=take, format="csv"),
          "COPY 5000")
    equal(sorted(int(line) for line in bytes(data).split()), list(range(5000)))

    async def lines():
        for i in range(5000, 6000):
            yield f"{i},x\n".encode()

    equal(await conn.copy_to_table("ay_copy", source=lines(), columns=["id", "name"],
                                   format="csv"), "COPY 1000")
    try:
        await conn.copy_records_to_table("ay_copy", records=[(7000, "x"), (1, "twice")],
                                         columns=["id", "name"])
        raise AssertionError("no error")
    except asyncpg.UniqueViolationError as error:
        equal(error.constraint_name, "ay_copy_pkey")
    equal(await conn.fetchval("select count(*) from ay_copy"), 6000)
    await conn.close()


async def pool_of_tasks():
    conn = await connect()
    await table(conn, "ay_pool", "id int8 primary key, worker int")
    async with asyncpg.create_pool(URL, min_size=2, max_size=8) as pool:

        async def work(worker):
            for i in range(15):
                async with pool.acquire() as one:
                    async with one.transaction():
                        key = worker * 100 + i
                        await one.execute("insert into ay_pool values ($1, $2)", key, worker)
                        equal(await one.fetchval("select worker from ay_pool where id = $1", key),
                              worker)
                if i % 5 == 0:
                    equal(await pool.fetchval("select count(*) from ay_pool where worker = $1",
                                              worker), i + 1)

        await asyncio.gather(*[work(i) for i in range(20)])
    equal(await conn.fetchval("select count(*) from ay_pool"), 300)
    await conn.close()


async def executemany():
    conn = await connect()
    await table(conn, "ay_many", "id int8 primary key, name text")
    await conn.executemany("insert into ay_many values ($1, $2)",
                           [(i, f"n{i}") for i in range(1000)])
    equal(tuple(await conn.fetchrow("select count(*), sum(id) from ay_many")), (1000, 499500))
    # It is atomic.
    try:
        await conn.executemany("insert into ay_many values ($1, $2)",
                               [(i, "x") for i in (2000, 2001, 2002, 2003, 5, 2004)])
        raise AssertionError("no error")
    except asyncpg.UniqueViolationError as error:
        equal((error.sqlstate, error.constraint_name, error.detail),
              ("23505", "ay_many_pkey", "Key (id)=(5) already exists."))
    equal(await conn.fetchval("select count(*) from ay_many"), 1000)
    found = await conn.fetchmany("insert into ay_many values ($1, $2) returning id, name",
                                 [(i, f"m{i}") for i in range(3000, 3020)])
    equal([tuple(row) for row in found], [(i, f"m{i}") for i in range(3000, 3020)])
    await conn.close()


async def listen_and_notify():
    listener, sender = await connect(), await connect()
    queue = asyncio.Queue()

    def heard(_conn, _pid, channel, payload):
        queue.put_nowait((channel, payload))

    await listener.add_listener("ay_channel", heard)
    async with sender.transaction():
        await sender.execute("notify ay_channel, 'one'")
        assert queue.empty()
    await sender.fetchval("select pg_notify($1, $2)", "ay_channel", "two")
    equal(await asyncio.wait_for(queue.get(), 10), ("ay_channel", "one"))
    equal(await asyncio.wait_for(queue.get(), 10), ("ay_channel", "two"))
    equal(await listener.fetchval("select 7"), 7)
    await listener.execute("notify ay_channel, 'own'")
    equal(await asyncio.wait_for(queue.get(), 10), ("ay_channel", "own"))
    await listener.remove_listener("ay_channel", heard)
    await listener.close()
    await sender.close()


async def statement_cache_across_ddl():
    conn, other = await connect(), await connect()
    await table(conn, "ay_ddl", "id int8 primary key, name text")
    await conn.executemany("insert into ay_ddl values ($1, $2)", [(i, "x") for i in range(6)])
    one, many = "select * from ay_ddl where id = $1", "select * from ay_ddl where id < $1"
    equal(tuple(await conn.fetchrow(one, 4)), (4, "x"))
    equal(len(await conn.fetch(many, 3)), 3)
    await other.execute("alter table ay_ddl add column more int default 7")
    for _ in range(3):
        for i in range(6):
            equal(tuple(await conn.fetchrow(one, i)), (i, "x", 7))
        equal([tuple(row) for row in await conn.fetch(many + " order by id", 2)],
              [(0, "x", 7), (1, "x", 7)])
        equal(sorted(map(tuple, await conn.fetch(many, 2))), [(0, "x", 7), (1, "x", 7)])
    await other.execute("alter table ay_ddl alter column more type text")
    equal(tuple(await conn.fetchrow(one, 4)), (4, "x", "7"))
    equal(sorted(map(tuple, await conn.fetch(many, 2))), [(0, "x", "7"), (1, "x", "7")])
    # Inside a transaction the driver cannot prepare again: the first use fails, as documented.
    await other.execute("alter table ay_ddl drop column more")
    try:
        async with conn.transaction():
            await conn.fetchrow(one, 4)
        raise AssertionError("the old description was served")
    except asyncpg.InvalidCachedStatementError:
        pass
    equal(tuple(await conn.fetchrow(one, 4)), (4, "x"))
    equal(await conn.execute("insert into ay_ddl values ($1, $2)", 10, "y"), "INSERT 0 1")
    await other.execute("drop table ay_ddl")
    try:
        await conn.fetchrow(one, 4)
        raise AssertionError("no error")
    except asyncpg.UndefinedTableError:
        pass
    await conn.close()
    await other.close()


async def reset_on_release():
    async with asyncpg.create_pool(URL, min_size=1, max_size=1) as pool:
        async with pool.acquire() as one:
            await one.execute("set statement_timeout = '7s'")
            await one.execute("set search_path = pg_catalog")
            await one.fetchval("select pg_advisory_lock(6767)")
            await one.execute("listen ay_reset")
            await one.execute("declare ay_held cursor with hold for select 1")
        async with pool.acquire() as one:
            equal(await one.fetchval("show statement_timeout"), "0")
            equal(await one.fetchval("show search_path"), '"$user", public')
            equal(await one.fetchval("select count(*) from pg_listening_channels()"), 0)
            equal(await one.fetchval("select count(*) from pg_cursors where name = 'ay_held'"), 0)
            other = await connect()
            assert await other.fetchval("select pg_try_advisory_lock(6767)"), "still locked"
            await other.close()


async def cancellation():
    conn = await connect()
    await table(conn, "ay_cancel", "id int8 primary key")
    await conn.execute("insert into ay_cancel select generate_series(1, 9)")
    for text in ("select pg_sleep(25)", "select pg_sleep(25) from ay_cancel where id = 2",
                 "select id, pg_sleep(25) from ay_cancel"):
        try:
            await asyncio.wait_for(conn.fetch(text), 0.3)
            raise AssertionError("no timeout")
        except asyncio.TimeoutError:
            pass
        equal(await conn.fetchval("select count(*) from ay_cancel"), 9)
        try:
            await conn.fetch(text, timeout=0.3)
            raise AssertionError("no timeout")
        except asyncio.TimeoutError:
            pass
        for i in range(1, 10):
            equal(await conn.fetchval("select id from ay_cancel where id = $1", i), i)
    async with conn.transaction():
        await conn.execute("insert into ay_cancel values (50)")
        try:
            async with conn.transaction():
                await conn.fetch("select pg_sleep(25)", timeout=0.3)
        except asyncio.TimeoutError:
            pass
        await conn.execute("insert into ay_cancel values (51)")
    equal(await conn.fetchval("select count(*) from ay_cancel"), 11)
    await conn.close()


async def transactions():
    conn = await connect()
    await table(conn, "ay_trans", "id int8 primary key")
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        equal(await conn.fetchval("select count(*) from ay_trans"), 0)
    async with conn.transaction():
        await conn.execute("insert into ay_trans values (1)")
        try:
            async with conn.transaction():
                await conn.execute("insert into ay_trans values (2)")
                await conn.execute("insert into ay_trans values (1)")
        except asyncpg.UniqueViolationError:
            pass
        await conn.execute("insert into ay_trans values (3)")
    equal([row[0] for row in await conn.fetch("select id from ay_trans order by id")], [1, 3])
    try:
        async with conn.transaction():
            await conn.execute("insert into ay_trans values (4)")
            raise KeyError
    except KeyError:
        pass
    equal(await conn.fetchval("select count(*) from ay_trans"), 2)
    seen = []
    conn.add_log_listener(lambda _conn, message: seen.append(message.message))
    await conn.execute("do $$ begin raise notice 'hello'; end $$")
    await asyncio.sleep(0)
    equal(seen, ["hello"])
    equal(conn.get_settings().client_encoding, "UTF8")
    equal(conn.get_server_version().major >= 13, True)
    await conn.close()


run([
    prepared_statements,
    types_round_trip,
    enum_and_composite,
    cursors,
    copy,
    pool_of_tasks,
    executemany,
    listen_and_notify,
    statement_cache_across_ddl,
    reset_on_release,
    cancellation,
    transactions,
])
