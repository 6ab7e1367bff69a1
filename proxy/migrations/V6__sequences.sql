-- Proxies reserve values of sequences in blocks. A block is good as long as its sequence is what
-- it was: see automator67.sequence_identity().

-- How often setval was called for a sequence; 0 stands for all of them. setval leaves no other
-- trace that can be told from nextval.
create table automator67.sequence_set (
    sequence oid primary key,
    times bigint not null default 1
);

-- Notes that sequences were set. The caller makes the catalog newer.
create function automator67.note_sequences_set(sequences oid[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp
as $$
insert into automator67.sequence_set as s (sequence)
select distinct coalesce(sequence, 0::oid) from unnest(sequences) sequence
order by 1
on conflict (sequence) do update set times = s.times + 1
$$;

-- What a sequence is: its text changes with every ALTER SEQUENCE, RESTART and setval.
create function automator67.sequence_identity(sequence oid) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
select concat_ws(' ', c.oid, c.relfilenode, s.seqstart, s.seqincrement, s.seqmin, s.seqmax,
    s.seqcache, s.seqcycle, (
        select sum(n.times) from automator67.sequence_set n
        where n.sequence in (0, sequence_identity.sequence)
    ))
from pg_class c join pg_sequence s on s.seqrelid = c.oid
where c.oid = sequence_identity.sequence
$$;
