-- What every shard needs for transactions over several shards. Runs on Postgres 14 to 18.

-- What transactions over several shards note in each of their parts, so that it is seen exactly if
-- the part is. A proxy numbers them by slot; in one slot, a transaction begins its commit when the
-- one before has ended everywhere. It is committed when its row is on one shard of it, the anchor.
create table automator67.commit_register (
    proxy       bigint not null,
    slot        integer not null,
    number      bigint not null,
    -- False: who found a part of it prepared and not decided has decided that it is not committed.
    committed   boolean not null default true,
    -- By shard, from 0: the last number of this slot that wrote there, as of this transaction.
    last        bigint[] not null,
    changed_at  timestamp with time zone not null default clock_timestamp(),
    primary key (proxy, slot)
)
with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Only locked. Commits over several shards hold ROW EXCLUSIVE on each of their shards from before
-- the decision until they are visible there. Who opens snapshots on all shards, and finds that some
-- commit is always in the middle, holds SHARE meanwhile.
create table automator67.fence ();

create function automator67.note_commit(proxy bigint, slot integer, number bigint, last bigint[])
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    lock table automator67.fence in row exclusive mode;
    insert into automator67.commit_register as known (proxy, slot, number, last)
        values (note_commit.proxy, note_commit.slot, note_commit.number, note_commit.last)
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

-- The transaction `gid` is committed, if this one is. Until this one ends, the lock tells others
-- that it has not ended.
create function automator67.decide
    (gid text, proxy bigint, slot integer, number bigint, last bigint[])
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_advisory_xact_lock(hashtextextended(decide.gid, 67));
    perform automator67.note_commit(decide.proxy, decide.slot, decide.number, decide.last);
end
$$;

-- Relations that are moved to a shard for one statement of a transaction that may be prepared:
-- temporary tables cannot be used there. Made and dropped in the same transaction.
create schema automator67_work;

grant usage, create on schema automator67_work to public;
grant usage on schema automator67 to public;
grant select on automator67.commit_register to public;
grant insert, update on automator67.fence to public;
