#!/usr/bin/env bash
# PostgreSQL 18.6 with its own dblink: DISCARD ALL, which poolers send before they lend a connection to
# the next client. Guess: "resets the session to its initial state", as its manual page begins. Seen:
# three things of the former client stay: connections that dblink has opened (with their rights and
# their open transactions), the seed of random(), and a custom setting, which is not unset but the
# empty string, so that `current_setting('app.tenant', true) is null` is not what it was.
set -euo pipefail
cd "$(dirname "$0")" && . ./postgres.bash
start
seen=$(sql -q -A -t <<SQL
create extension dblink;
select current_setting('app.tenant', true) is null;
select dblink_connect('other', 'host=$folder/sockets user=me dbname=postgres');
select dblink_exec('other', 'begin');
set app.tenant = 'a';
select setseed(0.5);
discard all;
select dblink_get_connections();
select * from dblink('other', 'select txid_current_if_assigned() is null, now() < clock_timestamp()') t(a boolean, b boolean);
select random() as first \gset
select setseed(0.5);
select random() = :first;
select current_setting('app.tenant', true) is null, current_setting('app.tenant', true) = '';
SQL
)
same $'t\nOK\nBEGIN\n\n{other}\nt|t\n\nt\nf|t' "$seen"
