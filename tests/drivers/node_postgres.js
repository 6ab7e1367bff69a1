// node-postgres against DATABASE_URL. PLAIN, CHECKS and LIMIT are those of common.py.
'use strict';

const assert = require('node:assert/strict');
const { Client, Pool, types } = require('pg');

const url = process.env.DATABASE_URL;
const plain = Boolean(process.env.PLAIN);

function distribute(table, key) {
  return plain ? 'select 1' : `select create_distributed_table('${table}', '${key}')`;
}

async function connect(options = {}) {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: 10000, ...options });
  await client.connect();
  return client;
}

async function table(client, name, columns) {
  await client.query(`drop table if exists ${name} cascade`);
  await client.query(`create table ${name} (${columns})`);
  await client.query(distribute(name, 'id'));
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('no error');
}

async function parameters() {
  const client = await connect();
  await table(client, 'no_params', 'id int8 primary key, name text, score float8');
  for (let i = 0; i < 20; i += 1) {
    const result = await client.query('insert into no_params values ($1, $2, $3)',
      [i, `n${i}`, i / 2]);
    assert.equal(result.command, 'INSERT');
    assert.equal(result.rowCount, 1);
  }
  for (let i = 0; i < 20; i += 1) {
    const { rows } = await client.query('select * from no_params where id = $1', [i]);
    assert.deepEqual(rows, [{ id: String(i), name: `n${i}`, score: i / 2 }]);
  }
  const many = await client.query(
    'select count(*)::int as n, sum(score) as total from no_params where id = any($1)', [[1, 2, 3]]);
  assert.deepEqual(many.rows, [{ n: 3, total: 3 }]);
  assert.deepEqual(many.fields.map((field) => [field.name, field.dataTypeID]),
    [['n', 23], ['total', 701]]);
  const array = await client.query({
    text: 'select id, name from no_params where score > $1 order by id limit $2',
    values: [5, 2],
    rowMode: 'array',
  });
  assert.deepEqual(array.rows, [['11', 'n11'], ['12', 'n12']]);
  const absent = await client.query('select $1::text as t, $2::int as i', [null, undefined]);
  assert.deepEqual(absent.rows, [{ t: null, i: null }]);
  const several = await client.query('select 1 as a; select 2 as b; delete from no_params where id = 3');
  assert.deepEqual(several.map((result) => [result.command, result.rowCount]),
    [['SELECT', 1], ['SELECT', 1], ['DELETE', 1]]);
  await client.end();
}

async function namedStatements() {
  const client = await connect();
  await table(client, 'no_named', 'id int8 primary key, name text');
  for (let i = 0; i < 30; i += 1) {
    await client.query({ name: 'insert', text: 'insert into no_named values ($1, $2)',
      values: [i, `n${i}`] });
  }
  for (let i = 0; i < 30; i += 1) {
    const { rows } = await client.query({ name: 'one',
      text: 'select name from no_named where id = $1', values: [i] });
    assert.deepEqual(rows, [{ name: `n${i}` }]);
  }
  for (let i = 1; i < 5; i += 1) {
    const { rows } = await client.query({ name: 'many',
      text: 'select count(*)::int as n from no_named where id < $1', values: [i * 5] });
    assert.deepEqual(rows, [{ n: i * 5 }]);
  }
  // One that fails at execution can be used again.
  const error = await failure(client.query({ name: 'insert',
    text: 'insert into no_named values ($1, $2)', values: [3, 'again'] }));
  assert.equal(error.code, '23505');
  await client.query({ name: 'insert', text: 'insert into no_named values ($1, $2)',
    values: [100, 'x'] });
  await client.end();
}

async function typesRoundTrip() {
  const client = await connect();
  await table(client, 'no_types', 'id int8 primary key, i2 int2, i4 int4, n numeric, f float8, '
    + 't text, y bytea, b bool, at timestamptz, j json, jb jsonb, ia int4[], ta text[], u uuid, '
    + 'iv interval');
  const at = new Date('2024-02-29T12:34:56.789Z');
  const expected = {
    i2: -32768, i4: 2147483647, n: '123456789012345678901234567890.5', f: 0.1,
    t: 'grün ✓ \'"\\', y: Buffer.from([0, 1, 255, 92]), b: true, at,
    j: { a: [1, null] }, jb: { b: { c: 'ü' } }, ia: [1, null, 3], ta: ['a,b', '{}', '"'],
    u: '12345678-1234-5678-1234-567812345678',
  };
  const names = Object.keys(expected);
  const marks = names.map((_, i) => `$${i + 2}`).join(', ');
  for (let i = 0; i < 6; i += 1) {
    await client.query(`insert into no_types (id, ${names}) values ($1, ${marks})`,
      [i, ...Object.values(expected)]);
  }
  await client.query("update no_types set iv = '1 day 02:03:04'");
  await client.query('insert into no_types (id) values (6)');
  for (const binary of [false, true]) {
    for (let i = 0; i < 6; i += 1) {
      // The driver reads few types in binary format.
      const columns = binary ? ['t', 'b'] : names;
      const { rows } = await client.query({ text: `select ${columns} from no_types where id = $1`,
        values: [i], binary });
      assert.deepEqual(rows, [Object.fromEntries(columns.map((name) => [name, expected[name]]))]);
    }
  }
  const { rows } = await client.query(`select ${names} from no_types order by id`);
  assert.equal(rows.length, 7);
  assert.deepEqual(rows.slice(0, 6), Array(6).fill(expected));
  assert.deepEqual(rows[6], Object.fromEntries(names.map((name) => [name, null])));
  const interval = await client.query('select iv from no_types where id = 2');
  assert.equal(interval.rows[0].iv.toPostgres(), '4 seconds 3 minutes 2 hours 1 days');
  assert.ok(types.builtins.INT8 === 20);
  await client.end();
}

async function transactions() {
  const client = await connect();
  await table(client, 'no_trans', 'id int8 primary key');
  const count = async () => (await client.query('select count(*)::int n from no_trans')).rows[0].n;
  await client.query('begin');
  await client.query('insert into no_trans values ($1), ($2), ($3)', [1, 2, 3]);
  await client.query('savepoint a');
  const error = await failure(client.query('insert into no_trans values ($1)', [2]));
  assert.equal(error.code, '23505');
  assert.equal((await failure(client.query('select 1'))).code, '25P02');
  await client.query('rollback to a');
  await client.query('insert into no_trans values ($1)', [4]);
  assert.equal(await count(), 4);
  await client.query('commit');
  assert.equal(await count(), 4);
  await client.query('begin');
  await client.query('delete from no_trans');
  assert.equal(await count(), 0);
  await client.query('rollback');
  assert.equal(await count(), 4);
  await client.end();
}

async function errorFields() {
  const client = await connect();
  const notices = [];
  client.on('notice', (notice) => notices.push([notice.severity, notice.message]));
  await table(client, 'no_errors', 'id int8 primary key, age int constraint adult check (age > 17)');
  await client.query('insert into no_errors values (1, 20)');
  let error = await failure(client.query('insert into no_errors values ($1, 20)', [1]));
  assert.deepEqual([error.code, error.constraint, error.table, error.schema, error.detail,
    error.severity],
  ['23505', 'no_errors_pkey', 'no_errors', 'public', 'Key (id)=(1) already exists.', 'ERROR']);
  error = await failure(client.query('insert into no_errors values (2, 3)'));
  assert.deepEqual([error.code, error.constraint], ['23514', 'adult']);
  error = await failure(client.query('select nonsense from no_errors'));
  assert.deepEqual([error.code, error.position], ['42703', '8']);
  error = await failure(client.query('select * from no_errors where id = $1', ['x']));
  assert.equal(error.code, '22P02');
  error = await failure(client.query('select $1::int from no_errors', [1, 2]));
  assert.equal(error.code, '08P01');
  notices.length = 0;
  await client.query("do $$ begin raise notice 'hello'; end $$");
  assert.deepEqual(notices, [['NOTICE', 'hello']]);
  await client.end();
}

async function manyQueries() {
  const pool = new Pool({ connectionString: url, max: 8 });
  await table(pool, 'no_many', 'id int8 primary key, name text');
  await Promise.all(Array.from({ length: 500 }, (_, i) =>
    pool.query('insert into no_many values ($1, $2)', [i, `n${i}`])));
  const found = await Promise.all(Array.from({ length: 500 }, (_, i) =>
    pool.query('select name from no_many where id = $1', [i])));
  found.forEach(({ rows }, i) => assert.deepEqual(rows, [{ name: `n${i}` }]));
  const sums = await Promise.all(Array.from({ length: 20 }, () =>
    pool.query('select count(*)::int as n, sum(id)::int as total from no_many')));
  sums.forEach(({ rows }) => assert.deepEqual(rows, [{ n: 500, total: 124750 }]));
  await pool.end();
  // One after the other on one connection.
  const client = await connect();
  for (let i = 0; i < 500; i += 1) {
    const { rows } = await client.query('select $1::int as i, name from no_many where id = $2',
      [i, i]);
    assert.deepEqual(rows, [{ i, name: `n${i}` }]);
  }
  await client.end();
}

async function poolTransactions() {
  const pool = new Pool({ connectionString: url, max: 5 });
  await table(pool, 'no_pool', 'id int8 primary key, worker int');
  await Promise.all(Array.from({ length: 20 }, async (_, worker) => {
    for (let i = 0; i < 5; i += 1) {
      const client = await pool.connect();
      try {
        await client.query('begin');
        await client.query('insert into no_pool values ($1, $2)', [worker * 10 + i, worker]);
        const { rows } = await client.query('select worker from no_pool where id = $1',
          [worker * 10 + i]);
        assert.deepEqual(rows, [{ worker }]);
        await client.query(i % 2 ? 'rollback' : 'commit');
      } finally {
        client.release();
      }
    }
  }));
  const { rows } = await pool.query('select count(*)::int as n from no_pool');
  assert.deepEqual(rows, [{ n: 60 }]);
  await pool.end();
}

async function listenAndNotify() {
  const listener = await connect();
  const sender = await connect();
  const heard = [];
  let enough;
  const done = new Promise((resolve) => { enough = resolve; });
  listener.on('notification', ({ channel, payload }) => {
    heard.push([channel, payload]);
    if (heard.length === 2) enough();
  });
  await listener.query('listen no_channel');
  await sender.query("notify no_channel, 'one'");
  await sender.query('select pg_notify($1, $2)', ['no_channel', 'two']);
  await done;
  assert.deepEqual(heard, [['no_channel', 'one'], ['no_channel', 'two']]);
  await listener.query('unlisten no_channel');
  await listener.end();
  await sender.end();
}

async function cancel() {
  const client = await connect();
  const other = await connect();
  await table(other, 'no_cancel', 'id int8 primary key');
  await other.query('insert into no_cancel select generate_series(1, 9)');
  const own = await connect({ statement_timeout: 300 });
  for (const text of ['select pg_sleep(25)', 'select pg_sleep(25) from no_cancel where id = 2',
    'select id, pg_sleep(25) from no_cancel']) {
    const error = await failure(own.query(text));
    assert.equal(error.code, '57014', text);
    const { rows } = await own.query('select count(*)::int as n from no_cancel');
    assert.deepEqual(rows, [{ n: 9 }]);
  }
  await own.end();
  await client.end();
  await other.end();
}

async function main() {
  const checks = [parameters, namedStatements, typesRoundTrip, transactions, errorFields,
    manyQueries, poolTransactions, listenAndNotify, cancel];
  const limit = Number(process.env.LIMIT || 120) - 2;
  let running = '';
  setTimeout(() => {
    console.log(`out of time in ${running}`);
    process.exit(1);
  }, limit * 1000).unref();
  const failed = [];
  for (const check of checks.filter(({ name }) => name.includes(process.env.CHECKS || ''))) {
    running = check.name;
    console.log(`... ${running}`);
    try {
      await check();
    } catch (error) {
      failed.push(running);
      console.log(error.stack, error.code || '', error.detail || '');
      console.log(`FAILED ${running}`);
    }
  }
  if (failed.length) {
    console.log(`${failed.length} of ${checks.length} checks failed: ${failed.join(', ')}`);
  }
  // Connections of failed checks are still open.
  process.exit(failed.length ? 1 : 0);
}

main();
