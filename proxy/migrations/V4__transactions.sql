-- A name for this catalog and its shards, part of the names of prepared transactions: a server may
-- serve several.
create table automator67.cluster (
    only_row    boolean primary key default true check (only_row),
    name        text not null check (name ~ '^[0-9a-f]{8}$')
);
insert into automator67.cluster (name)
values (substr(md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text), 1, 8));

-- Rows come from the proxy, see V2.
create view automator67.transactions as
select null::text as gid, null::text as shard, null::text as anchor, null::text as state,
    null::timestamp with time zone as prepared_at, null::double precision as age_seconds,
    null::text as username
where false;

grant select on automator67.transactions to public;
