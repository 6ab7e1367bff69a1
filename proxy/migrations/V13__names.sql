-- The snapshot with what names mean, and with code that runs where nothing in a statement names it.
alter function automator67.catalog_document() rename to document_without_names;

-- Its plan is kept, as those of the other parts are (V11).
create function automator67.catalog_document() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
    return (
with recursive temporary as materialized (
    select n.oid from pg_namespace n where n.nspname ~ '^pg_(toast_)?temp_'
),
-- Functions as others name them: 0 stands for all temporary ones.
named as materialized (
    select p.oid, case when t.oid is null then p.oid else 0::oid end as function
    from pg_proc p left join temporary t on t.oid = p.pronamespace
    where p.oid >= 16384
),
lasting_type as materialized (
    select t.oid, t.typname from pg_type t where t.typnamespace not in (select oid from temporary)
),
theirs as materialized (
    select n.oid, n.nspname from pg_namespace n
    where n.oid >= 16384 and n.nspname !~ '^(pg_(toast_)?temp_|automator67(_|$))'
        or n.nspname = 'public'
),
-- Functions and operators with the name of a built-in one that take nothing but built-in types, and
-- types with such a name: before pg_catalog on a search path they are what the name means.
hiding (schema, kind, name) as (
    select distinct n.nspname, 'function', p.proname
    from pg_proc p
    join theirs n on n.oid = p.pronamespace
    join pg_proc b on b.proname = p.proname and b.pronamespace = 'pg_catalog'::regnamespace
    where p.oid >= 16384 and not exists (
        select from unnest(p.proargtypes) t(oid) where t.oid >= 16384)
    union all
    select distinct n.nspname, 'operator', o.oprname
    from pg_operator o
    join theirs n on n.oid = o.oprnamespace
    join pg_operator b on b.oprname = o.oprname and b.oprnamespace = 'pg_catalog'::regnamespace
    where o.oid >= 16384 and o.oprleft < 16384 and o.oprright < 16384
    union all
    select n.nspname, 'type', t.typname
    from pg_type t
    join theirs n on n.oid = t.typnamespace
    join pg_type b on b.typname = t.typname and b.typnamespace = 'pg_catalog'::regnamespace
    where t.oid >= 16384
),
-- Functions of operator classes, also by their operators, and the types that they are about.
of_class (family, type, function) as (
    select a.amprocfamily, a.amproclefttype, n.function
    from pg_amproc a join named n on n.oid = a.amproc::oid
    join lasting_type t on t.oid = a.amproclefttype
    union
    select a.amopfamily, a.amoplefttype, n.function
    from pg_amop a join pg_operator o on o.oid = a.amopopr join named n on n.oid = o.oprcode::oid
    join lasting_type t on t.oid = a.amoplefttype
),
-- Views whose texts name numbers that every shard has of its own, and views on those.
number as materialized (
    select format(':(?:relid (?:%s)|funcid (?:%s)) ',
        (select string_agg(c.oid::text, '|') from pg_class c
            where c.relnamespace = 'pg_catalog'::regnamespace and (c.relname = 'pg_class'
                or c.relname ~ '^pg_stat(io)?_(all|user)_(tables|indexes)$')),
        (select string_agg(p.oid::text, '|') from pg_proc p
            where p.pronamespace = 'pg_catalog'::regnamespace and p.proname in (
                'pg_database_size', 'pg_indexes_size', 'pg_relation_size', 'pg_table_size',
                'pg_total_relation_size'))) as pattern
),
rule as materialized (
    select w.oid, w.ev_class, w.ev_action
    from pg_rewrite w
    join pg_class c on c.oid = w.ev_class
    join theirs n on n.oid = c.relnamespace
    where w.oid >= 16384 and c.relkind = 'v'
),
number_view (oid) as (
    select r.ev_class from rule r join number on r.ev_action::text ~ number.pattern
    union
    select r.ev_class
    from number_view v
    join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = v.oid
        and d.classid = 'pg_rewrite'::regclass
    join rule r on r.oid = d.objid
    where r.ev_class <> v.oid
)
select left(document, -1) || ', "names": ' || json_build_object(
    'signatures', (
        select json_agg(json_build_array(
            p.oid::bigint, n.nspname, p.pronargs - p.pronargdefaults,
            case when p.provariadic = 0 then p.pronargs end))
        from pg_proc p
        join theirs n on n.oid = p.pronamespace
        join pg_language l on l.oid = p.prolang
        where p.oid >= 16384 and l.lanname not in ('c', 'internal')
    ),
    'hiding', (select json_agg(json_build_array(schema, kind, name)) from hiding),
    'casts', (
        select json_agg(json_build_array(
            s.castsource::bigint, s.casttarget::bigint, t.typname, n.function::bigint))
        from pg_cast s
        join lasting_type t on t.oid = s.casttarget
        join lasting_type f on f.oid = s.castsource
        join named n on n.oid = s.castfunc
        join pg_proc p on p.oid = s.castfunc
        join pg_language l on l.oid = p.prolang
        where s.oid >= 16384 and l.lanname not in ('c', 'internal')
    ),
    'class_types', (
        select json_agg(json_build_array(c.type::bigint, c.function::bigint))
        from of_class c where c.type >= 16384
    ),
    'class_tables', (
        select json_agg(distinct jsonb_build_array(i.indrelid::bigint, c.function::bigint))
        from pg_index i
        cross join lateral unnest(i.indclass) k(oid)
        join pg_opclass k2 on k2.oid = k.oid
        join of_class c on c.family = k2.opcfamily
        join pg_class r on r.oid = i.indrelid
        where i.indrelid >= 16384 and r.relnamespace not in (select oid from temporary)
    ),
    'event_triggers', (
        select json_agg(json_build_array(e.evtname, n.function::bigint))
        from pg_event_trigger e join named n on n.oid = e.evtfoid where e.evtenabled <> 'D'
    ),
    'number_views', (
        select json_agg(json_build_array(v.oid::bigint, automator67.view_text(v.oid)))
        from number_view v
    )
)::text || '}'
from automator67.document_without_names() document
    );
end
$$;

revoke all on function automator67.catalog_document() from public;
