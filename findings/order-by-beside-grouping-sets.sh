#!/usr/bin/env bash
# PostgreSQL 17.11, with a column that WHERE fixes and grouping sets that leave it out. Guess: ORDER BY a, b
# sorts by a first, whose NULLs are of the sets without it. Seen: a is not sorted by at all, as WHERE
# says that it is constant: rows with a = 1 stand before and between rows where a is NULL. PostgreSQL
# 18.6 sorts by both. Who merges sorted answers of several servers, or compares two majors row by row,
# meets it with valid SQL and the same data.
set -euo pipefail
cd "$(dirname "$0")"
ask() {
    (
        POSTGRES=$1
        . ./postgres.bash
        start
        sql -q -A -t <<SQL
create table t (a int, b int);
insert into t select 1, g % 3 from generate_series(1, 9) g;
select a, b, count(*) from t where a = 1
group by grouping sets ((b), (a), ()) order by a nulls first, b nulls first;
explain (costs off) select a, b, count(*) from t where a = 1
group by grouping sets ((b), (a), ()) order by a nulls first, b nulls first;
SQL
    ) | grep -E '^[0-9]*\||Sort Key'
}
. ./postgres.bash
same $'||9\n1||9\n|0|3\n|1|3\n|2|3\n  Sort Key: b NULLS FIRST' "$(ask 17.11.0)"
same $'||9\n|0|3\n|1|3\n|2|3\n1||9\n  Sort Key: a NULLS FIRST, b NULLS FIRST' "$(ask 18.6.0)"
