-- Placement by ranges of the key, by a directory of its values, and by schema.

-- How the rows of a group's tables are split. 'schema': not at all, they are on one shard.
alter table automator67.colocation
    add column method text not null default 'hash'
        check (method in ('hash', 'range', 'directory', 'schema')),
    add column shard integer references automator67.shard,
    alter column key_type drop not null,
    add constraint colocation_split_check check (case method
        when 'schema' then key_type is null and shard is not null
        else key_type is not null and shard is null
    end),
    add constraint colocation_default_check check (not is_default or method = 'hash');

-- The ranges of a group by their first values; the one without begins below all values. In the
-- form that the proxy writes, so that equal values are equal texts.
create table automator67.range_start (
    colocation  integer not null references automator67.colocation on delete cascade,
    lower       text,
    shard       integer not null references automator67.shard,
    unique (colocation, lower)
);
create unique index range_start_first on automator67.range_start (colocation) where lower is null;

-- The shards of the values of a group's key.
create table automator67.directory (
    colocation  integer not null references automator67.colocation on delete cascade,
    value       text not null,
    shard       integer not null references automator67.shard,
    primary key (colocation, value)
);

-- Schemas whose tables are on one shard. As regnamespace, so that it survives renames and pg_dump.
create table automator67.tenant (
    schema      regnamespace primary key,
    colocation  integer not null references automator67.colocation
);

alter table automator67.placement
    drop constraint placement_kind_check,
    drop constraint placement_check,
    add constraint placement_kind_check check (kind in ('distributed', 'reference', 'schema')),
    add constraint placement_check check (case kind
        when 'distributed' then key_attnum is not null and colocation is not null
        when 'schema' then key_attnum is null and colocation is not null
        else key_attnum is null and colocation is null
    end);

-- What a table's placement is, in one word: local, reference, hash, range, directory or schema.
create or replace view automator67.tables as
select
    n.nspname::text as schema,
    c.relname::text as name,
    coalesce(p.kind, 'local') as placement,
    a.attname::text as shard_key,
    p.colocation,
    coalesce(g.method, p.kind, 'local') as method,
    s.name as shard
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join automator67.placement p on p.relation = c.oid
left join automator67.colocation g on g.id = p.colocation
left join automator67.shard s on s.id = g.shard
left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = p.key_attnum
where c.relkind in ('r', 'p', 'f')
    and n.nspname not in ('pg_catalog', 'information_schema', 'automator67')
    and n.nspname !~ '^pg_(toast|temp)';

-- The ranges of every table that has some, in order. No lower or upper: no end there.
create view automator67.ranges as
select
    n.nspname::text as schema,
    c.relname::text as name,
    r.lower,
    lead(r.lower) over (
        partition by c.oid
        order by
            r.lower is not null,
            case when g.key_type = 'integer' then r.lower::numeric end,
            r.lower collate "C"
    ) as upper,
    s.name as shard
from automator67.range_start r
join automator67.colocation g on g.id = r.colocation
join automator67.placement p on p.colocation = g.id
join automator67.shard s on s.id = r.shard
join pg_catalog.pg_class c on c.oid = p.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

-- As before, and a dropped schema's oid could be given to a later one.
create or replace function automator67.bump() returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    new_epoch bigint;
begin
    delete from automator67.placement p
    where not exists (select from pg_class c where c.oid = p.relation);
    delete from automator67.tenant t
    where not exists (select from pg_namespace n where n.oid = t.schema);
    update automator67.epoch set value = value + 1 returning value into strict new_epoch;
    perform pg_notify('automator67_catalog', new_epoch::text);
    return new_epoch;
end
$$;

-- Only who owns all tables of a group may move their rows.
create function automator67.check_group_owner(group_id integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    member regclass;
begin
    for member in select p.relation from automator67.placement p where p.colocation = group_id loop
        perform automator67.check_owner(member);
    end loop;
end
$$;

create function automator67.check_schema_owner(schema regnamespace) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (
        select from pg_namespace n
        where n.oid = schema and pg_has_role(session_user, n.nspowner, 'USAGE')
    ) then
        raise insufficient_privilege using message = format('must be owner of schema %s', schema);
    end if;
end
$$;

-- A new group of tables by range: one range, on a shard.
create function automator67.range_group(key_type text, shard integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    insert into automator67.colocation (key_type, method)
    values (range_group.key_type, 'range') returning id into group_id;
    insert into automator67.range_start (colocation, lower, shard)
    values (group_id, null, range_group.shard);
    return group_id;
end
$$;

-- A new group of tables by directory.
create function automator67.directory_group(key_type text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    insert into automator67.colocation (key_type, method)
    values (directory_group.key_type, 'directory') returning id into group_id;
    return group_id;
end
$$;

-- Begins a range at a value.
create function automator67.start_range(group_id integer, lower text, shard integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_group_owner(group_id);
    insert into automator67.range_start (colocation, lower, shard)
    values (group_id, start_range.lower, start_range.shard);
end
$$;

-- The shard of a value that a new row has: the one it has, else the one with the fewest values.
-- Proxies that ask for one value at the same time get one answer, as the key is unique. Whoever
-- may insert into a table of the group may ask; what is written says nothing but where rows go.
-- Plans do not depend on it, so the epoch stays.
create function automator67.assign(group_id integer, wanted text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    assigned integer;
begin
    select d.shard into assigned from automator67.directory d
    where d.colocation = group_id and d.value = wanted;
    if assigned is not null then
        return assigned;
    end if;
    if not exists (
        select from automator67.placement p join automator67.colocation g on g.id = p.colocation
        where g.id = group_id and g.method = 'directory'
            and has_any_column_privilege(session_user, p.relation::oid, 'INSERT')
    ) then
        raise insufficient_privilege using
            message = format('permission denied to place a value in colocation group %s', group_id);
    end if;
    insert into automator67.directory (colocation, value, shard)
    select group_id, wanted, s.id
    from automator67.shard s
    left join automator67.directory d on d.colocation = group_id and d.shard = s.id
    group by s.id
    order by count(d.value), s.id
    limit 1
    on conflict do nothing;
    select d.shard into strict assigned from automator67.directory d
    where d.colocation = group_id and d.value = wanted;
    perform pg_notify('automator67_catalog', '');
    return assigned;
end
$$;

-- Sets the shard of a value; gives the one it had.
create function automator67.place_value(group_id integer, wanted text, shard integer)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    former integer;
begin
    perform automator67.check_group_owner(group_id);
    insert into automator67.directory (colocation, value, shard)
    values (group_id, wanted, place_value.shard)
    on conflict do nothing;
    if found then
        return null;
    end if;
    select d.shard into strict former from automator67.directory d
    where d.colocation = group_id and d.value = wanted for update;
    update automator67.directory d set shard = place_value.shard
    where d.colocation = group_id and d.value = wanted;
    return former;
end
$$;

-- Records that all tables of a schema are to be on one shard; gives their group.
create function automator67.add_tenant(schema regnamespace, shard integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    perform automator67.check_schema_owner(schema);
    insert into automator67.colocation (method, shard)
    values ('schema', add_tenant.shard) returning id into group_id;
    insert into automator67.tenant (schema, colocation) values (add_tenant.schema, group_id);
    return group_id;
end
$$;

create function automator67.remove_tenant(schema regnamespace) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_schema_owner(schema);
    delete from automator67.tenant t where t.schema = remove_tenant.schema;
end
$$;

-- Records that all rows of a table are on the shard of a schema's group.
create function automator67.place_with_schema(relation regclass, group_id integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_owner(relation);
    insert into automator67.placement (relation, kind, colocation)
    values (place_with_schema.relation, 'schema', group_id);
end
$$;

alter function automator67.catalog_document() rename to hashed_document;

create function automator67.catalog_document() returns text
language sql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
select left(document, -1) || ', "splits": ' || coalesce((
    select json_agg(json_build_object(
        'group', g.id,
        'method', g.method,
        'key_type', g.key_type,
        'shard', g.shard,
        'ranges', (
            select json_agg(json_build_array(r.lower, r.shard))
            from automator67.range_start r where r.colocation = g.id
        ),
        'entries', (
            select json_agg(json_build_array(d.value, d.shard))
            from automator67.directory d where d.colocation = g.id
        )
    ))
    from automator67.colocation g where g.method <> 'hash'
), '[]'::json)::text || ', "tenants": ' || coalesce((
    select json_agg(json_build_array(n.nspname, t.colocation))
    from automator67.tenant t join pg_namespace n on n.oid = t.schema
), '[]'::json)::text || '}'
from automator67.hashed_document() document
$$;

grant select on
    automator67.range_start, automator67.directory, automator67.tenant, automator67.tables,
    automator67.ranges
to public;
