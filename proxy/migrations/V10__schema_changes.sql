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
