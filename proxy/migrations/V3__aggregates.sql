-- The names of all aggregates: what groups rows can only be told from what does not by its name.
alter function automator67.catalog_document() rename to relations_document;

create function automator67.catalog_document() returns text
language sql stable set search_path = pg_catalog, pg_temp set jit = off
as $$
select left(document, -1) || ', "aggregates": ' || (
    select json_agg(distinct proname) from pg_proc where prokind = 'a'
)::text || '}'
from automator67.relations_document() document
$$;
