-- What a shard's snapshot can be compared by, and which shard of which cluster this is.

-- How many transactions that wrote a snapshot has seen end, and some more that do not count back: of
-- two snapshots of one server, the later one sees all that the earlier one sees, and this number grows
-- with every transaction that ends in between. Those that are under way when a snapshot is taken are
-- between its xmin and xmax; the one that asks is not in the list of those.
create function automator67.moment() returns bigint
language sql stable parallel restricted set search_path = pg_catalog, pg_temp
as $$
select pg_snapshot_xmax(s.now)::text::bigint
    - (select count(*) from pg_snapshot_xip(s.now))
    - case when pg_current_xact_id_if_assigned() < pg_snapshot_xmax(s.now) then 1 else 0 end
from (select pg_current_snapshot() as now) s
$$;

-- By shard, from 0: the latest moments that transactions with a note in this slot have read in.
alter table automator67.commit_register add column moments bigint[] not null default '{}';

drop function automator67.note_commit(text, bigint, integer, bigint, bigint[]);
drop function automator67.decide(text, text, bigint, integer, bigint, bigint[]);
drop function automator67.write_note(bigint, integer, bigint, bigint[]);

-- Writes a note of this transaction, see V1.
create function automator67.write_note(
    proxy bigint, slot integer, number bigint, last bigint[], moments bigint[]
)
returns void language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    lock table automator67.fence in row exclusive mode;
    insert into automator67.commit_register as known (proxy, slot, number, last, moments)
        values (write_note.proxy, write_note.slot, write_note.number, write_note.last, write_note.moments)
    on conflict on constraint commit_register_pkey do update
        set number = excluded.number, committed = true, last = excluded.last,
            moments = excluded.moments, changed_at = excluded.changed_at
        where known.number < excluded.number;
    if not found then
        raise exception 'the transaction was rolled back because its commit took too long'
            using errcode = 'serialization_failure',
                detail = 'Another proxy, or the recovery, has found a part of it and ended it.',
                hint = 'Repeat the transaction.';
    end if;
end
$$;

-- What a transaction that used several shards notes where it wrote.
create function automator67.note_commit(
    proof text, proxy bigint, slot integer, number bigint, last bigint[], moments bigint[]
)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'note_commit');
    perform automator67.write_note(proxy, slot, number, last, moments);
end
$$;

-- The transaction `gid` is committed, if this one is. Until this one ends, the lock tells others
-- that it has not ended.
create function automator67.decide(
    proof text, gid text, proxy bigint, slot integer, number bigint, last bigint[], moments bigint[]
)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform automator67.check_proof(proof, 'decide');
    perform pg_advisory_xact_lock(automator67.gid_lock(gid));
    perform automator67.write_note(proxy, slot, number, last, moments);
end
$$;

-- Who this server is: written once, compared by every connection of a proxy.
create table automator67.identity (
    only_row    boolean primary key default true check (only_row),
    cluster     text not null,
    shard       integer not null
);

-- What every client needs on a shard. All but the notes, the plain values, the moment and the
-- identity wants the proof.
create or replace function automator67.give_rights_on_shard() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    part integer;
begin
    grant usage on schema automator67 to public;
    grant select on automator67.commit_register, automator67.identity to public;
    grant execute on function
        automator67.moment(),
        automator67.note_commit(text, bigint, integer, bigint, bigint[], bigint[]),
        automator67.decide(text, text, bigint, integer, bigint, bigint[], bigint[]),
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

revoke all on function
    automator67.moment(),
    automator67.write_note(bigint, integer, bigint, bigint[], bigint[]),
    automator67.note_commit(text, bigint, integer, bigint, bigint[], bigint[]),
    automator67.decide(text, text, bigint, integer, bigint, bigint[], bigint[])
from public;
select automator67.give_rights_on_shard();
