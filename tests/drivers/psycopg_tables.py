"""Connections and tables of the psycopg scripts."""

import psycopg

from common import URL, distribute


def connect(**options):
    """A connection in autocommit that counts times in UTC."""
    options.setdefault("autocommit", True)
    conn = psycopg.connect(URL, connect_timeout=10, **options)
    conn.execute("set timezone = 'UTC'")
    if not conn.autocommit:
        conn.commit()
    return conn


def table(conn, name, columns, key="id"):
    """Makes a distributed table anew."""
    conn.execute(f"drop table if exists {name} cascade")
    conn.execute(f"create table {name} ({columns})")
    if key:
        conn.execute(distribute(name, key))
