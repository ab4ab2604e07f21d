// counterx from node-postgres through PgBouncer with pool_mode = transaction: each transaction may be
// on another connection to the server, and these are fewer than the clients. The first pool is that
// of the program, the second one is PgBouncer's.
'use strict'

const assert = require('node:assert/strict')
const { counterTest, numbers, one, pooler, resettingPooler, transaction } = require('./support')

counterTest('autocommit through the pooler', async ({ pool, name, values }) => {
  const db = pool({ ...pooler, max: 20 })
  await Promise.all(numbers(600).map((n) =>
    db.query('SELECT counter_incr($1, $2)', [name(`key ${n % 3}`), n])))
  assert.deepEqual(await values(), { 'key 0': 59700, 'key 1': 59900, 'key 2': 60100 })
})

counterTest('hits through the pooler', async ({ db, pool, name, values }) => {
  const clients = pool({ ...pooler, max: 20 })
  await Promise.all(numbers(300).map((n) =>
    transaction(clients, async (client) => {
      await client.query('SELECT counter_hit($1, $2)', [name('hit'), n])
      await client.query('SELECT counter_hit($1, 1, wait => false)', [name('silent')])
      if (n % 3 === 0) throw new Error('changed my mind')
    }).catch((error) => { if (error.message !== 'changed my mind') throw error })))
  // Who waits comes after those for whom nobody does.
  await db.query('SELECT counter_hit($1, 0)', [name('silent')])
  assert.deepEqual(await values(), { hit: 44850, silent: 300 })
})

// 20 clients, 2 connections to the server; at the end the counters are compared with a plain table
// that the same transactions wrote.
const mixedLoad = (port, table) => async ({ db, pool, name, values }) => {
  await db.query(`CREATE TABLE ${table} (name text, delta bigint)`)
  const clients = pool({ ...port, max: 20 })
  const pids = new Set()
  const change = async (client, rest, delta) => {
    await client.query('SELECT counter_incr($1, $2)', [name(rest), delta])
    await client.query(`INSERT INTO ${table} VALUES ($1, $2)`, [rest, delta])
  }
  let committed = 0
  await Promise.all(numbers(300).map(async (n) => {
    try {
      await transaction(clients, async (client) => {
        await change(client, 'hot', 1)
        pids.add(await one(client, 'SELECT pg_backend_pid()'))
        await client.query('SAVEPOINT s')
        await change(client, `key ${n % 7}`, n)
        await client.query(n % 3 === 0 ? 'ROLLBACK TO s' : 'RELEASE s')
        if (n % 10 === 9) await client.query('SELECT 1 / 0')
        if (n % 5 === 4) throw new Error('changed my mind')
      })
      committed += 1
    } catch (error) {
      if (error.code !== '22012' && error.message !== 'changed my mind') throw error
    }
  }))
  assert.ok(pids.size <= 2)
  assert.equal(committed, 240)
  const { rows } = await db.query(`SELECT name, sum(delta) AS sum FROM ${table} GROUP BY name`)
  const expected = Object.fromEntries(rows.map((row) => [row.name, Number(row.sum)]))
  assert.equal(expected.hot, committed)
  assert.deepEqual(await values(), expected)
}

counterTest('more clients than servers', mixedLoad(pooler, 'node_oracle'))
counterTest('with DISCARD ALL after each transaction', mixedLoad(resettingPooler, 'node_oracle_reset'))

counterTest('a client that leaves in mid-transaction', async ({ connect, name, values }) => {
  const database = 'one'
  const waiter = await connect({ ...pooler, database })
  for (const leave of [(client) => client.end(), (client) => client.connection.stream.destroy()]) {
    const leaver = await connect({ ...pooler, database })
    await leaver.query('BEGIN')
    await leaver.query('SELECT counter_incr($1, 100)', [name('x')])
    // There is one server connection, and the other client waits for it.
    const waiting = waiter.query('SELECT counter_incr($1)', [name('x')])
    await leave(leaver)
    await waiting
  }
  assert.deepEqual(await values(), { x: 2 })
})

counterTest('rolled back, and the next on the same server', async ({ connect, name, values }) => {
  const database = 'one'
  const first = await connect({ ...pooler, database })
  const second = await connect({ ...pooler, database })
  await first.query('BEGIN')
  await first.query('SELECT counter_incr($1, 100)', [name('x')])
  const pid = await one(first, 'SELECT pg_backend_pid()')
  await first.query('ROLLBACK')
  assert.equal(await one(second, 'SELECT pg_backend_pid()'), pid)
  assert.equal(await one(second, 'SELECT counter_incr_get($1)', [name('x')]), '1')
  assert.deepEqual(await values(), { x: 1 })
})

counterTest('prepared within one transaction', async ({ connect, name, value }) => {
  // PgBouncer 1.18 does not know prepared statements of the protocol: a query with a name works in
  // the transaction that prepared it, and nowhere else.
  const client = await connect({ ...pooler })
  const hit = { name: 'hit in node', text: 'SELECT counter_incr($1)', values: [name('x')] }
  await client.query('BEGIN')
  for (const _ of numbers(10)) await client.query(hit)
  await client.query('DEALLOCATE "hit in node"')
  await client.query('COMMIT')
  assert.equal(await value('x'), 10)
})

counterTest('settings of one transaction', async ({ pool, prefix, values }) => {
  const clients = pool({ ...pooler, max: 5 })
  // SET would stay on the server connection for whoever comes next; SET LOCAL does not.
  await Promise.all(numbers(5).map((k) => transaction(clients, async (client) => {
    await client.query("SET LOCAL counterx.pending_work_mem = '64kB'")
    await client.query(
      `SELECT count(counter_incr($1 || n || repeat('.', 150), n)) FROM generate_series(1, 1000) n`,
      [prefix])
  })))
  const all = await values()
  assert.equal(Object.keys(all).length, 1000)
  for (const n of numbers(1000)) assert.equal(all[`${n + 1}${'.'.repeat(150)}`], 5 * (n + 1))
  const shown = await Promise.all(numbers(5).map(() => one(clients, 'SHOW counterx.pending_work_mem')))
  assert.deepEqual(new Set(shown), new Set(['64MB']))
})

counterTest('duplicates of a token through the pooler', async ({ pool, name, values }) => {
  const clients = pool({ ...pooler, max: 10 })
  const verdicts = await Promise.all(numbers(10).map(() =>
    one(clients, 'SELECT counter_incr_once($1, $2)', [name('message'), name('x')])))
  assert.equal(verdicts.filter((fresh) => fresh).length, 1)
  assert.deepEqual(await values(), { x: 1 })
})
