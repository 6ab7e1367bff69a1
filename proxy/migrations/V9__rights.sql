-- Who may do what in the catalog, from the ground. What changes it on a client's connection wants
-- the proof that it is the proxy that asks: see V3 of the migrations of shards, which have run
-- before.

-- Names of prepared transactions end with a digest under this key, which all proxies know. Nobody
-- else can prepare something that the recovery would take for theirs. Those that were prepared
-- before have none.
alter table automator67.cluster
    add column key bytea not null check (octet_length(key) = 32) default
        sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    add column signed_since timestamp with time zone not null default clock_timestamp();

-- Where changes of the catalog are announced: nobody but proxies can guess it.
create function automator67.channel() returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
select 'automator67_' || left(encode(sha256(c.key || convert_to('channel', 'UTF8')), 'hex'), 32)
from automator67.cluster c
$$;

-- Functions that a person has checked, and of each a digest of what was checked: whatever has the same
-- name later, or the same oid, is another function.
alter table automator67.safe_function rename to safe_name;
create table automator67.safe_function (
    function    oid primary key,
    digest      text not null
);

create function automator67.function_digest(function oid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
select md5(json_build_array(
    p.prolang::bigint, p.prosrc, p.prosqlbody::text, p.prosecdef, p.proconfig, p.probin
)::text)
from pg_proc p where p.oid = function_digest.function
$$;

insert into automator67.safe_function (function, digest)
select p.oid, automator67.function_digest(p.oid)
from automator67.safe_name s join pg_proc p on p.proname = s.name;
drop table automator67.safe_name;

drop function automator67.bump() cascade;

-- Makes the catalog one epoch newer and announces it. Call it last in a transaction that changed
-- tables or placements: it holds the epoch's row until the commit.
create function automator67.make_newer() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    new_epoch bigint;
begin
    -- A later relation or schema could be given a dropped one's oid; it must not inherit its
    -- placement.
    delete from automator67.placement p
    where not exists (select from pg_class c where c.oid = p.relation);
    delete from automator67.tenant t
    where not exists (select from pg_namespace n where n.oid = t.schema);
    delete from automator67.safe_function s
    where s.digest is distinct from automator67.function_digest(s.function);
    update automator67.epoch set value = value + 1 returning value into strict new_epoch;
    perform pg_notify(automator67.channel(), new_epoch::text);
    return new_epoch;
end
$$;

-- The same for a client's transaction.
create function automator67.bump(proof text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'bump');
    return automator67.make_newer();
end
$$;

drop function automator67.place_distributed(regclass, text, text, integer) cascade;

-- Records that rows of a table are split by a column; gives the colocation group, a new one if
-- none was asked for.
create function automator67.place_distributed(
    proof text, relation regclass, key_column text, key_type text, colocation integer
) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    key_number smallint;
    group_id integer := place_distributed.colocation;
begin
    perform automator67.check_proof(proof, 'place_distributed');
    perform automator67.check_owner(relation);
    select a.attnum into key_number from pg_attribute a
    where a.attrelid = relation and a.attname = key_column and a.attnum > 0 and not a.attisdropped;
    if key_number is null then
        raise undefined_column using
            message = format('column "%s" of relation %s does not exist', key_column, relation);
    end if;
    if group_id is null then
        insert into automator67.colocation (key_type) values (place_distributed.key_type)
        returning id into group_id;
    elsif not exists (
        select from automator67.colocation c
        where c.id = group_id and c.key_type = place_distributed.key_type
    ) then
        raise invalid_parameter_value using
            message = format('colocation group %s does not hold keys of type %s', group_id, key_type);
    elsif exists (
        select from automator67.colocation c
        where c.id = group_id and c.method in ('range', 'directory')
    ) then
        -- A table more in such a group, and its other owners could not split or place any more.
        begin
            perform automator67.check_group_owner(group_id);
        exception when insufficient_privilege then
            raise insufficient_privilege using
                message = sqlerrm,
                detail = 'Tables are added to a group by range or directory by who owns all tables of it.',
                hint = 'Distribute the table without colocate_with, or ask the owner.';
        end;
    end if;
    insert into automator67.placement (relation, kind, key_attnum, colocation)
    values (place_distributed.relation, 'distributed', key_number, group_id);
    return group_id;
end
$$;

drop function automator67.place_reference(regclass) cascade;

-- Records that every shard holds a copy of a table.
create function automator67.place_reference(proof text, relation regclass) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'place_reference');
    perform automator67.check_owner(relation);
    insert into automator67.placement (relation, kind) values (place_reference.relation, 'reference');
end
$$;

drop function automator67.unplace(regclass) cascade;

-- Records that all rows of a table are on the home shard.
create function automator67.unplace(proof text, relation regclass) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'unplace');
    perform automator67.check_owner(relation);
    delete from automator67.placement p where p.relation = unplace.relation;
end
$$;

drop function automator67.mark_safe(text) cascade;

-- Records that a person has checked the bodies of all functions that have this name now.
create function automator67.mark_safe(proof text, function_name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'mark_safe');
    if not exists (select from pg_proc p where p.proname = function_name) then
        raise undefined_function using
            message = format('function "%s" does not exist', function_name);
    end if;
    if exists (
        select from pg_proc p
        where p.proname = function_name and not pg_has_role(session_user, p.proowner, 'USAGE')
    ) then
        raise insufficient_privilege using
            message = format('must be owner of function %s', quote_ident(function_name));
    end if;
    insert into automator67.safe_function as s (function, digest)
    select p.oid, automator67.function_digest(p.oid) from pg_proc p where p.proname = function_name
    on conflict (function) do update set digest = excluded.digest;
end
$$;

drop function automator67.default_group(text) cascade;

-- The group of tables that name none, by type of key; made at its first use.
create function automator67.default_group(proof text, key_type text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    perform automator67.check_proof(proof, 'default_group');
    select c.id into group_id from automator67.colocation c
    where c.is_default and c.key_type = default_group.key_type;
    if group_id is null then
        insert into automator67.colocation (key_type, is_default)
        values (default_group.key_type, true) returning id into group_id;
    end if;
    return group_id;
end
$$;

drop function automator67.range_group(text, integer) cascade;

-- A new group of tables by range: one range, on a shard.
create function automator67.range_group(proof text, key_type text, shard integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    perform automator67.check_proof(proof, 'range_group');
    insert into automator67.colocation (key_type, method)
    values (range_group.key_type, 'range') returning id into group_id;
    insert into automator67.range_start (colocation, lower, shard)
    values (group_id, null, range_group.shard);
    return group_id;
end
$$;

drop function automator67.directory_group(text) cascade;

-- A new group of tables by directory.
create function automator67.directory_group(proof text, key_type text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    perform automator67.check_proof(proof, 'directory_group');
    insert into automator67.colocation (key_type, method)
    values (directory_group.key_type, 'directory') returning id into group_id;
    return group_id;
end
$$;

drop function automator67.start_range(integer, text, integer) cascade;

-- Begins a range at a value.
create function automator67.start_range(proof text, group_id integer, lower text, shard integer)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'start_range');
    perform automator67.check_group_owner(group_id);
    insert into automator67.range_start (colocation, lower, shard)
    values (group_id, start_range.lower, start_range.shard);
end
$$;

drop function automator67.assign(integer, text) cascade;

-- The shard of a value that a new row has: the one it has, else the one with the fewest values.
-- Proxies that ask for one value at the same time get one answer, as the key is unique. Whoever
-- may insert into a table of the group may ask; what is written says nothing but where rows go.
-- Plans do not depend on it, so the epoch stays.
create function automator67.assign(proof text, group_id integer, wanted text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    assigned integer;
begin
    perform automator67.check_proof(proof, 'assign');
    -- First of all: whether a value is known is told to those only who may add one.
    if not exists (
        select from automator67.placement p join automator67.colocation g on g.id = p.colocation
        where g.id = group_id and g.method = 'directory'
            and has_any_column_privilege(session_user, p.relation::oid, 'INSERT')
    ) then
        raise insufficient_privilege using
            message = format('permission denied to place a value in colocation group %s', group_id);
    end if;
    select d.shard into assigned from automator67.directory d
    where d.colocation = group_id and d.value = wanted;
    if assigned is not null then
        return assigned;
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
    perform pg_notify(automator67.channel(), '');
    return assigned;
end
$$;

drop function automator67.place_value(integer, text, integer) cascade;

-- Sets the shard of a value; gives the one it had.
create function automator67.place_value(proof text, group_id integer, wanted text, shard integer)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    former integer;
begin
    perform automator67.check_proof(proof, 'place_value');
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

drop function automator67.add_tenant(regnamespace, integer) cascade;

-- Records that all tables of a schema are to be on one shard; gives their group.
create function automator67.add_tenant(proof text, schema regnamespace, shard integer)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    group_id integer;
begin
    perform automator67.check_proof(proof, 'add_tenant');
    perform automator67.check_schema_owner(schema);
    insert into automator67.colocation (method, shard)
    values ('schema', add_tenant.shard) returning id into group_id;
    insert into automator67.tenant (schema, colocation) values (add_tenant.schema, group_id);
    return group_id;
end
$$;

drop function automator67.remove_tenant(regnamespace) cascade;

create function automator67.remove_tenant(proof text, schema regnamespace) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'remove_tenant');
    perform automator67.check_schema_owner(schema);
    delete from automator67.tenant t where t.schema = remove_tenant.schema;
end
$$;

drop function automator67.place_with_schema(regclass, integer) cascade;

-- Records that all rows of a table are on the shard of a schema's group.
create function automator67.place_with_schema(proof text, relation regclass, group_id integer)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'place_with_schema');
    perform automator67.check_owner(relation);
    insert into automator67.placement (relation, kind, colocation)
    values (place_with_schema.relation, 'schema', group_id);
end
$$;

drop function automator67.note_sequences_set(oid[]) cascade;

-- Notes that sequences were set. The caller makes the catalog newer.
create function automator67.note_sequences_set(proof text, sequences oid[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'note_sequences_set');
    insert into automator67.sequence_set as s (sequence)
    select distinct coalesce(sequence, 0::oid) from unnest(sequences) sequence
    order by 1
    on conflict (sequence) do update set times = s.times + 1;
end
$$;

-- What a sequence is: its text changes with every ALTER SEQUENCE, RESTART and setval.
create or replace function automator67.sequence_identity(sequence oid) returns text
language sql stable security invoker set search_path = pg_catalog, pg_temp
as $$
select concat_ws(' ', c.oid, c.relfilenode, s.seqstart, s.seqincrement, s.seqmin, s.seqmax,
    s.seqcache, s.seqcycle, (
        select sum(n.times) from automator67.sequence_set n
        where n.sequence in (0, sequence_identity.sequence)
    ))
from pg_class c join pg_sequence s on s.seqrelid = c.oid
where c.oid = sequence_identity.sequence
$$;

drop function automator67.place_unique_index(text, regclass, text, text) cascade;
drop function automator67.forget_unique_indexes() cascade;

-- Forgets indexes whose table or column is gone.
create function automator67.forget_gone_indexes() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    delete from automator67.unique_index i
    where not exists (
        select from pg_attribute a
        where a.attrelid = i.relation and a.attnum = i.column_number and not a.attisdropped
    );
end
$$;

-- The same for a client's transaction.
create function automator67.forget_unique_indexes(proof text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'forget_unique_indexes');
    perform automator67.forget_gone_indexes();
end
$$;

-- Records an index; gives its number.
create function automator67.place_unique_index(
    proof text, name text, relation regclass, column_name text, key_type text
) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    new_id integer;
begin
    perform automator67.check_proof(proof, 'place_unique_index');
    perform automator67.check_owner(relation);
    perform automator67.forget_gone_indexes();
    insert into automator67.unique_index (name, relation, column_number, key_type)
    select place_unique_index.name, place_unique_index.relation, a.attnum, place_unique_index.key_type
    from pg_attribute a
    where a.attrelid = place_unique_index.relation and a.attname = column_name and not a.attisdropped
    returning id into strict new_id;
    return new_id;
end
$$;

drop function automator67.unplace_unique_index(integer) cascade;

-- The opposite.
create function automator67.unplace_unique_index(proof text, index_id integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'unplace_unique_index');
    perform automator67.check_owner(i.relation) from automator67.unique_index i where i.id = index_id;
    delete from automator67.unique_index i where i.id = index_id;
end
$$;

-- What others lock does not stop the snapshot: what cannot be read soon has no text, and when the
-- snapshot has taken a second nothing is waited for any more.
create function automator67.wait_less() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if clock_timestamp() - statement_timestamp() > interval '1 second' then
        perform set_config('lock_timeout', '1ms', true);
    end if;
end
$$;

create function automator67.view_text(view oid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
begin
    perform automator67.wait_less();
    return rtrim(pg_get_viewdef(view), ';');
exception when lock_not_available then
    return null;
end
$$;

create function automator67.body_text(function oid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
begin
    perform automator67.wait_less();
    return pg_get_function_sqlbody(function);
exception when lock_not_available then
    return null;
end
$$;

-- As in V1, and: temporary objects are of one session and are not in it. What others have of them
-- names function 0. It says if it is not complete.
create or replace function automator67.relations_document() returns text
language sql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
with recursive temporary as materialized (
    select n.oid from pg_namespace n where n.nspname ~ '^pg_(toast_)?temp_'
),
relation as materialized (
    select
        c.oid, n.nspname, c.relname, c.relkind, c.relrowsecurity,
        p.relation is not null as placed, p.kind, p.key_attnum, p.colocation, g.key_type
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join automator67.placement p on p.relation = c.oid
    left join automator67.colocation g on g.id = p.colocation
    where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
        and n.nspname not in ('pg_catalog', 'information_schema')
        and n.nspname !~ '^pg_(toast|temp)'
        and (n.nspname <> 'automator67' or c.relname = 'tables')
),
-- Rules (a view's query is one) and the relations they name.
rule as materialized (
    select distinct w.ev_class as relation, d.refobjid as reads
    from pg_rewrite w
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
    where w.oid >= 16384 and d.refclassid = 'pg_class'::regclass and d.refobjid <> w.ev_class
),
-- Relations with a rule that leads to a placed one. A materialized view has its rows; reading it
-- leads no further.
reader(oid, relkind) as (
    select u.relation, r.relkind
    from relation p
    join rule u on u.reads = p.oid
    join relation r on r.oid = u.relation
    where p.placed
    union
    select u.relation, r.relkind
    from reader v
    join rule u on u.reads = v.oid
    join relation r on r.oid = u.relation
    where v.relkind = 'v'
),
family as materialized (
    select inhrelid as oid from pg_inherits union select inhparent from pg_inherits
),
columns as materialized (
    select
        a.attrelid,
        json_agg(json_build_object(
            'attnum', a.attnum,
            'name', a.attname,
            'type', a.atttypid::bigint,
            'sql_type', format_type(a.atttypid, a.atttypmod),
            'not_null', nullif(a.attnotnull, false),
            'default', case when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end,
            'generated', case when a.attgenerated <> '' then true end,
            'identity', nullif(a.attidentity, ''),
            'sequence', case when a.attidentity <> '' then (
                select quote_ident(sn.nspname) || '.' || quote_ident(s.relname)
                from pg_depend o
                join pg_class s on s.oid = o.objid
                join pg_namespace sn on sn.oid = s.relnamespace
                where o.refclassid = 'pg_class'::regclass and o.refobjid = a.attrelid
                    and o.refobjsubid = a.attnum and o.classid = 'pg_class'::regclass
                    and o.deptype = 'i'
            ) end,
            'collate', case when a.attcollation <> t.typcollation then
                quote_ident(cn.nspname) || '.' || quote_ident(c.collname)
            end,
            'nondeterministic', case when not c.collisdeterministic then true end
        ) order by a.attnum) as list
    from relation r
    join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    left join pg_collation c on c.oid = a.attcollation
    left join pg_namespace cn on cn.oid = c.collnamespace
    where r.relkind <> 'S'
    group by a.attrelid
),
-- Views that lead to placed tables. No text: a lock kept it from being read.
view_text as materialized (
    select r.oid, automator67.view_text(r.oid) as text
    from relation r join reader v on v.oid = r.oid
    where r.relkind in ('v', 'm')
),
-- Functions by what they belong to; no body: a lock kept it from being read. Of extensions' functions only those that run SQL given or put
-- together as text, or that touch what belongs to one server.
function as materialized (
    select
        p.oid, p.proname, l.lanname, e.extname,
        case when e.oid is null and l.lanname in ('sql', 'plpgsql') then
            case when p.prosqlbody is null then p.prosrc else automator67.body_text(p.oid) end
        end as body,
        e.oid is null and l.lanname in ('sql', 'plpgsql') as has_body
    from pg_proc p
    join pg_language l on l.oid = p.prolang
    left join pg_depend d
        on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
    left join pg_extension e on e.oid = d.refobjid
    where p.oid >= 16384 and p.pronamespace <> 'automator67'::regnamespace
        and p.pronamespace not in (select oid from temporary)
        and (e.oid is null
            or e.extname in ('autoinc', 'dblink', 'lo', 'refint', 'tablefunc', 'xml2')
            or l.lanname not in ('c', 'internal') and p.prosrc ~* '\mexecute\M')
),
-- User-defined functions as others name them: 0 stands for all temporary ones.
named as materialized (
    select p.oid, case when t.oid is null then p.oid else 0::oid end as function
    from pg_proc p left join temporary t on t.oid = p.pronamespace
    where p.oid >= 16384
),
-- What calls user-defined functions, directly or through an operator.
call as materialized (
    select d.classid, d.objid, n.function
    from pg_depend d join named n on n.oid = d.refobjid
    where d.refclassid = 'pg_proc'::regclass and d.deptype <> 'e'
    union
    select d.classid, d.objid, n.function
    from pg_depend d
    join pg_operator o on o.oid = d.refobjid
    join named n on n.oid = o.oprcode::oid
    where d.refclassid = 'pg_operator'::regclass and d.refobjid >= 16384 and d.deptype <> 'e'
),
relation_call as (
    select w.ev_class as relation, c.function
    from call c join pg_rewrite w on c.classid = 'pg_rewrite'::regclass and w.oid = c.objid
    union
    select f.adrelid, c.function
    from call c join pg_attrdef f on c.classid = 'pg_attrdef'::regclass and f.oid = c.objid
    union
    select coalesce(a.attrelid, n.conrelid), c.function
    from call c
    join pg_constraint n on c.classid = 'pg_constraint'::regclass and n.oid = c.objid
    left join pg_attribute a on a.atttypid = n.contypid and n.contypid <> 0
    union
    select i.indrelid, c.function
    from call c join pg_index i on c.classid = 'pg_class'::regclass and i.indexrelid = c.objid
    union
    select y.polrelid, c.function
    from call c join pg_policy y on c.classid = 'pg_policy'::regclass and y.oid = c.objid
)
select json_build_object(
    'epoch', (select value from automator67.epoch),
    'shards', (
        select json_agg(json_build_object('id', id, 'name', name, 'home', home) order by id)
        from automator67.shard
    ),
    'ring', (select json_agg(json_build_array(token, shard) order by token) from automator67.ring),
    'schemas', (
        select json_agg(nspname order by nspname) from pg_namespace
        where nspname !~ '^pg_(toast|temp)'
    ),
    'domains', (
        select json_agg(json_build_array(oid::bigint, typbasetype::bigint)) from pg_type
        where typtype = 'd' and oid >= 16384 and typnamespace not in (select oid from temporary)
    ),
    'relations', (
        select json_agg(json_strip_nulls(json_build_object(
            'oid', r.oid::bigint,
            'schema', r.nspname,
            'name', r.relname,
            'kind', r.relkind,
            'placement', case when r.placed then json_build_object(
                'kind', r.kind,
                'key', r.key_attnum,
                'key_type', r.key_type,
                'colocation', r.colocation
            ) end,
            'columns', c.list,
            'primary_key', k.conkey,
            'reads_placed', case when v.oid is not null then true end,
            'view', x.text,
            'rules', case when r.relkind not in ('v', 'm') and exists (
                select from pg_rewrite w where w.ev_class = r.oid
            ) then true end,
            'row_security', nullif(r.relrowsecurity, false),
            'inherits', case when i.oid is not null then true end
        )))
        from relation r
        left join columns c on c.attrelid = r.oid
        left join reader v on v.oid = r.oid
        left join view_text x on x.oid = r.oid
        left join family i on i.oid = r.oid
        left join pg_constraint k on k.conrelid = r.oid and k.contype = 'p'
    ),
    'view_reads', (
        select json_agg(json_build_array(u.relation::bigint, u.reads::bigint))
        from rule u join relation r on r.oid = u.relation
        where r.relkind = 'v'
    ),
    'foreign_keys', (
        select json_agg(json_build_object(
            'name', f.conname,
            'table', f.conrelid::bigint,
            'columns', f.conkey,
            'referenced_table', f.confrelid::bigint,
            'referenced_columns', f.confkey
        ) order by f.oid)
        from pg_constraint f
        where f.contype = 'f' and f.conparentid = 0
            and f.connamespace <> 'automator67'::regnamespace
    ),
    'functions', (
        select json_agg(json_strip_nulls(json_build_object(
            'oid', oid::bigint,
            'name', proname,
            'language', lanname,
            'extension', extname,
            'body', body
        )))
        from function
    ),
    'volatile_functions', (
        select json_agg(distinct proname) from pg_proc
        where oid >= 16384 and provolatile = 'v' and prorettype <> 'trigger'::regtype
            and pronamespace <> 'automator67'::regnamespace
            and pronamespace not in (select oid from temporary)
    ),
    'safe_functions', (
        select json_agg(s.function::bigint) from automator67.safe_function s
        where s.digest = automator67.function_digest(s.function)
    ),
    'function_calls', (
        select json_agg(json_build_array(c.objid::bigint, c.function::bigint))
        from call c join named n on n.oid = c.objid and n.function <> 0
        where c.classid = 'pg_proc'::regclass
    ),
    'relation_calls', (
        select json_agg(json_build_array(c.relation::bigint, c.function::bigint))
        from relation_call c join relation r on r.oid = c.relation
    ),
    'operators', (
        select json_agg(json_build_array(o.oprname, n.function::bigint))
        from pg_operator o join named n on n.oid = o.oprcode::oid
        where o.oprnamespace not in (select oid from temporary)
    ),
    'triggers', (
        select json_agg(json_build_object(
            'relation', t.tgrelid::bigint,
            'name', t.tgname,
            'function', coalesce(n.function, t.tgfoid)::bigint,
            'type', t.tgtype,
            'arguments', encode(t.tgargs, 'escape')
        ) order by t.oid)
        from pg_trigger t
        join relation r on r.oid = t.tgrelid
        left join named n on n.oid = t.tgfoid
        where not t.tgisinternal and t.tgenabled <> 'D'
    ),
    'incomplete', exists (select from view_text where text is null)
        or exists (select from function where has_body and body is null)
)::text
$$;

create or replace function automator67.hashed_document() returns text
language sql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
select left(document, -1) || ', "aggregates": ' || (
    select json_agg(distinct p.proname)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where p.prokind = 'a' and n.nspname !~ '^pg_(toast_)?temp_'
)::text || '}'
from automator67.relations_document() document
$$;

-- The snapshot with the ways in which functions run that nothing in a statement names. Of extensions
-- only those count whose functions are not known to keep nothing in the session.
alter function automator67.catalog_document() rename to document_without_routes;

create function automator67.catalog_document() returns text
language sql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
with temporary as materialized (
    select n.oid from pg_namespace n where n.nspname ~ '^pg_(toast_)?temp_'
),
lasting_type as materialized (
    select t.oid, t.typtype from pg_type t where t.typnamespace not in (select oid from temporary)
),
call as materialized (
    select d.classid, d.objid, d.refobjid as function from pg_depend d
    where d.refclassid = 'pg_proc'::regclass
        and d.refobjid >= 16384 and d.deptype <> 'e'
    union
    select d.classid, d.objid, o.oprcode::oid from pg_depend d
    join pg_operator o on o.oid = d.refobjid
    where d.refclassid = 'pg_operator'::regclass
        and d.refobjid >= 16384 and d.deptype <> 'e' and o.oprcode::oid >= 16384
),
-- Built-in functions that keep something in the session, or run a text. No dependency on them is
-- recorded.
built_in as materialized (
    select p.oid, p.proname from pg_proc p
    where p.oid < 16384 and p.pronamespace = 'pg_catalog'::regnamespace and (
        p.proname = any (array[
            'set_config', 'setseed', 'ts_stat', 'ts_rewrite',
            'pg_replication_origin_session_setup', 'pg_create_physical_replication_slot',
            'pg_create_logical_replication_slot', 'pg_copy_physical_replication_slot',
            'pg_copy_logical_replication_slot', 'pg_backup_start', 'pg_start_backup'
        ]::name[])
        or p.proname ~ '^pg_(try_)?advisory_(?!xact_)'
        or p.proname ~ '^(query|table|cursor|schema|database)_to_xml'
    )
),
-- Stored expressions: the object they are of, whose they are, and when they run. What is planned
-- may run some, as those of indexes and checks.
expression (classid, objid, owner, runs, tree) as (
    select 'pg_attrdef'::regclass::oid, f.oid, f.adrelid, 'write', f.adbin::text
    from pg_attrdef f where f.oid >= 16384
    union all
    select 'pg_constraint'::regclass, n.oid,
        case when n.contypid <> 0 then n.contypid else n.conrelid end,
        case when n.contypid <> 0 then 'implicit' else 'read' end, n.conbin::text
    from pg_constraint n where n.oid >= 16384 and n.conbin is not null
    union all
    select 'pg_type'::regclass, t.oid, t.oid, 'implicit', t.typdefaultbin::text
    from pg_type t where t.oid >= 16384 and t.typdefaultbin is not null
    union all
    select 'pg_rewrite'::regclass, w.oid, w.ev_class,
        case when c.relkind in ('v', 'm') then 'read' else 'write' end,
        concat_ws(' ', w.ev_action::text, w.ev_qual::text)
    from pg_rewrite w join pg_class c on c.oid = w.ev_class where w.oid >= 16384
    union all
    select 'pg_policy'::regclass, y.oid, y.polrelid, 'read',
        concat_ws(' ', y.polqual::text, y.polwithcheck::text)
    from pg_policy y
    union all
    select 'pg_trigger'::regclass, t.oid, t.tgrelid, 'write', t.tgqual::text
    from pg_trigger t where t.oid >= 16384 and t.tgqual is not null
    union all
    select 'pg_class'::regclass, i.indexrelid, i.indrelid, 'read',
        concat_ws(' ', i.indexprs::text, i.indpred::text)
    from pg_index i
    where i.indexrelid >= 16384 and (i.indexprs is not null or i.indpred is not null)
    union all
    -- A partition's constraint has the key of its parents.
    select 'pg_class'::regclass, t.partrelid, r.relid, 'read', t.partexprs::text
    from pg_partitioned_table t cross join lateral pg_partition_tree(t.partrelid) r
    where t.partexprs is not null
    union all
    select 'pg_statistic_ext'::regclass, x.oid, x.stxrelid, 'read', x.stxexprs::text
    from pg_statistic_ext x where x.stxexprs is not null
    union all
    select 'pg_proc'::regclass, p.oid, p.oid, 'call', p.proargdefaults::text
    from pg_proc p where p.oid >= 16384 and p.proargdefaults is not null
),
-- Calls that `relation_calls` and `function_calls` do not have.
stored_call (owner, runs, function) as (
    select e.owner, e.runs, c.function from expression e join call c using (classid, objid)
    where e.runs <> 'call'
    union
    select e.owner, e.runs, found.oids[1]::oid
    from (
        select format(':(?:op)?funcid (%s) ', string_agg(oid::text, '|')) as pattern from built_in
    ) b
    cross join expression e
    cross join lateral regexp_matches(e.tree, b.pattern, 'g') found (oids)
    union
    select a.aggfnoid::oid, 'call', b.oid
    from pg_aggregate a
    join built_in b on b.oid in (
        a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
        a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn
    )
    where a.aggfnoid::oid >= 16384
    union
    select s.oid, 'implicit', b.oid from pg_cast s join built_in b on b.oid = s.castfunc
    where s.oid >= 16384
)
select left(document, -1) || ', "routes": ' || json_build_object(
    'implicit', (
        select json_agg(distinct case when t.oid is null then f.function::bigint else 0 end) from (
            select castfunc as function from pg_cast
            where castsource in (select oid from lasting_type)
                and casttarget in (select oid from lasting_type)
            union select a.amproc::oid from pg_amproc a
            join pg_opfamily f on f.oid = a.amprocfamily
            where f.opfnamespace not in (select oid from temporary)
            union select rngsubdiff::oid from pg_range
            where rngtypid in (select oid from lasting_type)
            union select c.function from call c
            join pg_constraint n on n.oid = c.objid and n.contypid <> 0
            where c.classid = 'pg_constraint'::regclass
                and n.contypid in (select oid from lasting_type)
            union select c.function from call c
            join lasting_type t on t.oid = c.objid and t.typtype = 'd'
            where c.classid = 'pg_type'::regclass
        ) f
        join pg_proc p on p.oid = f.function
        join pg_language l on l.oid = p.prolang
        left join temporary t on t.oid = p.pronamespace
        where f.function >= 16384 and l.lanname not in ('c', 'internal')
    ),
    'definitions', (
        select json_agg(evtfoid::bigint) from pg_event_trigger
        where evtenabled <> 'D'
    ),
    'follows', (
        select json_agg(json_build_array(a::bigint, b::bigint)) from (
            select confrelid as a, conrelid as b from pg_constraint
            where contype = 'f' and confrelid <> conrelid
                and (confupdtype in ('c', 'n', 'd') or confdeltype in ('c', 'n', 'd'))
            union select inhparent, inhrelid from pg_inherits
            union select w.ev_class, d.refobjid from pg_rewrite w
            join pg_depend d
                on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
            where w.oid >= 16384 and d.refobjid <> w.ev_class
                and d.refclassid = 'pg_class'::regclass
        ) pairs
    ),
    'looks_up', (
        select json_agg(json_build_array(a::bigint, b::bigint)) from (
            select conrelid as a, confrelid as b from pg_constraint where contype = 'f'
            union select confrelid, conrelid from pg_constraint where contype = 'f'
        ) pairs
    ),
    'built_in', (select json_agg(json_build_array(oid::bigint, proname)) from built_in),
    'stored_calls', (
        select json_agg(json_build_array(
            owner::bigint, runs, case when t.oid is null then function::bigint else 0 end))
        from stored_call
        join pg_proc p on p.oid = function
        left join temporary t on t.oid = p.pronamespace
        where case runs
            when 'call' then owner not in (
                select oid from pg_proc where pronamespace in (select oid from temporary))
            when 'implicit' then owner not in (
                select oid from pg_type where oid not in (select oid from lasting_type)
                union all
                select oid from pg_cast where castsource not in (select oid from lasting_type)
                    or casttarget not in (select oid from lasting_type))
            else owner not in (
                select oid from pg_class where relnamespace in (select oid from temporary))
        end
    ),
    'operators', (
        select json_agg(json_build_array(o.oprname, b.oid::bigint))
        from pg_operator o join built_in b on b.oid = o.oprcode
        where o.oid >= 16384 and o.oprnamespace not in (select oid from temporary)
    ),
    'internal', (
        select json_agg(p.oid::bigint) from pg_proc p
        join pg_language l on l.oid = p.prolang
        where p.oid >= 16384 and l.lanname = 'internal' and p.prosrc <> 'aggregate_dummy'
            and p.prosrc !~ '^(multi)?range_constructor'
            and p.pronamespace not in (select oid from temporary)
    ),
    'extension_functions', (
        select json_agg(json_build_array(p.proname, e.extname, p.oid::bigint))
        from pg_proc p
        join pg_depend d
            on d.classid = 'pg_proc'::regclass and d.objid = p.oid
                and d.deptype = 'e'
        join pg_extension e on e.oid = d.refobjid
        where p.oid >= 16384 and p.provolatile = 'v'
            and p.pronamespace not in (select oid from temporary) and e.extname <> all (array[
            'adminpack', 'amcheck', 'autoinc', 'bloom', 'btree_gin', 'btree_gist', 'citext',
            'cube', 'dblink', 'dict_int', 'dict_xsyn', 'earthdistance', 'file_fdw',
            'fuzzystrmatch', 'hll', 'hstore', 'insert_username', 'intagg', 'intarray', 'lo',
            'ltree', 'moddatetime', 'old_snapshot', 'pageinspect', 'pg_buffercache', 'pg_cron',
            'pg_freespacemap', 'pg_prewarm', 'pg_repack', 'pg_stat_statements', 'pg_surgery',
            'pg_visibility', 'pg_walinspect', 'pgaudit', 'pgcrypto', 'pgrowlocks',
            'pgstattuple', 'plperl', 'plpgsql', 'plpython3u', 'pltcl', 'postgis',
            'postgis_raster', 'postgis_topology', 'postgres_fdw', 'refint', 'seg', 'sslinfo',
            'tcn', 'tsm_system_rows', 'tsm_system_time', 'unaccent', 'uuid-ossp', 'vector'
        ]::name[])
    )
)::text || '}'
from automator67.document_without_routes() document
$$;

-- The snapshot, for a transaction that has changed the schema. It names values of shard keys.
create function automator67.own_document(proof text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'own_document');
    return automator67.catalog_document();
end
$$;

-- The ranges of every table that has some, in order, to those who may read its key. No lower or
-- upper: no end there.
create or replace view automator67.ranges as
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
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where pg_catalog.has_column_privilege(c.oid, p.key_attnum, 'SELECT');

-- What every client needs on the home shard: views, and what wants the proof.
select automator67.take_rights();
select automator67.give_rights_on_shard();
grant select on
    automator67.tables, automator67.ranges, automator67.unique_indexes, automator67.shards,
    automator67.pools, automator67.sessions, automator67.transactions, automator67.sequence_set
to public;
grant execute on function
    automator67.own_document(text), automator67.sequence_identity(oid), automator67.bump(text),
    automator67.place_distributed(text, regclass, text, text, integer),
    automator67.place_reference(text, regclass), automator67.unplace(text, regclass),
    automator67.mark_safe(text, text), automator67.default_group(text, text),
    automator67.range_group(text, text, integer), automator67.directory_group(text, text),
    automator67.start_range(text, integer, text, integer), automator67.assign(text, integer, text),
    automator67.place_value(text, integer, text, integer),
    automator67.add_tenant(text, regnamespace, integer),
    automator67.remove_tenant(text, regnamespace),
    automator67.place_with_schema(text, regclass, integer),
    automator67.note_sequences_set(text, oid[]), automator67.forget_unique_indexes(text),
    automator67.place_unique_index(text, text, regclass, text, text),
    automator67.unplace_unique_index(text, integer)
to public;
