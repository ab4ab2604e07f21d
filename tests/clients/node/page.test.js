// What docs/clients.md says of node-postgres, run as it stands there.
'use strict'

const assert = require('node:assert/strict')
const { failing, page } = require('./page')
const { counterTest, pooler } = require('./support')

const { count, value, take, countOnce, inTransaction } = page(
  'node_postgres', 'count', 'value', 'take', 'countOnce', 'inTransaction')

counterTest('page: count, take and once', async ({ db, name }) => {
  await count(db, name('x'))
  await count(db, name('x'), 2n ** 60n)
  assert.equal(await value(db, name('x')), 2n ** 60n + 1n)
  await db.query("SELECT counter_type_create('node-stock', min => 0)")
  await count(db, 'node-stock:mug', 2)
  assert.equal(await take(db, 'node-stock:mug', 2), true)
  assert.equal(await take(db, 'node-stock:mug', 1), false)
  await assert.rejects(count(db, 'node-stock:mug', -1), (error) =>
    error.code === '23514' && error.constraint === undefined)
  for (const added of [true, false, false]) {
    assert.equal(await countOnce(db, name('token'), name('once'), 3), added)
  }
  assert.equal(await value(db, name('once')), 3n)
})

counterTest('page: transactions are repeated', async ({ db, name }) => {
  const fail = failing(2, (client, text) => client.query(text))
  assert.equal(await inTransaction(db, async (client) => {
    await count(client, name('x'))
    return fail(client)
  }), 3)
  assert.equal(await value(db, name('x')), 1n)
  const always = failing(Infinity, (client, text) => client.query(text))
  await assert.rejects(inTransaction(db, async (client) => {
    await count(client, name('x'))
    await always(client)
  }, 2), { code: '40001' })
  await assert.rejects(inTransaction(db, async (client) => {
    await count(client, name('x'))
    throw new Error('changed my mind')
  }), /changed my mind/)
  assert.equal(await value(db, name('x')), 1n)
  assert.equal(db.totalCount, db.idleCount)
})

counterTest('page: a connection that breaks is not given back', async ({ db, name }) => {
  await assert.rejects(inTransaction(db, async (client) => {
    await count(client, name('x'))
    await client.query('SELECT pg_terminate_backend(pg_backend_pid())')
  }))
  assert.equal(db.totalCount, 0)
  assert.equal(await value(db, name('x')), 0n)
})

counterTest('page: within a transaction, the pool counts by itself', async ({ db, name }) => {
  await assert.rejects(inTransaction(db, async (client) => {
    await count(client, name('client'))
    await count(db, name('pool'))
    throw new Error('changed my mind')
  }), /changed my mind/)
  assert.deepEqual([await value(db, name('client')), await value(db, name('pool'))], [0n, 1n])
})

counterTest('page: read-only', async ({ connect, name }) => {
  const client = await connect({ options: '-c default_transaction_read_only=on' })
  await assert.rejects(count(client, name('x')), { code: '25006' })
  await assert.rejects(take(client, name('x'), 0), { code: '25006' })
  assert.equal(await value(client, name('x')), 0n)
})

counterTest('page: through a pooler', async ({ pool, name }) => {
  const pooled = pool(pooler)
  await Promise.all([...Array(50)].map(() =>
    inTransaction(pooled, (client) => count(client, name('x')))))
  assert.equal(await value(pooled, name('x')), 50n)
})
