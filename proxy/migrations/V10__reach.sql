-- The snapshot with what code behind relations and types reads and calls, where nothing in a statement
-- names it.
alter function automator67.catalog_document() rename to document_without_reach;

create function automator67.catalog_document() returns text
language sql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
with recursive temporary as materialized (
    select n.oid from pg_namespace n where n.nspname ~ '^pg_(toast_)?temp_'
),
-- Functions of the user's, and of operators, that objects depend on. 0 stands for all temporary ones.
call as materialized (
    select d.classid, d.objid, case when t.oid is null then p.oid else 0::oid end as function
    from pg_depend d
    left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
    join pg_proc p on p.oid = case d.refclassid
        when 'pg_proc'::regclass then d.refobjid
        when 'pg_operator'::regclass then o.oprcode::oid
    end
    join pg_language l on l.oid = p.prolang
    left join temporary t on t.oid = p.pronamespace
    where d.refobjid >= 16384 and d.deptype <> 'e' and d.classid in (
        'pg_constraint'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass
    ) and l.lanname not in ('c', 'internal')
),
-- Types of which making a value runs code: domains by their checks and defaults, and both ends of a
-- cast.
code (type, function) as (
    select n.contypid, c.function
    from pg_constraint n
    join call c on c.classid = 'pg_constraint'::regclass and c.objid = n.oid
    where n.contypid <> 0
    union
    select t.oid, c.function
    from pg_type t join call c on c.classid = 'pg_type'::regclass and c.objid = t.oid
    union
    select e.oid, c.function
    from pg_cast s
    join call c on c.classid = 'pg_cast'::regclass and c.objid = s.oid
    cross join lateral (values (s.castsource), (s.casttarget)) e (oid)
    where e.oid >= 16384
),
-- And types that hold such: arrays, domains, rows and ranges of them.
holder (type, function) as (
    select type, function from code
    union
    select w.oid, h.function
    from holder h
    cross join lateral (
        select t.oid from pg_type t where t.typelem = h.type and t.typcategory = 'A'
        union all
        select t.oid from pg_type t where t.typtype = 'd' and t.typbasetype = h.type
        union all
        select c.reltype
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        where a.atttypid = h.type and a.attnum > 0 and not a.attisdropped and c.reltype <> 0
        union all
        select r.rngtypid from pg_range r where r.rngsubtype = h.type
    ) w
)
select left(document, -1) || ', "reach": ' || json_build_object(
    'policy_reads', (
        select json_agg(distinct jsonb_build_array(y.polrelid::bigint, d.refobjid::bigint))
        from pg_policy y
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = y.oid
        where d.refclassid = 'pg_class'::regclass and d.refobjid <> y.polrelid
    ),
    'types', (
        select json_agg(json_build_array(h.type::bigint, t.typname, h.function::bigint))
        from holder h join pg_type t on t.oid = h.type
        where t.typnamespace not in (select oid from temporary)
    ),
    'transitions', (
        select json_agg(json_build_array(t.tgrelid::bigint, t.tgname))
        from pg_trigger t
        where not t.tgisinternal and t.tgtype & 1 = 1
            and (t.tgoldtable is not null or t.tgnewtable is not null)
    ),
    'not_valid', (
        select json_agg(json_build_array(f.conrelid::bigint, f.conname))
        from pg_constraint f where f.contype = 'f' and not f.convalidated
    )
)::text || '}'
from automator67.document_without_reach() document
$$;

revoke all on function automator67.catalog_document() from public;
