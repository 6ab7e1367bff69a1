-- Changes of the schema go on side by side; where rows are changes alone. The epoch's row is written
-- at the end of either, so nobody waits for it for longer than a commit takes.

-- The caller's transaction changes the schema, but not where rows are.
create function automator67.change_schema(proof text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'change_schema');
    lock table automator67.epoch in row exclusive mode;
end
$$;

-- The caller's transaction changes where rows are: what it finds of the schema stays until its end.
create function automator67.hold_schema(proof text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'hold_schema');
    lock table automator67.epoch in share row exclusive mode;
end
$$;

revoke all on function automator67.change_schema(text), automator67.hold_schema(text) from public;
grant execute on function automator67.change_schema(text), automator67.hold_schema(text) to public;

-- The parts of the snapshot's document keep their plans: to plan them takes several times as long as
-- to run them, and every change of the schema is followed by reading it. The follower gives plans up
-- that have become slow.
do $$
declare
    part record;
begin
    for part in
        select p.proname, rtrim(p.prosrc, E' \n;') as query
        from pg_proc p
        join pg_language l on l.oid = p.prolang and l.lanname = 'sql'
        where p.pronamespace = 'automator67'::regnamespace and p.pronargs = 0
            and p.proname in ('relations_document', 'hashed_document',
                'document_without_unique_indexes', 'document_without_routes', 'document_without_reach',
                'catalog_document')
    loop
        execute format(
            'create or replace function automator67.%I() returns text
            language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off as %L',
            part.proname,
            E'#variable_conflict use_column\nbegin\n    return (\n' || part.query || E'\n    );\nend\n');
    end loop;
end
$$;

-- A client's connection lives long, and asks seldom.
alter function automator67.own_document(text) set plan_cache_mode = force_custom_plan;
