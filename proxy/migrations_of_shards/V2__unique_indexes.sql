-- Uniqueness over all shards of columns that are not the shard key. The values of such a column are
-- kept in a table of their own, each value on the shard of its hash, beside the shard key of its
-- row. Triggers note what statements change; the proxy takes the notes after each statement and
-- brings the values up to date in the same transaction.

-- The values. Nobody but the proxy's own functions reads or writes there.
create schema automator67_index;

-- The shard's part of every index. `column_name` and `owner_name` are those that the functions were
-- made for.
create table automator67.index_part (
    id              integer primary key,
    name            text not null unique,
    relation        regclass not null,
    column_number   smallint not null,
    owner_number    smallint not null,
    column_name     text not null,
    owner_name      text not null
);

-- What a transaction has changed and the proxy has not yet taken. Rows live for one statement and
-- are never seen by another transaction, so nothing of them needs to survive a crash.
create unlogged table automator67.index_change (
    transaction     xid8 not null default pg_current_xact_id(),
    number          bigint generated always as identity,
    part            integer not null,
    -- 1: added; -1: removed; 0: all values are gone.
    amount          integer not null,
    held            text[],
    owners          text[],
    primary key (transaction, number)
);

-- A transaction must not end with notes that nobody has taken.
create function automator67.a67_refuse_left_changes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from automator67.index_change c
        where c.transaction = new.transaction and c.number = new.number
    ) then
        raise serialization_failure using
            message = 'could not serialize access due to a new global unique index',
            detail = 'The statement was planned before the index was there, or it writes inside of a function.',
            hint = 'Repeat the transaction. Write with statements of your own instead of inside of functions.';
    end if;
    return null;
end
$$;

create constraint trigger a67_left_changes after insert on automator67.index_change
deferrable initially deferred for each row execute function automator67.a67_refuse_left_changes();

-- Takes this transaction's notes: what is to be added (amount > 0) and removed (amount < 0). A row
-- without amount says that all values of the index are gone.
create function automator67.a67_take_index_changes()
returns table (part integer, held text, owner text, amount bigint)
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
with taken as (
    delete from automator67.index_change c
    where c.transaction = pg_current_xact_id_if_assigned()
    returning c.part, c.amount, c.held, c.owners
)
select t.part, u.held, u.owner, sum(t.amount)
from taken t
cross join lateral unnest(t.held, t.owners) u(held, owner)
group by t.part, u.held, u.owner
having sum(t.amount) <> 0
union all
select distinct t.part, null, null, null::bigint from taken t where t.amount = 0
$$;

-- The functions of one index, for the names that its columns have now. All of them read and print
-- values in one way, whatever the session's settings are.
create function automator67.a67_make_index_functions(part integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $body$
declare
    index automator67.index_part;
    held_type text;
    wanted_type text;
    owner_type text;
    settings constant text := 'security definer set search_path = pg_catalog, pg_temp
        set datestyle = ''ISO, YMD'' set timezone = ''UTC''';
    rows_of constant text := 'select %1$I::text as held, %2$I::text as owner from %3$s where %1$I is not null';
begin
    select * into strict index from automator67.index_part p where p.id = part;
    select format_type(a.atttypid, a.atttypmod) into strict held_type
    from pg_attribute a where a.attrelid = index.relation and a.attnum = index.column_number;
    select format_type(a.atttypid, a.atttypmod) into strict owner_type
    from pg_attribute a where a.attrelid = index.relation and a.attnum = index.owner_number;

    -- A number that is too large for the column, or a string that is too long, is equal to nothing.
    wanted_type := case
        when held_type in ('smallint', 'integer') then 'bigint'
        when held_type like 'character varying%' then 'text'
        else held_type
    end;

    -- Notes what a statement has changed, some thousand values in each row.
    execute format($make$
        create or replace function automator67.a67_note_%1$s() returns trigger
        language plpgsql %2$s
        as $note$
        begin
            if current_setting('automator67.proxy', true) is distinct from 'on' then
                raise object_not_in_prerequisite_state using
                    message = format('cannot write to table "%%s" directly', tg_table_name),
                    detail = 'It has a global unique index, whose values are on other shards.',
                    hint = 'Write through the proxy.';
            end if;
            if tg_op = 'TRUNCATE' then
                insert into automator67.index_change (part, amount) values (%1$s, 0);
            elsif tg_op = 'INSERT' then
                insert into automator67.index_change (part, amount, held, owners)
                select %1$s, 1, array_agg(held), array_agg(owner)
                from (
                    select *, (row_number() over () - 1) / 2000 as piece from (%3$s) as numbered
                ) as pieces
                group by piece;
            elsif tg_op = 'DELETE' then
                insert into automator67.index_change (part, amount, held, owners)
                select %1$s, -1, array_agg(held), array_agg(owner)
                from (
                    select *, (row_number() over () - 1) / 2000 as piece from (%4$s) as numbered
                ) as pieces
                group by piece;
            else
                insert into automator67.index_change (part, amount, held, owners)
                select %1$s, sign, array_agg(held), array_agg(owner)
                from (
                    select *, (row_number() over (partition by sign) - 1) / 2000 as piece
                    from (
                        select -1 as sign, * from (%4$s except all %3$s) as removed
                        union all
                        select 1, * from (%3$s except all %4$s) as added
                    ) as changed
                ) as pieces
                group by sign, piece;
            end if;
            return null;
        end
        $note$
        $make$,
        part, settings,
        format(rows_of, index.column_name, index.owner_name, 'new_rows'),
        format(rows_of, index.column_name, index.owner_name, 'old_rows'));

    -- All values of this shard's rows.
    execute format($make$
        create or replace function automator67.a67_rows_%1$s()
        returns table (held text, owner text)
        language sql volatile %2$s
        as $rows$ %3$s $rows$
        $make$,
        part, settings,
        format(rows_of, index.column_name, index.owner_name, 'only ' || index.relation));

    -- Removes values, then adds others. A transaction over several shards is visible on one of them
    -- a little before it is on another: a value that is not here yet is waited for.
    execute format($make$
        create or replace function automator67.a67_apply_%1$s(
            removed text[], removed_owners text[], added text[], added_owners text[]
        ) returns void
        language plpgsql %2$s
        as $apply$
        declare
            late text[];
            late_owners text[];
            changed bigint;
        begin
            if cardinality(removed) > 0 then
                with gone as (
                    delete from automator67_index.index_%1$s i
                    using unnest(removed, removed_owners) r(held, owner)
                    where i.value = r.held::%3$s and i.owner is not distinct from r.owner::%4$s
                    returning r.held, r.owner
                )
                select array_agg(m.held), array_agg(m.owner) into late, late_owners
                from (
                    select * from unnest(removed, removed_owners)
                    except all select g.held, g.owner from gone g
                ) m(held, owner);
            end if;
            if late is not null then
                insert into automator67_index.index_%1$s (value, owner)
                select r.held::%3$s, r.owner::%4$s from unnest(late, late_owners) r(held, owner)
                on conflict (value) do nothing;
                get diagnostics changed = row_count;
                if changed = 0 then
                    delete from automator67_index.index_%1$s i
                    using unnest(late, late_owners) r(held, owner)
                    where i.value = r.held::%3$s and i.owner is not distinct from r.owner::%4$s;
                    get diagnostics changed = row_count;
                    changed := cardinality(late) - changed;
                end if;
                if changed <> 0 then
                    raise index_corrupted using
                        message = format('global unique index "%%s" does not hold what its table holds', %5$L),
                        hint = 'Drop the index and create it again.';
                end if;
            end if;
            if cardinality(added) > 0 then
                insert into automator67_index.index_%1$s (value, owner)
                select a.held::%3$s, a.owner::%4$s from unnest(added, added_owners) a(held, owner);
            end if;
        end
        $apply$
        $make$,
        part, settings, held_type, owner_type, index.name);

    -- The shard key of the row with a value. `known` is null where a transaction that is just
    -- becoming visible may have such a row.
    execute format($make$
        create or replace function automator67.a67_owner_%1$s(
            wanted text, out known boolean, out owner text
        )
        language plpgsql volatile %2$s
        as $owner$
        begin
            select true, i.owner::text into known, owner
            from automator67_index.index_%1$s i where i.value = wanted::%3$s;
            if found then
                return;
            end if;
            perform from pg_prepared_xacts p where p.database = current_database();
            if found then
                return;
            end if;
            select true, i.owner::text into known, owner
            from automator67_index.index_%1$s i where i.value = wanted::%3$s;
            known := found;
        end
        $owner$
        $make$,
        part, settings, wanted_type);
end
$body$;

-- Only who owns a table may index it.
create function automator67.a67_check_index_owner(relation regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (
        select from pg_class c
        where c.oid = relation and pg_has_role(session_user, c.relowner, 'USAGE')
    ) then
        raise insufficient_privilege using message = format('must be owner of table %s', relation);
    end if;
end
$$;

-- Removes a shard's part of an index. Its triggers go with their function.
create function automator67.a67_drop_part(part integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('drop function if exists automator67.a67_note_%s() cascade', part);
    execute format('drop function if exists automator67.a67_rows_%s()', part);
    execute format(
        'drop function if exists automator67.a67_apply_%s(text[], text[], text[], text[])', part);
    execute format('drop function if exists automator67.a67_owner_%s(text)', part);
    execute format('drop table if exists automator67_index.index_%s', part);
    delete from automator67.index_part p where p.id = part;
end
$$;

-- After changes of the schema: parts of tables and columns that are gone go, too, and functions
-- follow columns that have another name now.
create function automator67.a67_renew_indexes() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
    part record;
begin
    for part in
        select p.*, c.attname::text as column_now, o.attname::text as owner_now
        from automator67.index_part p
        left join pg_attribute c on c.attrelid = p.relation and c.attnum = p.column_number
            and not c.attisdropped
        left join pg_attribute o on o.attrelid = p.relation and o.attnum = p.owner_number
            and not o.attisdropped
        where (c.attname, o.attname) is distinct from (p.column_name, p.owner_name)
        order by p.id
    loop
        if part.column_now is null or part.owner_now is null then
            perform automator67.a67_drop_part(part.id);
        else
            update automator67.index_part p
            set column_name = part.column_now, owner_name = part.owner_now where p.id = part.id;
            perform automator67.a67_make_index_functions(part.id);
        end if;
    end loop;
end
$$;

-- Makes a shard's part of an index, empty, and has changes noted from now on.
create function automator67.a67_make_index(
    part integer, name text, relation regclass, column_name text, owner_name text
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
    held record;
    owner record;
begin
    perform automator67.a67_check_index_owner(relation);
    perform automator67.a67_renew_indexes();
    select a.attnum, format_type(a.atttypid, a.atttypmod) as type,
        coalesce(' collate ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname), '') as collation
    into strict held
    from pg_attribute a
    left join pg_collation c on c.oid = a.attcollation
    left join pg_namespace n on n.oid = c.collnamespace
    where a.attrelid = relation and a.attname = column_name and not a.attisdropped;
    select a.attnum, format_type(a.atttypid, a.atttypmod) as type into strict owner
    from pg_attribute a
    where a.attrelid = relation and a.attname = owner_name and not a.attisdropped;
    insert into automator67.index_part
    values (part, name, relation, held.attnum, owner.attnum, column_name, owner_name);
    execute format(
        'create table automator67_index.index_%s (value %s%s constraint %I primary key, owner %s)',
        part, held.type, held.collation, name, owner.type);
    perform automator67.a67_make_index_functions(part);
    execute format(
        'create trigger a67_index_%1$s_insert after insert on %2$s
            referencing new table as new_rows
            for each statement execute function automator67.a67_note_%1$s();
        create trigger a67_index_%1$s_update after update on %2$s
            referencing old table as old_rows new table as new_rows
            for each statement execute function automator67.a67_note_%1$s();
        create trigger a67_index_%1$s_delete after delete on %2$s
            referencing old table as old_rows
            for each statement execute function automator67.a67_note_%1$s();
        create trigger a67_index_%1$s_truncate after truncate on %2$s
            for each statement execute function automator67.a67_note_%1$s();
        alter table %2$s enable always trigger a67_index_%1$s_insert;
        alter table %2$s enable always trigger a67_index_%1$s_update;
        alter table %2$s enable always trigger a67_index_%1$s_delete;
        alter table %2$s enable always trigger a67_index_%1$s_truncate',
        part, relation);
end
$$;

-- The opposite.
create function automator67.a67_drop_index(part integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
    indexed regclass;
begin
    select p.relation into indexed from automator67.index_part p where p.id = part;
    if found then
        perform automator67.a67_check_index_owner(indexed);
        perform automator67.a67_drop_part(part);
    end if;
end
$$;

-- After TRUNCATE of its table.
create function automator67.a67_empty_index(part integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('truncate automator67_index.index_%s', part);
end
$$;
