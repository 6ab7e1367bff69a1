-- The colocation group that a table joins when it names none.
alter table automator67.colocation add column is_default boolean not null default false;
create unique index colocation_one_default on automator67.colocation (key_type) where is_default;

-- Rows of these come from the proxy; here they are empty, so that they can be described.
create view automator67.shards as
select null::integer as id, null::text as name, null::text as host, null::integer as port,
    null::text as database, null::boolean as home, null::boolean as up, null::text as error
where false;

create view automator67.pools as
select null::text as shard, null::text as username, null::integer as size, null::integer as idle,
    null::integer as active, null::integer as waiting, null::bigint as waits,
    null::double precision as wait_seconds
where false;

create view automator67.sessions as
select null::integer as pid, null::text as username, null::text as application_name,
    null::text as client, null::text as state, null::text as statement_kind, null::text as tier,
    null::text as shards, null::boolean as pinned,
    null::timestamp with time zone as connected_at, null::bigint as statements
where false;

grant select on automator67.shards, automator67.pools, automator67.sessions to public;

-- The group of tables that name none, by type of key; made at its first use.
create function automator67.default_group(key_type text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    select c.id into group_id from automator67.colocation c
    where c.is_default and c.key_type = default_group.key_type;
    if group_id is null then
        insert into automator67.colocation (key_type, is_default)
        values (default_group.key_type, true) returning id into group_id;
    end if;
    return group_id;
end
$$;
