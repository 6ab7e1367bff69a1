-- Who may do what, from the ground. Clients work on shards with their own rights, and so does the
-- proxy for them; what it does for itself on such a connection is done by functions with the rights
-- of their owner. Each of those wants a proof first that it is the proxy that calls: a digest of a
-- key that only the owner can read, of the server process and of the function. It is handed over as a
-- parameter, so that no view of running statements shows it. See docs/security.md.

create table automator67.proof_key (
    only_row    boolean primary key default true check (only_row),
    key         bytea not null check (octet_length(key) = 32)
);
insert into automator67.proof_key (key)
select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

-- Fails unless `proof` is that of this server process, for this function.
create function automator67.check_proof(proof text, called text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (
        select from automator67.proof_key k
        -- Compared as digests: how long it takes tells nothing.
        where sha256(convert_to(check_proof.proof, 'UTF8')) = sha256(convert_to(
            encode(sha256(k.key || int4send(pg_backend_pid()) || convert_to(called, 'UTF8') || k.key), 'hex'),
            'UTF8'))
    ) then
        raise insufficient_privilege using
            message = 'permission denied: only the proxy may call this function',
            hint = 'Use the statements and functions that docs/sql.md lists, through the proxy.';
    end if;
end
$$;

-- The number of the lock on a transaction's name. Who does not know the key cannot take it first.
create function automator67.gid_lock(gid text) returns bigint
language sql stable set search_path = pg_catalog, pg_temp
as $$
select ('x' || left(encode(sha256(k.key || convert_to(gid, 'UTF8')), 'hex'), 16))::bit(64)::bigint
from automator67.proof_key k
$$;

drop function automator67.note_commit(bigint, integer, bigint, bigint[]) cascade;
drop function automator67.decide(text, bigint, integer, bigint, bigint[]) cascade;

-- Writes a note of this transaction, see V1.
create function automator67.write_note(proxy bigint, slot integer, number bigint, last bigint[])
returns void language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    lock table automator67.fence in row exclusive mode;
    insert into automator67.commit_register as known (proxy, slot, number, last)
        values (write_note.proxy, write_note.slot, write_note.number, write_note.last)
    on conflict on constraint commit_register_pkey do update
        set number = excluded.number, committed = true, last = excluded.last,
            changed_at = excluded.changed_at
        where known.number < excluded.number;
    if not found then
        raise exception 'the transaction was rolled back because its commit took too long'
            using errcode = 'serialization_failure',
                detail = 'Another proxy, or the recovery, has found a part of it and ended it.',
                hint = 'Repeat the transaction.';
    end if;
end
$$;

-- What a transaction over several shards notes in a part that is about to be prepared.
create function automator67.note_commit(
    proof text, proxy bigint, slot integer, number bigint, last bigint[]
)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'note_commit');
    perform automator67.write_note(proxy, slot, number, last);
end
$$;

-- The transaction `gid` is committed, if this one is. Until this one ends, the lock tells others
-- that it has not ended.
create function automator67.decide(
    proof text, gid text, proxy bigint, slot integer, number bigint, last bigint[]
)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'decide');
    perform pg_advisory_xact_lock(automator67.gid_lock(gid));
    perform automator67.write_note(proxy, slot, number, last);
end
$$;

-- ---- relations that are moved to a shard for one statement ----

-- A schema for this transaction alone, in which who works here may make tables. Nobody else ever
-- sees it: what makes it also removes it, in the same transaction.
create function automator67.open_work(proof text, number bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
    place constant text := 'automator67_work_' || lpad(to_hex(number), 16, '0');
    worker text := current_setting('role');
begin
    perform automator67.check_proof(proof, 'open_work');
    if worker = 'none' then
        worker := session_user;
    end if;
    if to_regnamespace(place) is null then
        execute format('create schema %I', place);
    end if;
    execute format('grant usage, create on schema %I to %I', place, worker);
end
$$;

create function automator67.close_work(proof text, number bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
begin
    perform automator67.check_proof(proof, 'close_work');
    execute format('drop schema %I cascade', 'automator67_work_' || lpad(to_hex(number), 16, '0'));
end
$$;

-- What stood here was for everybody.
do $$
begin
    revoke all on schema automator67_work from public;
    if not exists (select from pg_depend where refclassid = 'pg_namespace'::regclass
        and refobjid = 'automator67_work'::regnamespace)
    then
        drop schema automator67_work;
    end if;
end
$$;

-- ---- global unique indexes ----

-- Values are kept as one of few types of Postgres's own, whatever the columns are: no cast, check
-- or operator that somebody has made ever runs with the rights of these functions' owner. The
-- columns' types are remembered, and looked at before values are read.
alter table automator67.index_part
    add column column_type oid,
    add column owner_type oid;

-- The type of Postgres's own that holds all values of a type; null where there is none.
create function automator67.a67_plain_type(type oid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
with recursive base(oid, next) as (
    select t.oid, nullif(t.typbasetype, 0) from pg_type t where t.oid = a67_plain_type.type
    union all
    select t.oid, nullif(t.typbasetype, 0) from base b join pg_type t on t.oid = b.next
)
select case b.oid::bigint
    when 20 then 'bigint' when 21 then 'bigint' when 23 then 'bigint'
    when 25 then 'text' when 1042 then 'text' when 1043 then 'text'
    when 2950 then 'uuid'
    when 1082 then 'date'
    when 1114 then 'timestamp without time zone'
    when 1184 then 'timestamp with time zone'
end
from base b where b.next is null
$$;

-- A value as all of these functions write it, with the rights of who asks.
create function automator67.a67_plain(value bigint) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$ select value::text $$;
create function automator67.a67_plain(value text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$ select value $$;
create function automator67.a67_plain(value uuid) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$ select value::text $$;
create function automator67.a67_plain(value date) returns text
language sql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$ select value::text $$;
create function automator67.a67_plain(value timestamp without time zone) returns text
language sql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$ select value::text $$;
create function automator67.a67_plain(value timestamp with time zone) returns text
language sql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
set timezone = 'UTC'
as $$ select value::text $$;

drop function automator67.a67_take_index_changes() cascade;

-- Takes this transaction's notes: what is to be added (amount > 0) and removed (amount < 0). A row
-- without amount says that all values of the index are gone.
create function automator67.a67_take_index_changes(proof text)
returns table (part integer, held text, owner text, amount bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform automator67.check_proof(proof, 'a67_take_index_changes');
    return query
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
    select distinct t.part, null, null, null::bigint from taken t where t.amount = 0;
end
$$;

-- The functions of one index, for the names that its columns have now. All of them read and print
-- values in one way, whatever the session's settings are.
create or replace function automator67.a67_make_index_functions(part integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $body$
declare
    index automator67.index_part;
    plain text;
    -- A body is handed over as one literal: nothing in a name can end it.
    made constant text := 'create or replace function automator67.%s
        language plpgsql security definer set search_path = pg_catalog, pg_temp
        set datestyle = ''ISO, YMD'' set timezone = ''UTC'' as %L';
    rows_of constant text := 'select %1$I::pg_catalog.text as held, %2$I::pg_catalog.text as owner
        from %3$s where %1$I is not null';
begin
    select * into strict index from automator67.index_part p where p.id = part;
    plain := automator67.a67_plain_type(index.column_type);
    if plain is null or automator67.a67_plain_type(index.owner_type) is null then
        raise feature_not_supported using
            message = format('column "%s" cannot have a global unique index', index.column_name),
            hint = 'Use a column of type smallint, integer, bigint, text, varchar, uuid, date, timestamp or timestamptz.';
    end if;

    -- Notes what a statement has changed, some thousand values in each row. The columns must be
    -- those that the index was made for: a type that somebody else has made could bring a cast of
    -- its own.
    execute format(made, format('a67_note_%s() returns trigger', part), format($body_of_note$
        begin
            if current_setting('automator67.proxy', true) is distinct from 'on' then
                raise object_not_in_prerequisite_state using
                    message = format('cannot write to table "%%s" directly', tg_table_name),
                    detail = 'It has a global unique index, whose values are on other shards.',
                    hint = 'Write through the proxy.';
            end if;
            if tg_op = 'TRUNCATE' then
                insert into automator67.index_change (part, amount) values (%1$s, 0);
                return null;
            end if;
            if tg_relid <> %4$s or 2 <> (
                select count(*) from pg_attribute a
                where a.attrelid = %4$s and not a.attisdropped and (
                    a.attnum = %5$s and a.attname = %6$L and a.atttypid = %7$s
                    or a.attnum = %8$s and a.attname = %9$L and a.atttypid = %10$s)
            ) then
                raise object_not_in_prerequisite_state using
                    message = format('the columns of table "%%s" are not those of its global unique index', tg_table_name),
                    hint = 'Drop the index and create it again, through the proxy.';
            end if;
            if tg_op = 'INSERT' then
                insert into automator67.index_change (part, amount, held, owners)
                select %1$s, 1, array_agg(held), array_agg(owner)
                from (
                    select *, (row_number() over () - 1) / 2000 as piece from (%2$s) as numbered
                ) as pieces
                group by piece;
            elsif tg_op = 'DELETE' then
                insert into automator67.index_change (part, amount, held, owners)
                select %1$s, -1, array_agg(held), array_agg(owner)
                from (
                    select *, (row_number() over () - 1) / 2000 as piece from (%3$s) as numbered
                ) as pieces
                group by piece;
            else
                insert into automator67.index_change (part, amount, held, owners)
                select %1$s, sign, array_agg(held), array_agg(owner)
                from (
                    select *, (row_number() over (partition by sign) - 1) / 2000 as piece
                    from (
                        select -1 as sign, * from (%3$s except all %2$s) as removed
                        union all
                        select 1, * from (%2$s except all %3$s) as added
                    ) as changed
                ) as pieces
                group by sign, piece;
            end if;
            return null;
        end
        $body_of_note$,
        part,
        format(rows_of, index.column_name, index.owner_name, 'new_rows'),
        format(rows_of, index.column_name, index.owner_name, 'old_rows'),
        index.relation::oid,
        index.column_number, index.column_name, index.column_type,
        index.owner_number, index.owner_name, index.owner_type));

    -- Removes values, then adds others. A transaction over several shards is visible on one of them
    -- a little before it is on another: a value that is not here yet is waited for.
    execute format(made, format('a67_apply_%s(
            proof text, removed text[], removed_owners text[], added text[], added_owners text[]
        ) returns void', part), format($body_of_apply$
        declare
            late text[];
            late_owners text[];
            changed bigint;
        begin
            perform automator67.check_proof(proof, 'a67_apply_%1$s');
            if cardinality(removed) > 0 then
                with gone as (
                    delete from automator67_index.index_%1$s i
                    using unnest(removed, removed_owners) r(held, owner)
                    where i.value = r.held::%2$s and i.owner is not distinct from r.owner
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
                select r.held::%2$s, r.owner from unnest(late, late_owners) r(held, owner)
                on conflict (value) do nothing;
                get diagnostics changed = row_count;
                if changed = 0 then
                    delete from automator67_index.index_%1$s i
                    using unnest(late, late_owners) r(held, owner)
                    where i.value = r.held::%2$s and i.owner is not distinct from r.owner;
                    get diagnostics changed = row_count;
                    changed := cardinality(late) - changed;
                end if;
                if changed <> 0 then
                    raise index_corrupted using
                        message = format('global unique index "%%s" does not hold what its table holds', %3$L),
                        hint = 'Drop the index and create it again.';
                end if;
            end if;
            if cardinality(added) > 0 then
                insert into automator67_index.index_%1$s (value, owner)
                select a.held::%2$s, a.owner from unnest(added, added_owners) a(held, owner);
            end if;
        end
        $body_of_apply$,
        part, plain, index.name));

    -- The shard key of the row with a value. `known` is null where a transaction that is just
    -- becoming visible may have such a row.
    execute format(made, format('a67_owner_%s(
            proof text, wanted text, out known boolean, out owner text
        )', part), format($body_of_owner$
        begin
            perform automator67.check_proof(proof, 'a67_owner_%1$s');
            select true, i.owner into known, owner
            from automator67_index.index_%1$s i where i.value = wanted::%2$s;
            if found then
                return;
            end if;
            perform from pg_prepared_xacts p where p.database = current_database();
            if found then
                return;
            end if;
            select true, i.owner into known, owner
            from automator67_index.index_%1$s i where i.value = wanted::%2$s;
            known := found;
        end
        $body_of_owner$,
        part, plain));

    execute format('revoke all on function
            automator67.a67_note_%1$s(), automator67.a67_apply_%1$s(text, text[], text[], text[], text[]),
            automator67.a67_owner_%1$s(text, text)
        from public', part);
    execute format('grant execute on function
            automator67.a67_apply_%1$s(text, text[], text[], text[], text[]),
            automator67.a67_owner_%1$s(text, text)
        to public', part);
end
$body$;

-- Removes a shard's part of an index. Its triggers go with their function.
create or replace function automator67.a67_drop_part(part integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('drop function if exists automator67.a67_note_%s() cascade', part);
    execute format(
        'drop function if exists automator67.a67_apply_%s(text, text[], text[], text[], text[])', part);
    execute format('drop function if exists automator67.a67_owner_%s(text, text)', part);
    execute format('drop table if exists automator67_index.index_%s', part);
    delete from automator67.index_part p where p.id = part;
end
$$;

drop function automator67.a67_renew_indexes() cascade;

-- Renews one part.
create function automator67.a67_renew_part(
    part integer, column_now text, owner_now text, column_type_now oid, owner_type_now oid
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    was automator67.index_part;
begin
    if column_now is null or owner_now is null then
        perform automator67.a67_drop_part(part);
        return;
    end if;
    select * into strict was from automator67.index_part p where p.id = part;
    -- Somebody has changed the type behind the proxy's back. Their table takes no writes any more, as
    -- the triggers see it.
    if (automator67.a67_plain_type(column_type_now), automator67.a67_plain_type(owner_type_now))
        is distinct from
        (automator67.a67_plain_type(was.column_type), automator67.a67_plain_type(was.owner_type))
    then
        return;
    end if;
    update automator67.index_part p
    set column_name = column_now, owner_name = owner_now,
        column_type = column_type_now, owner_type = owner_type_now
    where p.id = part;
    perform automator67.a67_make_index_functions(part);
end
$$;

-- After changes of the schema: parts of tables and columns that are gone go, too, and functions
-- follow columns that have another name or type now.
create function automator67.a67_renew_parts() returns void
language plpgsql set search_path = pg_catalog, pg_temp
set client_min_messages = warning set lock_timeout = '1s'
as $$
declare
    part record;
begin
    for part in
        select p.*, c.attname::text as column_now, o.attname::text as owner_now,
            c.atttypid as column_type_now, o.atttypid as owner_type_now
        from automator67.index_part p
        left join pg_attribute c on c.attrelid = p.relation and c.attnum = p.column_number
            and not c.attisdropped
        left join pg_attribute o on o.attrelid = p.relation and o.attnum = p.owner_number
            and not o.attisdropped
        where (c.attname, o.attname, c.atttypid, o.atttypid)
            is distinct from (p.column_name::name, p.owner_name::name, p.column_type, p.owner_type)
        order by p.id
    loop
        -- One whose table cannot be changed now stays as it is until the next time; nobody else's
        -- change of the schema fails because of it.
        begin
            perform automator67.a67_renew_part(part.id, part.column_now, part.owner_now,
                part.column_type_now, part.owner_type_now);
        exception when others then
            raise log 'automator67: part % of a global unique index was not renewed: %', part.id, sqlerrm;
        end;
    end loop;
end
$$;

-- The same for a client's transaction.
create function automator67.a67_renew_indexes(proof text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'a67_renew_indexes');
    perform automator67.a67_renew_parts();
end
$$;

drop function automator67.a67_make_index(integer, text, regclass, text, text) cascade;

-- Makes a shard's part of an index, empty, and has changes noted from now on.
create function automator67.a67_make_index(
    proof text, part integer, name text, relation regclass, column_name text, owner_name text
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
    held record;
    owner record;
begin
    perform automator67.check_proof(proof, 'a67_make_index');
    perform automator67.a67_check_index_owner(relation);
    perform automator67.a67_renew_parts();
    select a.attnum, a.atttypid, automator67.a67_plain_type(a.atttypid) as plain,
        coalesce(' collate ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname), '') as collation
    into strict held
    from pg_attribute a
    left join pg_collation c on c.oid = a.attcollation
    left join pg_namespace n on n.oid = c.collnamespace
    where a.attrelid = relation and a.attname = column_name and not a.attisdropped;
    select a.attnum, a.atttypid into strict owner
    from pg_attribute a
    where a.attrelid = relation and a.attname = owner_name and not a.attisdropped;
    insert into automator67.index_part (
        id, name, relation, column_number, owner_number, column_name, owner_name, column_type, owner_type)
    values (
        part, name, relation, held.attnum, owner.attnum, column_name, owner_name, held.atttypid, owner.atttypid);
    -- Refuses types that are not plain, so it comes first.
    perform automator67.a67_make_index_functions(part);
    execute format(
        'create table automator67_index.index_%s (value %s%s constraint %I primary key, owner text)',
        part, held.plain, held.collation, name);
    execute format('revoke all on automator67_index.index_%s from public', part);
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

drop function automator67.a67_drop_index(integer) cascade;

-- The opposite.
create function automator67.a67_drop_index(proof text, part integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
    indexed regclass;
begin
    perform automator67.check_proof(proof, 'a67_drop_index');
    select p.relation into indexed from automator67.index_part p where p.id = part;
    if found then
        perform automator67.a67_check_index_owner(indexed);
        perform automator67.a67_drop_part(part);
    end if;
end
$$;

drop function automator67.a67_empty_index(integer) cascade;

-- After TRUNCATE of its table.
create function automator67.a67_empty_index(proof text, part integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'a67_empty_index');
    execute format('truncate automator67_index.index_%s', part);
end
$$;

-- What the version before has made.
do $$
declare
    part record;
begin
    update automator67.index_part p
    set column_type = c.atttypid, owner_type = o.atttypid
    from pg_attribute c, pg_attribute o
    where c.attrelid = p.relation and c.attnum = p.column_number and not c.attisdropped
        and o.attrelid = p.relation and o.attnum = p.owner_number and not o.attisdropped;
    for part in
        select p.*, automator67.a67_plain_type(p.column_type) as plain,
            coalesce(' collate ' || quote_ident(n.nspname) || '.' || quote_ident(l.collname), '') as collation
        from automator67.index_part p
        left join pg_attribute c on c.attrelid = p.relation and c.attnum = p.column_number
        left join pg_collation l on l.oid = c.attcollation
        left join pg_namespace n on n.oid = l.collnamespace
    loop
        execute format('drop function automator67.a67_rows_%s()', part.id);
        execute format('drop function automator67.a67_apply_%s(text[], text[], text[], text[])', part.id);
        execute format('drop function automator67.a67_owner_%s(text)', part.id);
        if part.column_type is null then
            perform automator67.a67_drop_part(part.id);
            continue;
        end if;
        perform set_config('datestyle', 'ISO, YMD', true), set_config('timezone', 'UTC', true);
        execute format(
            'alter table automator67_index.index_%1$s
                alter column value type %2$s%3$s using value::%2$s,
                alter column owner type text using owner::text',
            part.id, part.plain, part.collation);
        perform automator67.a67_make_index_functions(part.id);
    end loop;
end
$$;

-- ---- who may what ----

-- Takes all rights on what is ours from everybody but its owner.
create function automator67.take_rights() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    taken record;
begin
    for taken in
        select format('revoke all on schema %I from %s', n.nspname, g.grantee) as command
        from pg_namespace n
        cross join lateral (
            select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
            from aclexplode(n.nspacl) a where a.grantee <> n.nspowner
        ) g
        where n.nspname in ('automator67', 'automator67_index')
        union all
        select format('revoke all on %s %s from %s',
            case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass, g.grantee)
        from pg_class c
        cross join lateral (
            select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
            from aclexplode(c.relacl) a where a.grantee <> c.relowner
        ) g
        where c.relnamespace in ('automator67'::regnamespace, 'automator67_index'::regnamespace)
            and c.relkind in ('r', 'v', 'S', 'p')
        union all
        select format('revoke all on function %s from %s', p.oid::regprocedure, g.grantee)
        from pg_proc p
        cross join lateral (
            select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
            from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            where a.grantee <> p.proowner
        ) g
        where p.pronamespace = 'automator67'::regnamespace
        union all
        select format('revoke all on type %s from public', t.oid::regtype)
        from pg_type t
        where t.typnamespace in ('automator67'::regnamespace, 'automator67_index'::regnamespace)
            and t.typtype in ('c', 'd', 'e') and t.typelem = 0
            and exists (
                select from aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) a
                where a.grantee = 0
            )
    loop
        execute taken.command;
    end loop;
end
$$;

-- What every client needs on a shard. All but the notes and the plain values wants the proof.
create function automator67.give_rights_on_shard() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    part integer;
begin
    grant usage on schema automator67 to public;
    grant select on automator67.commit_register to public;
    grant execute on function
        automator67.note_commit(text, bigint, integer, bigint, bigint[]),
        automator67.decide(text, text, bigint, integer, bigint, bigint[]),
        automator67.open_work(text, bigint),
        automator67.close_work(text, bigint),
        automator67.a67_take_index_changes(text),
        automator67.a67_renew_indexes(text),
        automator67.a67_make_index(text, integer, text, regclass, text, text),
        automator67.a67_drop_index(text, integer),
        automator67.a67_empty_index(text, integer),
        automator67.a67_plain(bigint), automator67.a67_plain(text), automator67.a67_plain(uuid),
        automator67.a67_plain(date), automator67.a67_plain(timestamp without time zone),
        automator67.a67_plain(timestamp with time zone)
    to public;
    for part in select p.id from automator67.index_part p loop
        execute format('grant execute on function
                automator67.a67_apply_%1$s(text, text[], text[], text[], text[]),
                automator67.a67_owner_%1$s(text, text)
            to public', part);
    end loop;
end
$$;

select automator67.take_rights();
select automator67.give_rights_on_shard();
