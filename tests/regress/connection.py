"""One libpq connection that answers a text with everything the server said."""

import select
import time
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.pq import DiagnosticField, ExecStatus

ANSWER_SECONDS = 40  # then the statement is cancelled and counts as "hang"


class Result(NamedTuple):
    """What a server answered to one statement."""

    kind: str  # rows, ok, empty, copy, error, hang, dead
    tag: str = ""
    columns: tuple = ()  # (name, type's OID)
    rows: list | None = None  # of text, or None
    sqlstate: str = ""
    message: str = ""
    hint: str = ""


def failure(results):
    """The first result that is an error."""
    return next((result for result in results if result.sqlstate), None)


class Unreachable(Exception):
    pass


class Connection:
    def __init__(self, url):
        self.url = url
        self.libpq = None
        self.notices = []
        self.open()

    def open(self):
        """Connects anew, with what the expected answers of the scripts were made with."""
        if self.libpq is not None:
            self.libpq.finish()
        deadline = time.time() + 20
        while True:
            self.libpq = pq.PGconn.connect(self.url.encode())
            if self.libpq.status == pq.ConnStatus.OK:
                break
            if time.time() > deadline:
                raise Unreachable(text(self.libpq.error_message))
            time.sleep(0.2)
        self.libpq.notice_handler = lambda notice: self.notices.append(
            (field(notice, DiagnosticField.SEVERITY), field(notice, DiagnosticField.MESSAGE_PRIMARY))
        )
        for setting in (
            "timezone = 'PST8PDT'",
            "datestyle = 'Postgres, MDY'",
            "intervalstyle = 'postgres_verbose'",
        ):
            self.run("set " + setting)

    @property
    def status(self):
        return self.libpq.transaction_status

    def is_open(self):
        return self.libpq.status == pq.ConnStatus.OK

    def rows(self, sql):
        """The rows of the last statement of a text, or None."""
        return self.run(sql)[-1].rows

    def run(self, sql, copy=None):
        """The results of every statement of a text; `copy` is what COPY FROM STDIN gets."""
        self.notices = []
        results = []
        deadline = time.time() + ANSWER_SECONDS
        try:
            self.libpq.send_query(sql.encode("utf-8", "surrogateescape"))
            while True:
                if not self.wait(deadline):
                    self.libpq.get_cancel().cancel()
                    message = f"no answer in {ANSWER_SECONDS} s"
                    return results + [Result("hang", sqlstate="HANG", message=message)]
                result = self.libpq.get_result()
                if result is None:
                    return results or [Result("empty")]
                if result.status == ExecStatus.COPY_IN:
                    self.send(copy)
                elif result.status == ExecStatus.COPY_OUT:
                    results.append(Result("copy", rows=self.copied(deadline)))
                else:
                    results.append(self.result(result))
                    if not self.is_open():
                        results[-1] = results[-1]._replace(sqlstate="DEAD")
                        return results
        except psycopg.Error as error:
            return results + [Result("dead", sqlstate="DEAD", message=str(error).strip())]

    def wait(self, deadline):
        while True:
            self.libpq.flush()
            if not self.libpq.is_busy():
                return True
            left = deadline - time.time()
            if left <= 0 or not select.select([self.libpq.socket], [], [], left)[0]:
                return False
            self.libpq.consume_input()

    def send(self, copy):
        if copy is None:
            self.libpq.put_copy_end(b"no data")
            return
        if copy:
            self.libpq.put_copy_data(copy.encode("utf-8", "surrogateescape"))
        self.libpq.put_copy_end()

    def copied(self, deadline):
        rows = []
        while True:
            count, data = self.libpq.get_copy_data(1)
            if count == -1 or time.time() > deadline:
                return rows
            if count == 0:
                select.select([self.libpq.socket], [], [], 1)
                self.libpq.consume_input()
            else:
                rows.append((text(bytes(data)),))

    def result(self, result):
        tag = text(result.command_status)
        if result.status in (ExecStatus.TUPLES_OK, ExecStatus.SINGLE_TUPLE):
            width = range(result.nfields)
            columns = tuple((text(result.fname(at)), result.ftype(at)) for at in width)
            rows = [
                tuple(optional(result.get_value(row, at)) for at in width)
                for row in range(result.ntuples)
            ]
            return Result("rows", tag, columns, rows)
        if result.status == ExecStatus.COMMAND_OK:
            return Result("ok", tag)
        if result.status == ExecStatus.EMPTY_QUERY:
            return Result("empty")
        message = field(result, DiagnosticField.MESSAGE_PRIMARY) or text(self.libpq.error_message)
        return Result(
            "error",
            sqlstate=field(result, DiagnosticField.SQLSTATE) or "DEAD",
            message=message,
            hint=field(result, DiagnosticField.MESSAGE_HINT),
        )


def text(data):
    return (data or b"").decode("utf-8", "replace")


def optional(data):
    return None if data is None else text(data)


def field(result, which):
    return text(result.error_field(which))
