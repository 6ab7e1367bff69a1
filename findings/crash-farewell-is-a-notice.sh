#!/usr/bin/env bash
# PostgreSQL 18.6: when one server process crashes, all others are ended, and their idle clients are
# told why. Guess: by an ErrorResponse, severity FATAL, as at a shutdown ('E', 57P01). Seen: by a
# NoticeResponse, severity WARNING, SQLSTATE 57P02, and then the end of the stream. A pool that takes a
# connection for dead when an ErrorResponse has arrived on it, and for alive when it is only a notice,
# lends a dead one. (The process is killed by the owner of the server, as the OOM killer would.)
set -euo pipefail
cd "$(dirname "$0")" && . ./postgres.bash
start
seen=$(python3 - "$folder/sockets/.s.PGSQL.5432" <<'PY'
import os, signal, socket, struct, sys

def login():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.settimeout(30)
    body = struct.pack("!I", 196608) + b"user\0me\0database\0postgres\0\0"
    s.sendall(struct.pack("!I", len(body) + 4) + body)
    pid = None
    while True:
        kind, text = message(s)
        if kind == b"K":
            pid = struct.unpack("!I", text[:4])[0]
        if kind == b"Z":
            return s, pid

def message(s):
    head = read(s, 5)
    if not head:
        return None, b""
    return head[:1], read(s, struct.unpack("!I", head[1:])[0] - 4)

def read(s, count):
    data = b""
    while len(data) < count:
        piece = s.recv(count - len(data))
        if not piece:
            return data
        data += piece
    return data

idle, _ = login()
_, victim = login()
os.kill(victim, signal.SIGKILL)
while True:
    kind, text = message(idle)
    if kind is None:
        print("end of stream")
        break
    fields = {f[:1]: f[1:] for f in text.split(b"\0") if f}
    print(kind.decode(), fields[b"V"].decode(), fields[b"C"].decode())
PY
)
same $'N WARNING 57P02\nend of stream' "$seen"
