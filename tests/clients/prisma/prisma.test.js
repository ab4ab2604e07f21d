// A small application on Prisma, which counts as docs/clients.md says: its lines, as they stand there.
'use strict'

const assert = require('node:assert/strict')
const { after, before, test } = require('node:test')
const { PrismaPg } = require('@prisma/adapter-pg')
const { PrismaClient } = require('counterx-generated')
const { failing, page } = require('../node/page')

const { count, value, take, countOnce, sqlstate, inTransaction } = page(
  'prisma', 'count', 'value', 'take', 'countOnce', 'sqlstate', 'inTransaction')

// The server and the user come from the environment, which node-postgres reads by itself.
const prisma = new PrismaClient({ adapter: new PrismaPg({}) })
const readOnly = new PrismaClient({ adapter: new PrismaPg({ options: '-c default_transaction_read_only=on' }) })
const pooled = new PrismaClient({ adapter: new PrismaPg({ port: Number(process.env.COUNTERX_POOLER_PORT) }) })

before(async () => {
  for (const text of [
    'CREATE TABLE prisma_post (id serial PRIMARY KEY, title text NOT NULL)',
    `CREATE FUNCTION prisma_count() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN PERFORM counter_incr('prisma-posts'); RETURN NULL; END $$`,
    'CREATE TRIGGER count AFTER INSERT ON prisma_post FOR EACH ROW EXECUTE FUNCTION prisma_count()',
    "SELECT counter_type_create('prisma-stock', min => 0)"
  ]) await prisma.$executeRawUnsafe(text)
  // Committed, for all tests.
  await count(prisma, 'prisma-stock:mug', 3)
})
after(() => Promise.all([prisma, readOnly, pooled].map((each) => each.$disconnect())))

// A test in a transaction that is rolled back.
const transactional = (title, body) => test(title, async () => {
  const done = new Error('done')
  await assert.rejects(prisma.$transaction(async (tx) => {
    await body(tx)
    throw done
  }, { timeout: 60_000 }), done)
})

for (const again of ['', ', again']) {
  transactional(`rows are counted${again}`, async (tx) => {
    await tx.post.createMany({ data: [{ title: 'a' }, { title: 'b' }] })
    assert.equal(await value(tx, 'prisma-posts'), 2n)
    assert.equal(await value(prisma, 'prisma-posts'), 0n)
  })

  transactional(`take all there is${again}`, async (tx) => {
    assert.equal(await take(tx, 'prisma-stock:mug', 3), true)
    assert.equal(await take(tx, 'prisma-stock:mug', 1), false)
    // What the test has added, it can take.
    await count(tx, 'prisma-stock:mug', 5)
    assert.equal(await take(tx, 'prisma-stock:mug', 5), true)
    assert.equal(await take(tx, 'prisma-stock:mug', 1), false)
  })

  transactional(`hold and confirm${again}`, async (tx) => {
    const [{ hold }] = await tx.$queryRaw`
      SELECT counter_hold('prisma-stock:mug', 2, ${'1 minute'}::interval, ${'prisma-hold'}) AS hold`
    assert.equal(await take(tx, 'prisma-stock:mug', 2), false)
    // Its answer is true, and no void, which is an error here.
    assert.deepEqual(await tx.$queryRaw`SELECT counter_hold_confirm(${hold}) AS ok`, [{ ok: true }])
    assert.equal(await value(tx, 'prisma-stock:mug'), 1n)
  })

  transactional(`tokens${again}`, async (tx) => {
    assert.equal(await countOnce(tx, 'prisma-token', 'prisma'), true)
    assert.equal(await countOnce(tx, 'prisma-token', 'prisma'), false)
    assert.equal(await value(tx, 'prisma'), 1n)
  })
}

test('count with a post, or not at all', async () => {
  const post = (title) => prisma.post.create({ data: { title } })
  await prisma.$transaction([count(prisma, 'prisma-batch'), post('a')])
  await assert.rejects(prisma.$transaction([count(prisma, 'prisma-batch'), post(undefined)]))
  assert.equal(await value(prisma, 'prisma-batch'), 1n)
})

test('each way to call it counts once', async () => {
  await count(prisma, 'prisma-ways')
  assert.deepEqual(await prisma.$queryRaw`SELECT counter_incr('prisma-ways') AS ok`, [{ ok: true }])
  await prisma.$executeRaw`SELECT counter_incr('prisma-ways')`
  assert.equal(await value(prisma, 'prisma-ways'), 3n)
  // Why no function returns void.
  const raised = await prisma.$queryRaw`SELECT pg_advisory_lock_shared(1), counter_incr('prisma-ways')`.catch((error) => error)
  assert.equal(raised.code, 'P2010')
  assert.equal(await value(prisma, 'prisma-ways'), 4n)
})

test('errors', async () => {
  const refused = await count(prisma, 'prisma-stock:mug', -4).catch((error) => error)
  assert.equal(sqlstate(refused), '23514')
  for (const change of [count, take]) {
    const raised = await change(readOnly, 'prisma', 1).catch((error) => error)
    assert.equal(sqlstate(raised), '25006')
  }
  assert.equal(await value(readOnly, 'prisma'), 0n)
})

test('transactions are repeated', async () => {
  const run = (tx, text) => tx.$executeRawUnsafe(text)
  const fail = failing(2, run)
  assert.equal(await inTransaction(prisma, async (tx) => {
    await count(tx, 'prisma-retry')
    return fail(tx)
  }), 3)
  const always = failing(Infinity, run)
  await assert.rejects(inTransaction(prisma, async (tx) => {
    await count(tx, 'prisma-retry')
    return always(tx)
  }, 2), (error) => sqlstate(error) === '40001')
  assert.equal(await value(prisma, 'prisma-retry'), 1n)
})

test('through a pooler', async () => {
  await Promise.all([...Array(20)].map(() => inTransaction(pooled, (tx) => count(tx, 'prisma-pooled'))))
  assert.equal(await value(pooled, 'prisma-pooled'), 20n)
})
