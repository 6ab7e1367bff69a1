-- Reading the snapshot's document costs less: every change of the schema is followed by it.
do $$
declare
    part constant text := 'document_without_reach';
    body text;
    -- What stands there, and what does the same by an index.
    edits constant text[][] := array[
        [
            $x$or p.proname ~ '^pg_(try_)?advisory_(?!xact_)'
        or p.proname ~ '^(query|table|cursor|schema|database)_to_xml'$x$,
            $x$or p.proname like 'pg\_advisory\_%' and p.proname not like 'pg\_advisory\_xact\_%'
        or p.proname like 'pg\_try\_advisory\_%' and p.proname not like 'pg\_try\_advisory\_xact\_%'
        or p.proname like 'query\_to\_xml%' or p.proname like 'table\_to\_xml%'
        or p.proname like 'cursor\_to\_xml%' or p.proname like 'schema\_to\_xml%'
        or p.proname like 'database\_to\_xml%'$x$
        ],
        [
            $x$from stored_call
        join pg_proc p on p.oid = function$x$,
            $x$from stored_call
        cross join lateral (select pronamespace from pg_proc where oid = function offset 0) p$x$
        ]
    ];
    edit text[];
begin
    select prosrc into strict body
    from pg_proc where pronamespace = 'automator67'::regnamespace and proname = part;
    foreach edit slice 1 in array edits loop
        if position(edit[1] in body) = 0 then
            raise exception 'automator67.%() is not what an earlier migration left', part;
        end if;
        body := replace(body, edit[1], edit[2]);
    end loop;
    execute format(
        'create or replace function automator67.%I() returns text
        language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off as %L',
        part, body);
end
$$;
