-- What every shard needs for transactions over several shards. Runs on Postgres 14 to 18.

-- A transaction over several shards is committed when its row is: one shard of it, the anchor, has
-- the row. Rows are removed when no shard has a prepared part any more.
create table automator67.decision (
    gid         text primary key,
    decided_at  timestamp with time zone not null default clock_timestamp()
);

-- Says that the transaction `gid` is committed, if this one is. Until this one ends, the lock
-- tells others that it has not ended.
create function automator67.decide(gid text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_advisory_xact_lock(hashtextextended(decide.gid, 67));
    insert into automator67.decision (gid) values (decide.gid);
end
$$;

-- Only locked. Commits over several shards hold ROW EXCLUSIVE on each of their shards from before
-- the decision until they are visible there; who opens snapshots on all shards holds SHARE
-- meanwhile. So no snapshot falls between a transaction's parts.
create table automator67.fence ();

-- Relations that are moved to a shard for one statement of a transaction that may be prepared:
-- temporary tables cannot be used there. Made and dropped in the same transaction.
create schema automator67_work;

grant usage, create on schema automator67_work to public;
grant usage on schema automator67 to public;
grant insert, update on automator67.fence to public;
