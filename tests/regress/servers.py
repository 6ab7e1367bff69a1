"""A plain Postgres and the proxy over shards of its own, each fresh and gone with its block."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time

START_SECONDS = 120
PASSWORD = "regress"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def plain(binaries):
    """The URL of a plain server."""
    with folder() as directory:
        account = postgres_account()
        if account:
            shutil.chown(directory, account)
        data, port = f"{directory}/data", free_port()
        run = lambda *command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=account, cwd=directory)
        run(f"{binaries}/initdb", "-D", data, "-U", "app", "--locale=C.UTF-8", "-E", "UTF8", "-N", "-A", "trust")
        settings = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off -c max_prepared_transactions=100"
        run(f"{binaries}/pg_ctl", "-D", data, "-l", f"{directory}/log", "-w", "-o", settings, "start")
        try:
            run(f"{binaries}/createdb", "-h", directory, "-p", str(port), "-U", "app", "app")
            yield f"postgres://app@127.0.0.1:{port}/app"
        finally:
            run(f"{binaries}/pg_ctl", "-D", data, "-m", "immediate", "stop")


@contextlib.contextmanager
def automator67(binary, shards):
    """The URL of a proxy over so many shards."""
    with folder() as directory:
        port, http = free_port(), free_port()
        command = [
            binary, "dev", "--shards", str(shards), "--data-dir", f"{directory}/dev",
            "--sql", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}",
        ]  # fmt: skip
        environment = os.environ | {"AUTOMATOR67_PASSWORD": PASSWORD}
        with open(f"{directory}/log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(port, process, f"{directory}/log")
            without_fsync(f"{directory}/dev")
            yield f"postgres://app:{PASSWORD}@127.0.0.1:{port}/app"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def without_fsync(directory):
    """Nothing is to be kept here, and DDL takes a fraction of the time."""
    for settings in pathlib.Path(directory).rglob("postgresql.auto.conf"):
        with settings.open("a", encoding="utf-8") as file:
            file.write("fsync = off\n")
        postmaster = int((settings.parent / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGHUP)


@contextlib.contextmanager
def folder():
    directory = tempfile.mkdtemp(prefix="a67regress")
    os.chmod(directory, 0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def postgres_account():
    """Postgres does not run as root."""
    if os.getuid():
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def wait_for(port, process, log):
    deadline = time.time() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.time() > deadline:
            raise SystemExit("the proxy did not start:\n" + pathlib.Path(log).read_text()[-2000:])
        time.sleep(0.1)
