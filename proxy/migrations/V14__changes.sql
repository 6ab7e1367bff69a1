-- Most changes of the schema touch a few relations and nothing else. The epoch notes which, and who has
-- the snapshot of an epoch before it reads the part of them.

-- Names of the relations that the change to an epoch touched, of the last epochs. Null: anything.
create table automator67.epoch_change (
    epoch       bigint primary key,
    relations   text[]
);

drop function automator67.bump(text) cascade;
drop function automator67.make_newer() cascade;

-- Makes the catalog one epoch newer and announces it. Call it last in a transaction that changed
-- tables or placements: it holds the epoch's row until the commit.
create function automator67.make_newer(relations text[] default null) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    -- How many epochs are looked back on.
    kept constant bigint := 100;
    new_epoch bigint;
begin
    -- A later relation or schema could be given a dropped one's oid; it must not inherit its
    -- placement. Where it is known what was touched, nothing was dropped.
    if relations is null then
        delete from automator67.placement p
        where not exists (select from pg_class c where c.oid = p.relation);
        delete from automator67.tenant t
        where not exists (select from pg_namespace n where n.oid = t.schema);
        delete from automator67.safe_function s
        where s.digest is distinct from automator67.function_digest(s.function);
    end if;
    update automator67.epoch set value = value + 1 returning value into strict new_epoch;
    delete from automator67.epoch_change c where c.epoch <= new_epoch - kept;
    insert into automator67.epoch_change (epoch, relations)
    values (new_epoch, make_newer.relations);
    perform pg_notify(automator67.channel(), new_epoch::text);
    return new_epoch;
end
$$;

-- The same for a client's transaction.
create function automator67.bump(proof text, relations text[]) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'bump');
    return automator67.make_newer(relations);
end
$$;

-- ---- what the whole snapshot and a part of it have in common ----

-- The relations that the snapshot tells of.
create view automator67.snapshot_relation as
select c.oid, c.relname, c.relkind
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    and n.nspname not in ('pg_catalog', 'information_schema')
    and n.nspname !~ '^pg_(toast|temp)'
    and (n.nspname <> 'automator67' or c.relname = 'tables');

-- What it tells of some. They are looked up one by one, by a plan that is kept and stays good: most
-- often they are few, and there may be more beside them than when it was made. Of `readers`, which
-- have a rule that leads to a placed table, the views' texts are given.
create function automator67.relation_entries(wanted oid[], readers oid[], texts text[]) returns json
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return (
        select json_agg(json_strip_nulls(json_build_object(
            'oid', c.oid::bigint,
            'schema', n.nspname,
            'name', c.relname,
            'kind', c.relkind,
            'placement', (
                select json_build_object(
                    'kind', p.kind,
                    'key', p.key_attnum,
                    'key_type', g.key_type,
                    'colocation', p.colocation
                )
                from automator67.placement p
                left join automator67.colocation g on g.id = p.colocation
                where p.relation = c.oid
            ),
            'columns', case when c.relkind <> 'S' then (
                select json_agg(json_build_object(
                    'attnum', a.attnum,
                    'name', a.attname,
                    'type', a.atttypid::bigint,
                    'sql_type', format_type(a.atttypid, a.atttypmod),
                    'not_null', nullif(a.attnotnull, false),
                    -- It names no column. With the table's oid it would wait for who holds that.
                    'default', case when a.atthasdef and a.attgenerated = '' then (
                        select pg_get_expr(d.adbin, 0) from pg_attrdef d
                        where d.adrelid = a.attrelid and d.adnum = a.attnum
                    ) end,
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
                    'collate', case when a.attcollation <> 0 and a.attcollation <> (
                        select t.typcollation from pg_type t where t.oid = a.atttypid
                    ) then (
                        select quote_ident(cn.nspname) || '.' || quote_ident(l.collname)
                        from pg_collation l join pg_namespace cn on cn.oid = l.collnamespace
                        where l.oid = a.attcollation
                    ) end,
                    -- None that is built in is.
                    'nondeterministic', case when a.attcollation >= 16384 then (
                        select nullif(not l.collisdeterministic, false)
                        from pg_collation l where l.oid = a.attcollation
                    ) end
                ) order by a.attnum)
                from pg_attribute a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            ) end,
            'primary_key', (
                select k.conkey from pg_constraint k where k.conrelid = c.oid and k.contype = 'p'
            ),
            'reads_placed', case when c.relhasrules then nullif(c.oid = any (readers), false) end,
            'view', case when c.relhasrules then texts[array_position(readers, c.oid)] end,
            'rules', case when c.relhasrules and c.relkind not in ('v', 'm') and exists (
                select from pg_rewrite w where w.ev_class = c.oid
            ) then true end,
            'row_security', nullif(c.relrowsecurity, false),
            'inherits', case when exists (select from pg_inherits i where i.inhrelid = c.oid)
                or exists (select from pg_inherits i where i.inhparent = c.oid)
            then true end
        )))
        from unnest(wanted) w (oid)
        join pg_class c on c.oid = w.oid
        join pg_namespace n on n.oid = c.relnamespace
    );
end
$$;

-- Their foreign keys.
create function automator67.foreign_key_entries(wanted oid[]) returns json
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return (
        select json_agg(json_build_object(
            'name', f.conname,
            'table', f.conrelid::bigint,
            'columns', f.conkey,
            'referenced_table', f.confrelid::bigint,
            'referenced_columns', f.confkey
        ) order by f.oid)
        from unnest(wanted) w (oid)
        join pg_constraint f on f.conrelid = w.oid
        where f.contype = 'f' and f.conparentid = 0
    );
end
$$;

-- As in V9.
create or replace function automator67.relations_document() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
    return (
with recursive temporary as materialized (
    select n.oid from pg_namespace n where n.nspname ~ '^pg_(toast_)?temp_'
),
relation as materialized (
    select c.oid, c.relkind, p.relation is not null as placed
    from automator67.snapshot_relation c left join automator67.placement p on p.relation = c.oid
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
-- Views that lead to placed tables. No text: a lock kept it from being read.
view_text as materialized (
    select r.oid, automator67.view_text(r.oid) as text
    from relation r join reader v on v.oid = r.oid
    where r.relkind in ('v', 'm')
),
-- Functions by what they belong to; no body: a lock kept it from being read. Of extensions' functions
-- only those that run SQL given or put together as text, or that touch what belongs to one server.
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
    'relations', automator67.relation_entries(
        array(select oid from relation),
        array(select v.oid from reader v order by v.oid),
        array(select x.text from reader v left join view_text x on x.oid = v.oid order by v.oid)),
    'view_reads', (
        select json_agg(json_build_array(u.relation::bigint, u.reads::bigint))
        from rule u join relation r on r.oid = u.relation
        where r.relkind = 'v'
    ),
    'foreign_keys', automator67.foreign_key_entries(array(select oid from relation)),
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
    );
end
$$;

-- ---- the part ----

-- What is new since the snapshot of epoch `since` where nothing has changed but relations of these
-- names, with their sequences: new ones, new columns and new constraints, and nothing dropped. Null
-- where more than the relations themselves may look other than before.
create function automator67.changed_relations(since bigint, names text[]) returns json
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    changed oid[] := array(
        select r.oid from automator67.snapshot_relation r where r.relname = any (names::name[])
    );
begin
    changed := changed || array(
        select s.oid
        from unnest(changed) t (oid)
        join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
            and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        where s.oid <> all (changed)
    );
    if exists (
        select from unnest(changed) t (oid) join pg_class c on c.oid = t.oid
        where c.relkind not in ('r', 'S') or c.relispartition or c.relhassubclass or c.relhasrules
            or exists (select from pg_inherits i where i.inhrelid = c.oid)
            -- A type of such a name may be what a name means from now on.
            or exists (
                select from pg_type y
                join pg_type b on b.typname = y.typname
                    and b.typnamespace = 'pg_catalog'::regnamespace
                where y.oid = c.reltype
                    or y.oid = (select own.typarray from pg_type own where own.oid = c.reltype)
            )
            -- A definition that is printed with the names of its columns.
            or exists (
                select from pg_depend d
                where d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid
                    and d.classid in ('pg_rewrite'::regclass, 'pg_proc'::regclass)
            )
    ) then
        return null;
    end if;
    return json_build_object(
        'since', since,
        'relations', automator67.relation_entries(changed, array[]::oid[], array[]::text[]),
        'foreign_keys', automator67.foreign_key_entries(changed),
        'follows', (
            select json_agg(json_build_array(f.confrelid::bigint, f.conrelid::bigint))
            from unnest(changed) t (oid)
            join pg_constraint f on f.conrelid = t.oid and f.contype = 'f'
            where f.confrelid <> f.conrelid
                and (f.confupdtype in ('c', 'n', 'd') or f.confdeltype in ('c', 'n', 'd'))
        ),
        'looks_up', (
            select json_agg(json_build_array(f.conrelid::bigint, f.confrelid::bigint))
            from unnest(changed) t (oid)
            join pg_constraint f on f.conrelid = t.oid and f.contype = 'f'
        ),
        'not_valid', (
            select json_agg(json_build_array(f.conrelid::bigint, f.conname))
            from unnest(changed) t (oid)
            join pg_constraint f on f.conrelid = t.oid and f.contype = 'f'
            where not f.convalidated
        )
    );
end
$$;

-- What is new since the snapshot of epoch `since`, for a transaction that has changed relations of
-- names `own` besides. Null where it is not known: the whole snapshot says it.
create function automator67.changes_since(since bigint, own text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    -- More are read as fast in whole.
    names_max constant integer := 200;
    latest bigint;
    names text[] := own;
    news json;
begin
    select e.value into strict latest from automator67.epoch e;
    if since is null or own is null or since > latest or exists (select from pg_event_trigger) or (
        select count(c.relations) from automator67.epoch_change c
        where c.epoch > since and c.epoch <= latest
    ) <> latest - since then
        return null;
    end if;
    select names || coalesce(array_agg(n.name), array[]::text[]) into names
    from automator67.epoch_change c cross join lateral unnest(c.relations) n (name)
    where c.epoch > since and c.epoch <= latest;
    if cardinality(names) > names_max then
        return null;
    end if;
    news := automator67.changed_relations(since, names);
    return case when news is not null then
        json_build_object('epoch', latest, 'news', news)::text
    end;
end
$$;

-- The snapshot, for who has that of epoch `since`: what is new, or the whole.
create function automator67.newer_document(since bigint) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        automator67.changes_since(since, array[]::text[]), automator67.catalog_document());
end
$$;

drop function automator67.own_document(text) cascade;

-- The same for a transaction that has changed the schema: relations of names `own`, null: anything. It
-- names values of shard keys. A client's connection lives long, and asks seldom for the whole: that
-- is planned each time.
create function automator67.own_document(proof text, since bigint, own text[]) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = auto
as $$
declare
    news text;
begin
    perform automator67.check_proof(proof, 'own_document');
    news := automator67.changes_since(since, own);
    if news is not null then
        return news;
    end if;
    perform set_config('plan_cache_mode', 'force_custom_plan', true);
    return automator67.catalog_document();
end
$$;

revoke all on type automator67.epoch_change, automator67.snapshot_relation from public;
revoke all on function
    automator67.make_newer(text[]), automator67.bump(text, text[]),
    automator67.relation_entries(oid[], oid[], text[]), automator67.foreign_key_entries(oid[]),
    automator67.changed_relations(bigint, text[]), automator67.changes_since(bigint, text[]),
    automator67.newer_document(bigint), automator67.own_document(text, bigint, text[])
from public;
grant execute on function
    automator67.bump(text, text[]), automator67.own_document(text, bigint, text[])
to public;
