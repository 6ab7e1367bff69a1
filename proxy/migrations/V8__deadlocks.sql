-- While proxies look for deadlocks over shards, each tells here which of its sessions use which
-- server processes. Lost in a crash, and of no use after one.
create unlogged table automator67.session_backend (
    proxy   bigint not null,
    session bigint not null,
    shard   integer not null,
    pid     integer not null,
    seen_at timestamp with time zone not null default clock_timestamp()
);
