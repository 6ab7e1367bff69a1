"""SQLAlchemy against DATABASE_URL, with the drivers psycopg and asyncpg."""

import asyncio
import datetime
import decimal
import uuid

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.orm import selectinload

from common import URL, distribute, equal, reference, run

ADDRESS = URL.split("://", 1)[1]


class Base(DeclarativeBase):
    """All tables here."""


class Country(Base):
    __tablename__ = "sa_country"
    code: Mapped[str] = mapped_column(sa.String(2), primary_key=True)
    name: Mapped[str]


class Customer(Base):
    __tablename__ = "sa_customer"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40), index=True)
    country: Mapped[str] = mapped_column(sa.ForeignKey("sa_country.code"))
    born: Mapped[datetime.date | None]
    tags: Mapped[list[str] | None] = mapped_column(pg.ARRAY(sa.Text))
    extra: Mapped[dict | None] = mapped_column(pg.JSONB)
    orders: Mapped[list["Order"]] = relationship(back_populates="customer",
                                                 order_by="Order.number")


class Order(Base):
    __tablename__ = "sa_order"
    __table_args__ = (
        sa.UniqueConstraint("customer_id", "code", name="sa_order_code"),
        sa.CheckConstraint("total >= 0", name="sa_order_total"),
        sa.Index("sa_order_at", "at", postgresql_where=sa.text("total > 0")),
    )
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("sa_customer.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    total: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(12, 2))
    at: Mapped[datetime.datetime] = mapped_column(sa.DateTime(timezone=True),
                                                  server_default=sa.func.now())
    customer: Mapped[Customer] = relationship(back_populates="orders")


class Event(Base):
    __tablename__ = "sa_event"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    what: Mapped[str]
    place: Mapped[int]


def engine(driver):
    """An engine of the synchronous driver psycopg."""
    return sa.create_engine(f"postgresql+{driver}://{ADDRESS}", pool_size=3)


def create(connection):
    """Makes and distributes all tables."""
    Base.metadata.drop_all(connection)
    Base.metadata.create_all(connection)
    connection.commit()
    for text in (
        reference("sa_country"),
        distribute("sa_customer", "id"),
        distribute("sa_order", "customer_id"),
        distribute("sa_event", "id"),
    ):
        connection.execute(sa.text(text))
        connection.commit()


def fill(session):
    """Four customers with three orders each."""
    session.add_all([Country(code="de", name="Germany"), Country(code="fr", name="France")])
    session.flush()
    for i in range(1, 5):
        customer = Customer(
            id=i, name=f"customer {i}", country=("de", "fr")[i % 2],
            born=datetime.date(1990, 1, i), tags=[f"t{i}", "all"], extra={"level": i},
        )
        customer.orders = [
            Order(number=n, total=decimal.Decimal(i * n) / 2) for n in (1, 2, 3)
        ]
        session.add(customer)
    session.commit()


def orm_round_trip(session):
    """What an application does with its models."""
    fill(session)
    session.expunge_all()
    customer = session.get(Customer, 3)
    equal((customer.name, customer.country, customer.born, customer.tags, customer.extra),
          ("customer 3", "fr", datetime.date(1990, 1, 3), ["t3", "all"], {"level": 3}))
    equal([order.total for order in customer.orders],
          [decimal.Decimal("1.50"), decimal.Decimal("3.00"), decimal.Decimal("4.50")])
    found = session.scalars(
        sa.select(Customer).options(selectinload(Customer.orders)).order_by(Customer.id)
    ).all()
    equal([(c.id, len(c.orders)) for c in found], [(i, 3) for i in range(1, 5)])
    # A join of colocated tables, and one with a reference table.
    found = session.execute(
        sa.select(Customer.name, sa.func.sum(Order.total))
        .join(Order).where(Customer.id == 2).group_by(Customer.name)
    ).all()
    equal([tuple(row) for row in found], [("customer 2", decimal.Decimal("6.00"))])
    found = session.execute(
        sa.select(Country.name, sa.func.count(), sa.func.sum(Order.total))
        .join(Customer, Customer.country == Country.code).join(Order)
        .group_by(Country.name).order_by(Country.name)
    ).all()
    equal([tuple(row) for row in found],
          [("France", 6, decimal.Decimal("12.00")), ("Germany", 6, decimal.Decimal("18.00"))])
    # Changes; the unit of work flushes them as UPDATE and DELETE by primary key.
    customer = session.get(Customer, 1)
    customer.name = "changed"
    customer.extra = {"level": 10, "new": [1]}
    session.delete(customer.orders[2])
    session.commit()
    equal(session.scalar(sa.select(sa.func.count()).select_from(Order)), 11)
    equal(session.scalar(sa.select(Customer.extra["level"].as_integer()).where(Customer.id == 1)),
          10)
    # Rollback.
    session.add(Customer(id=50, name="never", country="de"))
    session.flush()
    equal(session.scalar(sa.select(sa.func.count()).select_from(Customer)), 5)
    session.rollback()
    equal(session.scalar(sa.select(sa.func.count()).select_from(Customer)), 4)
    # A savepoint around a violated constraint.
    session.add(Customer(id=60, name="kept", country="de"))
    session.flush()
    try:
        with session.begin_nested():
            session.add(Order(customer_id=60, number=1, total=decimal.Decimal(-1)))
        raise AssertionError("no error")
    except sa.exc.IntegrityError as error:
        assert "sa_order_total" in str(error), error
    session.commit()
    equal(session.scalar(sa.select(Customer.name).where(Customer.id == 60)), "kept")
    try:
        session.add(Customer(id=70, name="x", country="xx"))
        session.commit()
        raise AssertionError("no error")
    except sa.exc.IntegrityError as error:
        assert "sa_customer_country_fkey" in str(error), error
        session.rollback()
    try:
        session.execute(sa.insert(Customer), [{"id": 2, "name": "x", "country": "de"}])
        raise AssertionError("no error")
    except sa.exc.IntegrityError as error:
        assert "sa_customer_pkey" in str(error), error
        session.rollback()


def identity_and_bulk(session):
    """Generated ids, RETURNING in the order of the parameters, many rows."""
    event = Event(what="one", place=0)
    session.add(event)
    session.flush()
    assert event.id is not None
    many = [Event(what=f"e{i}", place=i) for i in range(1500)]
    session.add_all(many)
    session.commit()
    keys = [e.id for e in many]
    equal(len(set(keys)), 1500)
    found = session.execute(sa.select(Event.id, Event.place).where(Event.what != "one")).all()
    equal(dict(tuple(row) for row in found), {e.id: e.place for e in many})
    rows = session.scalars(
        sa.insert(Event).returning(Event, sort_by_parameter_order=True),
        [{"what": "bulk", "place": i} for i in range(700)],
    ).all()
    equal([row.place for row in rows], list(range(700)))
    session.commit()
    changed = session.execute(sa.update(Event).where(Event.what == "bulk")
                              .values(place=Event.place + 1))
    equal(changed.rowcount, 700)
    session.execute(sa.update(Event), [{"id": keys[i], "what": "named"} for i in range(50)])
    session.commit()
    equal(session.scalar(sa.select(sa.func.count()).where(Event.what == "named")), 50)
    gone = session.execute(sa.delete(Event).where(Event.what == "bulk").returning(Event.id)).all()
    equal(len(gone), 700)
    session.commit()
    statement = pg.insert(Event).values(
        [{"id": keys[0], "what": "again", "place": 7}, {"id": 10**9, "what": "new", "place": 8}]
    )
    statement = statement.on_conflict_do_update(
        index_elements=[Event.id],
        set_={"what": statement.excluded.what, "place": Event.place + 100},
    ).returning(Event.id, Event.what, Event.place)
    equal(sorted(tuple(row) for row in session.execute(statement)),
          sorted([(keys[0], "again", 100), (10**9, "new", 8)]))
    again = pg.insert(Event).values(id=10**9, what="x", place=1).on_conflict_do_nothing()
    equal(session.execute(again.returning(Event.id)).all(), [])
    session.commit()


def selects(session):
    """Joins on other columns than the key, subqueries, windows, paging."""
    other = sa.orm.aliased(Event)
    found = session.execute(
        sa.select(Customer.id, Event.place)
        .join(Event, Event.place == Customer.id).order_by(Customer.id)
    ).all()
    equal([row[0] for row in found][:4], [1, 2, 3, 4])
    latest = (
        sa.select(Order.customer_id, Order.total,
                  sa.func.row_number().over(partition_by=Order.customer_id,
                                            order_by=Order.number.desc()).label("rank"))
        .subquery()
    )
    found = session.execute(
        sa.select(latest.c.customer_id, latest.c.total).where(latest.c.rank == 1)
        .order_by(latest.c.customer_id)
    ).all()
    equal(found[1:4], [(i, decimal.Decimal(i) * 3 / 2) for i in (2, 3, 4)])
    found = session.scalars(sa.select(Event.place).where(
        Event.place.in_([5, 6, 7]), ~sa.exists().where(other.place == Event.place + 1000))
        .order_by(Event.place)).all()
    equal(found, [5, 6, 7] if 1005 not in session.scalars(sa.select(Event.place)).all() else [])
    page = session.scalars(sa.select(Event.place).where(Event.what != "again")
                           .order_by(Event.place, Event.id).limit(3).offset(10)).all()
    equal(page, session.scalars(sa.select(Event.place).where(Event.what != "again")
                                .order_by(Event.place, Event.id)).all()[10:13])
    found = session.execute(
        sa.select(Customer.name).where(Customer.id == sa.bindparam("key")), {"key": 2}
    ).scalar_one()
    equal(found, "customer 2")
    locked = session.scalars(sa.select(Customer).where(Customer.id == 2).with_for_update()).one()
    equal(locked.id, 2)
    session.rollback()
    streamed = session.execute(
        sa.select(Event.id).order_by(Event.id).execution_options(yield_per=100)
    ).scalars().all()
    equal(streamed, sorted(streamed))
    assert len(streamed) > 1400
    session.rollback()


def reflection(connection):
    """What alembic and admin tools ask for."""
    inspector = sa.inspect(connection)
    for name in ("sa_country", "sa_customer", "sa_order", "sa_event"):
        assert name in inspector.get_table_names(), name
    equal(inspector.get_pk_constraint("sa_order")["constrained_columns"],
          ["customer_id", "number"])
    equal(inspector.get_pk_constraint("sa_order")["name"], "sa_order_pkey")
    foreign = inspector.get_foreign_keys("sa_order")
    equal([(f["name"], f["constrained_columns"], f["referred_table"], f["referred_columns"])
           for f in foreign],
          [("sa_order_customer_id_fkey", ["customer_id"], "sa_customer", ["id"])])
    equal([f["referred_table"] for f in inspector.get_foreign_keys("sa_customer")],
          ["sa_country"])
    unique = inspector.get_unique_constraints("sa_order")
    equal([(u["name"], u["column_names"]) for u in unique],
          [("sa_order_code", ["customer_id", "code"])])
    indexes = {i["name"]: i for i in inspector.get_indexes("sa_order")}
    equal(sorted(indexes), ["sa_order_at", "sa_order_code"])
    assert "total" in indexes["sa_order_at"]["dialect_options"]["postgresql_where"]
    equal([i["name"] for i in inspector.get_indexes("sa_customer")], ["ix_sa_customer_name"])
    checks = inspector.get_check_constraints("sa_order")
    equal([c["name"] for c in checks], ["sa_order_total"])
    columns = {c["name"]: c for c in inspector.get_columns("sa_event")}
    assert columns["id"]["identity"] is not None, columns["id"]
    equal((str(columns["what"]["type"]), columns["what"]["nullable"]), ("VARCHAR", False))
    metadata = sa.MetaData()
    metadata.reflect(connection, only=lambda name, _: name.startswith("sa_"))
    equal(sorted(metadata.tables), ["sa_country", "sa_customer", "sa_event", "sa_order"])
    equal([c.name for c in metadata.tables["sa_order"].columns],
          ["customer_id", "number", "code", "total", "at"])
    equal(str(metadata.tables["sa_order"].c.total.type), "NUMERIC(12, 2)")
    assert inspector.has_table("sa_order") and not inspector.has_table("sa_absent")
    count = connection.execute(
        sa.select(sa.func.count()).select_from(metadata.tables["sa_order"])
    ).scalar()
    equal(count, 11)


STEPS = (orm_round_trip, identity_and_bulk, selects)


def with_psycopg():
    one = engine("psycopg")
    with one.connect() as connection:
        create(connection)
    for step in STEPS:
        with Session(one) as session:
            step(session)
    with one.connect() as connection:
        reflection(connection)
    with one.connect() as connection:
        Base.metadata.drop_all(connection)
        connection.commit()
    one.dispose()


async def with_asyncpg():
    one = create_async_engine(f"postgresql+asyncpg://{ADDRESS}")
    async with one.connect() as connection:
        await connection.run_sync(create)
    for step in STEPS:
        async with AsyncSession(one) as session:
            await session.run_sync(step)
    async with one.connect() as connection:
        await connection.run_sync(reflection)
    async with one.connect() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.commit()
    await one.dispose()


async def asyncpg_tasks():
    """Concurrent sessions on one engine."""
    one = create_async_engine(f"postgresql+asyncpg://{ADDRESS}", pool_size=5)
    async with one.connect() as connection:
        await connection.run_sync(create)

    async def work(worker):
        async with AsyncSession(one) as session:
            for i in range(5):
                session.add(Event(what=f"w{worker}", place=i))
                await session.commit()
            return await session.scalar(
                sa.select(sa.func.count()).where(Event.what == f"w{worker}"))

    equal(await asyncio.gather(*[work(i) for i in range(10)]), [5] * 10)
    async with one.connect() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.commit()
    await one.dispose()


run([with_psycopg, with_asyncpg, asyncpg_tasks])
