-- What the buckets hold, and where its bytes are. Nothing here opens a chunk: keys are wrapped under
-- the root key, which is not here.

create table root (
    one boolean primary key default true check (one),
    fingerprint bytea not null,
    salt bytea not null
);

-- Who may speak to the endpoint.
create table login (
    id bigint generated always as identity primary key,
    name text not null unique,
    administrator boolean not null default false,
    made timestamptz not null default now()
);

create table access_key (
    id text primary key,
    login bigint not null references login on delete cascade,
    secret bytea not null,
    made timestamptz not null default now()
);

create table bucket (
    id bigint generated always as identity primary key,
    name text not null unique,
    owner bigint not null references login,
    versioning text not null default 'off' check (versioning in ('off', 'enabled', 'suspended')),
    settings jsonb not null default '{}',
    made timestamptz not null default now()
);

create table bucket_right (
    bucket bigint not null references bucket on delete cascade,
    login bigint not null references login on delete cascade,
    reads boolean not null,
    writes boolean not null,
    primary key (bucket, login)
);

-- Versions of a bucket's key. They stay as long as chunks are wrapped under them, also when the bucket
-- is gone.
create table bucket_key (
    bucket bigint not null,
    number integer not null,
    wrapped bytea not null,
    made timestamptz not null default now(),
    primary key (bucket, number)
);

create table provider (
    id bigint generated always as identity primary key,
    name text not null unique,
    kind text not null,
    region text not null,
    place bytea not null,
    state text not null default 'active' check (state in ('active', 'draining', 'dead')),
    quota_bytes bigint,
    made timestamptz not null default now()
);

-- Names that a process may give to bytes at providers. Before a name is used it is here, and it leaves
-- in the transaction that makes the bytes count: what is at a provider and in no table cannot be.
create table intent (
    chunk bytea primary key,
    made timestamptz not null default now()
);
create index on intent (made);

-- Bytes at providers. `hash` is of what lies there, `alike` of the plaintext, under a key of its owner.
create table chunk (
    id bytea primary key,
    bucket bigint not null,
    key_number integer not null,
    key bytea not null,
    length integer not null,
    hash bytea not null,
    alike bytea,
    condemned timestamptz,
    made timestamptz not null default now()
);
create index on chunk (alike) where alike is not null;
create index on chunk (condemned) where condemned is not null;
create index on chunk (bucket, key_number);

-- `good`: it was acknowledged, and nobody has found it to be another since. What may be there all the same
-- is mended, and collected with the chunk.
create table replica (
    chunk bytea not null references chunk on delete cascade,
    provider bigint not null references provider,
    good boolean not null default true,
    looked timestamptz not null default now(),
    primary key (chunk, provider)
);
create index on replica (provider, chunk);
create index on replica (chunk) where not good;

-- Versions of objects, parts of uploads, and what both consist of, have their numbers from here.
create sequence number;

-- A version of an object. `removed`: nobody sees it, and until it is collected it can be restored.
create table version (
    number bigint primary key default nextval('number'),
    bucket bigint not null,
    key bytea not null,
    id text not null,
    latest boolean not null,
    marker boolean not null default false,
    size bigint not null default 0,
    etag text not null default '',
    about jsonb not null default '{}',
    value bytea,
    value_key integer,
    retained timestamptz,
    held boolean not null default false,
    made timestamptz not null default now(),
    removed timestamptz
);
create unique index version_latest on version (bucket, key) where latest;
create index version_shown on version (bucket, key) where latest and not marker;
create index version_listed on version (bucket, key, number desc) where removed is null;
create index version_removed on version (removed) where removed is not null;
create index version_small on version (bucket, number) where value is not null and removed is null;

create table upload (
    id text primary key,
    bucket bigint not null,
    key bytea not null,
    about jsonb not null,
    made timestamptz not null default now()
);
create index on upload (bucket, key, id);

create table part (
    number bigint primary key default nextval('number'),
    upload text not null references upload on delete cascade,
    part integer not null,
    size bigint not null,
    etag text not null,
    about jsonb not null default '{}',
    made timestamptz not null default now(),
    unique (upload, part)
);

-- What a version or a part consists of: bytes of chunks. `owner` is its number, `at` where a piece begins
-- in it, `start` where it begins in the chunk.
create table piece (
    owner bigint not null,
    at bigint not null,
    chunk bytea not null,
    start integer not null,
    length integer not null,
    primary key (owner, at)
);
create index on piece (chunk);

-- One change of an object at a time: what follows in a transaction sees all that came before.
create function lock_key(number bigint, name bytea) returns void language sql as $$
    select pg_advisory_xact_lock(hashtextextended(encode(name, 'hex'), number))
$$;

-- New chunks count from now on. Their names must still be those of this process.
create function add_chunks(
    ids bytea[], bucket bigint, key_number integer, keys bytea[], lengths integer[], hashes bytea[],
    alikes bytea[], replica_chunks bytea[], replica_providers bigint[], replica_good boolean[]
) returns void language plpgsql as $$
declare
    named integer;
begin
    if cardinality(ids) = 0 then
        return;
    end if;
    delete from intent where chunk = any (ids);
    get diagnostics named = row_count;
    if named <> cardinality(ids) then
        raise exception 'a name of a chunk was collected' using errcode = '40001';
    end if;
    insert into chunk (id, bucket, key_number, key, length, hash, alike)
    select new.id, add_chunks.bucket, add_chunks.key_number, new.key, new.length, new.hash, new.alike
    from unnest(ids, keys, lengths, hashes, alikes) new (id, key, length, hash, alike);
    insert into replica (chunk, provider, good)
    select new.chunk, new.provider, new.good
    from unnest(replica_chunks, replica_providers, replica_good) new (chunk, provider, good);
end $$;

-- A version or part consists of these. Chunks that were there before must be there still; one that was
-- to be collected is not any more.
create function add_pieces(owner bigint, chunks bytea[], starts integer[], lengths integer[])
returns void language plpgsql as $$
declare
    wanted integer;
    there integer;
begin
    if cardinality(chunks) = 0 then
        return;
    end if;
    select count(distinct id) into wanted from unnest(chunks) id;
    perform 1 from chunk where id = any (chunks) order by id for share;
    get diagnostics there = row_count;
    if there <> wanted then
        raise exception 'a chunk was collected' using errcode = '40001';
    end if;
    update chunk set condemned = null where id = any (chunks) and condemned is not null;
    insert into piece (owner, at, chunk, start, length)
    select add_pieces.owner, sum(new.length) over (order by new.ordinal) - new.length, new.chunk,
        new.start, new.length
    from unnest(chunks, starts, lengths) with ordinality new (chunk, start, length, ordinal);
end $$;

-- What a condition of a request says about the object that is there. `*` matches any.
create function condition_holds(etag text, if_match text, if_none_match text)
returns boolean language sql immutable as $$
    select (if_match is null or etag is not null and (if_match = '*' or if_match = etag))
        and (if_none_match is null or etag is null or (if_none_match <> '*' and if_none_match <> etag))
$$;

-- Makes room for a new latest version, after its condition was tested. Errors: P0412 it does not hold,
-- P0404 it asks for an object that is not there.
create function displace(
    the_bucket bigint, the_key bytea, versioning text, if_match text, if_none_match text
) returns void language plpgsql as $$
declare
    old version;
begin
    perform lock_key(the_bucket, the_key);
    select * into old from version where bucket = the_bucket and key = the_key and latest;
    if if_match is not null or if_none_match is not null then
        if if_match is not null and (old.number is null or old.marker) then
            raise exception 'no such key' using errcode = 'P0404';
        end if;
        if not condition_holds(case when not old.marker then old.etag end, if_match, if_none_match) then
            raise exception 'precondition failed' using errcode = 'P0412';
        end if;
    end if;
    if versioning <> 'enabled' then
        update version set removed = clock_timestamp(), latest = false
        where bucket = the_bucket and key = the_key and id = 'null' and removed is null;
    end if;
    update version set latest = false where bucket = the_bucket and key = the_key and latest;
end $$;

-- A version from now on: the row that makes an object visible, whole, at once.
create function put_version(
    the_bucket bigint, the_key bytea, versioning text, new_id text, size bigint, etag text, about jsonb,
    value bytea, value_key integer, retained timestamptz, held boolean,
    if_match text, if_none_match text,
    ids bytea[], key_number integer, keys bytea[], chunk_lengths integer[], hashes bytea[], alikes bytea[],
    replica_chunks bytea[], replica_providers bigint[], replica_good boolean[],
    chunks bytea[], starts integer[], lengths integer[]
) returns bigint language plpgsql as $$
declare
    new_number bigint;
begin
    perform displace(the_bucket, the_key, versioning, if_match, if_none_match);
    perform 1 from bucket where id = the_bucket for key share;
    if not found then
        raise exception 'no such bucket' using errcode = 'P0403';
    end if;
    insert into version (bucket, key, id, latest, size, etag, about, value, value_key, retained, held)
    values (
        the_bucket, the_key, case versioning when 'enabled' then new_id else 'null' end, true, size, etag,
        about, value, value_key, retained, held
    )
    returning number into new_number;
    perform add_chunks(
        ids, the_bucket, key_number, keys, chunk_lengths, hashes, alikes, replica_chunks, replica_providers,
        replica_good
    );
    perform add_pieces(new_number, chunks, starts, lengths);
    return new_number;
end $$;

-- DELETE without a version: whether a marker is the latest now, and its id.
create function delete_latest(
    the_bucket bigint, the_key bytea, versioning text, new_id text, if_match text
) returns text language plpgsql as $$
begin
    perform displace(the_bucket, the_key, versioning, if_match, null);
    if versioning = 'off' then
        return null;
    end if;
    insert into version (bucket, key, id, latest, marker)
    values (
        the_bucket, the_key, case versioning when 'enabled' then new_id else 'null' end, true, true
    );
    return case versioning when 'enabled' then new_id else 'null' end;
end $$;

-- DELETE of one version: whether it was a marker; null where there is none. The newest of the others is
-- the latest then. P0423: it is locked.
create function delete_version(
    the_bucket bigint, the_key bytea, the_id text, bypass boolean, if_match text
) returns boolean language plpgsql as $$
declare
    old version;
begin
    perform lock_key(the_bucket, the_key);
    select * into old from version
    where bucket = the_bucket and key = the_key and id = the_id and removed is null;
    if old.number is null then
        return null;
    end if;
    if not condition_holds(old.etag, if_match, null) then
        raise exception 'precondition failed' using errcode = 'P0412';
    end if;
    if old.held or old.retained > clock_timestamp()
        and not (bypass and old.about ->> 'lock_mode' = 'GOVERNANCE')
    then
        raise exception 'the version is locked' using errcode = 'P0423';
    end if;
    update version set removed = clock_timestamp(), latest = false where number = old.number;
    if old.latest then
        update version set latest = true where number = (
            select max(number) from version
            where bucket = the_bucket and key = the_key and removed is null
        );
    end if;
    return old.marker;
end $$;

-- A part of an upload, in the place of the one that had its number. P0405: there is no such upload.
create function put_part(
    the_upload text, the_part integer, size bigint, etag text, about jsonb,
    the_bucket bigint, ids bytea[], key_number integer, keys bytea[], chunk_lengths integer[],
    hashes bytea[], alikes bytea[], replica_chunks bytea[], replica_providers bigint[], replica_good boolean[],
    chunks bytea[], starts integer[], lengths integer[]
) returns void language plpgsql as $$
declare
    new_number bigint := nextval('number');
    old_number bigint;
begin
    perform lock_key(the_part, convert_to(the_upload, 'UTF8'));
    perform 1 from upload where id = the_upload for share;
    if not found then
        raise exception 'no such upload' using errcode = 'P0405';
    end if;
    delete from part where upload = the_upload and part = the_part returning number into old_number;
    delete from piece where owner = old_number;
    insert into part (number, upload, part, size, etag, about)
    values (new_number, the_upload, the_part, size, etag, about);
    perform add_chunks(
        ids, the_bucket, key_number, keys, chunk_lengths, hashes, alikes, replica_chunks, replica_providers,
        replica_good
    );
    perform add_pieces(new_number, chunks, starts, lengths);
end $$;

-- The parts of an upload become a version, in the order of their numbers. Of a completion and an abort
-- one wins: both take the upload's row away. P0405: there is no such upload, P0406: a part is not there,
-- or has another entity tag.
create function complete_upload(
    the_upload text, the_bucket bigint, the_key bytea, versioning text, new_id text,
    the_parts integer[], etags text[], etag text, about jsonb, retained timestamptz, held boolean,
    if_match text, if_none_match text
) returns bigint language plpgsql as $$
declare
    new_number bigint := nextval('number');
    used bigint[];
    size bigint;
begin
    perform displace(the_bucket, the_key, versioning, if_match, if_none_match);
    perform 1 from upload where id = the_upload and bucket = the_bucket and key = the_key for update;
    if not found then
        raise exception 'no such upload' using errcode = 'P0405';
    end if;
    perform 1 from bucket where id = the_bucket for key share;
    if not found then
        raise exception 'no such bucket' using errcode = 'P0403';
    end if;
    select array_agg(part.number order by part.part), sum(part.size) into used, size
    from unnest(the_parts, etags) said (part, etag)
    join part on part.upload = the_upload and part.part = said.part and part.etag = said.etag;
    if coalesce(cardinality(used), 0) <> cardinality(the_parts) then
        raise exception 'invalid part' using errcode = 'P0406';
    end if;
    insert into version (number, bucket, key, id, latest, size, etag, about, retained, held)
    values (
        new_number, the_bucket, the_key, case versioning when 'enabled' then new_id else 'null' end, true,
        size, complete_upload.etag, complete_upload.about, complete_upload.retained, complete_upload.held
    );
    insert into piece (owner, at, chunk, start, length)
    select new_number, sum(length) over (order by one.place, at) - length, chunk, start, length
    from unnest(used) with ordinality one (owner, place) join piece using (owner);
    delete from piece using part where part.upload = the_upload and piece.owner = part.number;
    delete from upload where id = the_upload;
    return new_number;
end $$;

-- Whether there was such an upload.
create function abort_upload(the_upload text, the_bucket bigint, the_key bytea) returns boolean
language plpgsql as $$
begin
    perform 1 from upload where id = the_upload and bucket = the_bucket and key = the_key for update;
    if not found then
        return false;
    end if;
    delete from piece using part where part.upload = the_upload and piece.owner = part.number;
    delete from upload where id = the_upload;
    return true;
end $$;

-- Objects of a bucket in the order of their keys, from `at_least` on and below `below`. With a delimiter,
-- all keys that go on behind it are one entry, their prefix, and are jumped over: `delimiter_end` is the
-- least above all that begin with the delimiter.
create function list_by_prefix(
    the_bucket bigint, prefix bytea, at_least bytea, below bytea, delimiter bytea, delimiter_end bytea,
    count integer
) returns table (entry bytea, is_prefix boolean, shown version) language plpgsql stable as $$
declare
    place integer;
begin
    while count > 0 loop
        select v.* into shown from version v
        where v.bucket = the_bucket and v.latest and not v.marker and v.key >= at_least
            and (below is null or v.key < below)
        order by v.key limit 1;
        exit when shown.number is null;
        place := position(delimiter in substring(shown.key from length(prefix) + 1));
        is_prefix := place > 0;
        if is_prefix then
            entry := substring(shown.key from 1 for length(prefix) + place - 1 + length(delimiter));
            at_least := substring(shown.key from 1 for length(prefix) + place - 1) || delimiter_end;
        else
            entry := shown.key;
            at_least := shown.key || '\x00'::bytea;
        end if;
        return next;
        count := count - 1;
    end loop;
end $$;
