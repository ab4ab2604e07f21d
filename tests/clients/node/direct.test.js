// counterx from node-postgres, connected to the server itself.
'use strict'

const assert = require('node:assert/strict')
const pg = require('pg')
const { counterTest, eventually, numbers, one, transaction } = require('./support')

counterTest('increment and read', async ({ db, name }) => {
  const likes = name('likes')
  await db.query('SELECT counter_incr($1)', [likes])
  await db.query('SELECT counter_incr($1, $2)', [likes, 10])
  await db.query('SELECT counter_decr($1, $2)', [likes, 2])
  const { rows } = await db.query('SELECT counter_value($1) AS value', [likes])
  // A bigint is a string, as a number of JavaScript cannot hold each of them.
  assert.deepEqual(rows, [{ value: '9' }])
  // There is no need to create a counter, and none to ask whether there is one.
  assert.equal(await one(db, 'SELECT counter_value($1)', [name('unknown')]), '0')
  assert.equal(await one(db, 'SELECT counter_incr($1)', [likes]), true)
})

counterTest('bigint as BigInt or as number', async ({ connect, name }) => {
  // 20 is the type bigint.
  const parsed = (parse) => ({
    types: { getTypeParser: (oid, format) => (oid === 20 ? parse : pg.types.getTypeParser(oid, format)) }
  })
  const exact = await connect(parsed(BigInt))
  assert.equal(await one(exact, 'SELECT counter_incr_get($1, $2)', [name('x'), 2n ** 62n]), 2n ** 62n)
  const handy = await connect(parsed(Number))
  assert.equal(await one(handy, 'SELECT counter_incr_get($1)', [name('y')]), 1)
})

counterTest('names are any text', async ({ db, name, values }) => {
  const names = ['Zoë', '日本', '🐘', "it's", 'a "b" \\c', 'new\nline', '$1', '%s']
  for (const each of names) await db.query('SELECT counter_incr($1)', [name(each)])
  assert.deepEqual(await values(), Object.fromEntries(names.map((each) => [each, 1])))
})

counterTest('increment and get', async ({ db, name }) => {
  const ticket = name('ticket')
  assert.equal(await one(db, 'SELECT counter_incr_get($1)', [ticket]), '1')
  assert.equal(await one(db, 'SELECT counter_incr_get($1, $2)', [ticket, 5]), '6')
  const { rows } = await db.query(
    'SELECT counter_incr_get($1) AS number FROM generate_series(1, 3)', [ticket])
  assert.deepEqual(rows.map((row) => row.number), ['7', '8', '9'])
})

counterTest('many with arrays', async ({ db, name, values }) => {
  // Arrays of JavaScript are arrays of PostgreSQL. A name may be there twice.
  await db.query('SELECT counter_incr_many($1, $2)', [['a', 'b', 'a'].map(name), [1, 2, 5]])
  await db.query('SELECT counter_incr_many($1, $2)', [[name('b')], ['9007199254740993']])
  await db.query('SELECT counter_incr_many($1, $2)', [[], []])
  assert.equal((await values()).a, 6)
  assert.equal(await one(db, 'SELECT counter_value($1)', [name('b')]), '9007199254740995')
})

counterTest('many with jsonb', async ({ db, name, values }) => {
  // Objects are sent as JSON.
  await db.query('SELECT counter_incr_many($1)', [{ [name('a')]: 3, [name('b')]: -4 }])
  await db.query('SELECT counter_incr_many($1)', [{}])
  assert.deepEqual(await values(), { a: 3, b: -4 })
})

counterTest('values in the order asked', async ({ db, name }) => {
  await db.query('SELECT counter_incr($1), counter_incr($2, 2)', [name('a'), name('b')])
  const asked = ['b', 'unknown', 'a', 'b'].map(name)
  const { rows, fields } = await db.query('SELECT * FROM counter_values($1)', [asked])
  assert.deepEqual(fields.map((field) => field.name), ['name', 'value'])
  assert.deepEqual(rows.map((row) => row.name), asked)
  assert.deepEqual(rows.map((row) => row.value), ['2', '0', '1', '2'])
})

counterTest('list page by page', async ({ db, name }) => {
  const names = numbers(25).map((n) => name(`page ${n}`))
  await db.query('SELECT counter_incr_many($1, $2)', [[...names, name('other')], [...numbers(25), 1]])
  const pages = []
  let last = null
  for (;;) {
    const { rows } = await db.query(
      'SELECT name, value FROM counter_list($1, $2, $3)', [name('page '), last, 10])
    if (rows.length === 0) break
    pages.push(rows)
    last = rows.at(-1).name
  }
  assert.deepEqual(pages.map((page) => page.length), [10, 10, 5])
  const listed = pages.flat()
  assert.deepEqual(listed.map((row) => row.name), [...names].sort())
  for (const { name, value } of listed) assert.equal(value, String(names.indexOf(name)))
})

counterTest('top and bottom', async ({ db, prefix, name }) => {
  await db.query('SELECT counter_incr_many($1)', [
    { [name('a')]: 5, [name('b')]: 9, [name('c')]: 5, [name('d')]: -1 }
  ])
  const top = await db.query('SELECT * FROM counter_top($1, $2)', [3, prefix])
  assert.deepEqual(top.rows, [
    { rank: '1', name: name('b'), value: '9' },
    { rank: '2', name: name('a'), value: '5' },
    { rank: '2', name: name('c'), value: '5' }
  ])
  const bottom = await db.query('SELECT * FROM counter_bottom($1, $2)', [10, prefix])
  assert.deepEqual(bottom.rows.map((row) => [row.rank, row.name]), [
    ['1', name('d')], ['2', name('c')], ['2', name('a')], ['4', name('b')]
  ])
})

counterTest('sums are numeric', async ({ db, prefix, name }) => {
  // More than a bigint holds. A numeric is a string too.
  for (const _ of numbers(2)) {
    await db.query('SELECT counter_incr($1, $2)', [name('big'), '9223372036854775807'])
  }
  assert.equal(await one(db, 'SELECT counter_sum($1)', [prefix]), '18446744073709551614')
  assert.equal(
    await one(db, 'SELECT value FROM counters WHERE name = $1', [name('big')]), '18446744073709551614')
})

counterTest('set, reset, rename, merge and drop', async ({ db, name, values }) => {
  const [a, b, c] = ['a', 'b', 'c'].map(name)
  assert.equal(await one(db, 'SELECT counter_set($1, $2)', [a, 100]), '0')
  assert.equal(await one(db, 'SELECT counter_reset($1)', [a]), '100')
  await db.query('SELECT counter_incr($1, 3), counter_incr($2, 4)', [a, c])
  await db.query('SELECT counter_rename($1, $2)', [a, b])
  await db.query('SELECT counter_merge($1, $2)', [b, c])
  assert.deepEqual(await values(), { b: 7 })
  assert.equal(await one(db, 'SELECT counter_drop($1)', [b]), true)
  assert.equal(await one(db, 'SELECT counter_drop($1)', [b]), false)
  assert.deepEqual(await values(), {})
})

counterTest('named prepared statements', async ({ connect, name }) => {
  // A query with a name is prepared once a connection. The server makes five plans for it, and then
  // keeps one; folds come in between.
  const client = await connect()
  for (const n of numbers(50)) {
    await client.query({ name: 'hit', text: 'SELECT counter_incr($1, $2)', values: [name('x'), 2] })
    const { rows } = await client.query({
      name: 'look',
      text: 'SELECT counter_value($1) AS value, (SELECT value FROM counters WHERE name = $1) AS listed',
      values: [name('x')]
    })
    const expected = String(2 * (n + 1))
    assert.deepEqual(rows, [{ value: expected, listed: expected }])
  }
  const { rows } = await client.query('SELECT name FROM pg_prepared_statements ORDER BY name')
  assert.deepEqual(rows, [{ name: 'hit' }, { name: 'look' }])
})

counterTest('a pool counts in parallel', async ({ db, name, values }) => {
  await Promise.all(numbers(500).flatMap((n) => [
    db.query('SELECT counter_incr($1)', [name('hot')]),
    db.query('SELECT counter_incr($1, $2)', [name(`key ${n % 7}`), n])
  ]))
  const expected = { hot: 500 }
  for (const n of numbers(500)) {
    expected[`key ${n % 7}`] = (expected[`key ${n % 7}`] ?? 0) + n
  }
  assert.deepEqual(await values(), expected)
})

counterTest('transactions', async ({ db, name, value }) => {
  const add = (client, delta) => client.query('SELECT counter_incr($1, $2)', [name('x'), delta])
  await transaction(db, async (client) => {
    await add(client, 3)
    // Seen by the transaction itself, and by nobody else until the commit.
    assert.equal(await one(client, 'SELECT counter_value($1)', [name('x')]), '3')
    assert.equal(await value('x'), 0)
  })
  assert.equal(await value('x'), 3)
  await assert.rejects(
    transaction(db, async (client) => {
      await add(client, 50)
      throw new Error('changed my mind')
    }), /changed my mind/)
  assert.equal(await value('x'), 3)
})

counterTest('savepoints', async ({ db, name, value }) => {
  const add = (client, delta) => client.query('SELECT counter_incr($1, $2)', [name('x'), delta])
  await transaction(db, async (client) => {
    await add(client, 1)
    await client.query('SAVEPOINT outer_one')
    await add(client, 10)
    await client.query('SAVEPOINT inner_one')
    await add(client, 100)
    // An error fails the transaction up to the savepoint.
    await assert.rejects(client.query("SELECT counter_incr('')"), { code: '22023' })
    await assert.rejects(add(client, 1), { code: '25P02' })
    await client.query('ROLLBACK TO inner_one')
    await add(client, 1000)
    await client.query('RELEASE outer_one')
    assert.equal(await one(client, 'SELECT counter_value($1)', [name('x')]), '1011')
  })
  assert.equal(await value('x'), 1011)
})

counterTest('several statements in one string', async ({ db, name, value }) => {
  const text = `SELECT counter_incr(${pg.escapeLiteral(name('x'))});`
  await db.query(text + text)
  assert.equal(await value('x'), 2)
  // They are one transaction.
  await assert.rejects(db.query(text + 'SELECT 1 / 0;'), { code: '22012' })
  assert.equal(await value('x'), 2)
})

counterTest('errors have a code and a hint', async ({ db, name, values }) => {
  const cases = [
    ['22004', 'SELECT counter_incr($1)', [null]],
    ['22004', 'SELECT counter_incr($1, $2)', [name('x'), null]],
    ['22004', 'SELECT counter_incr_many($1, $2)', [[name('x'), null], [1, 1]]],
    ['22023', 'SELECT counter_incr($1)', ['']],
    ['22023', 'SELECT counter_value($1)', ['x'.repeat(256)]],
    ['22003', 'SELECT counter_incr($1, n) FROM unnest($2::bigint[]) n', [name('x'), ['9223372036854775807', 1]]]
  ]
  for (const [code, text, parameters] of cases) {
    await assert.rejects(db.query(text, parameters), (error) => {
      assert.ok(error instanceof pg.DatabaseError)
      assert.equal(error.code, code, `${text}: ${error.message}`)
      assert.ok(error.hint, `${text}: ${error.message}`)
      return true
    })
  }
  await assert.rejects(
    transaction(db, async (client) => {
      await client.query('SET TRANSACTION READ ONLY')
      await client.query('SELECT counter_incr($1)', [name('x')])
    }), { code: '25006' })
  assert.deepEqual(await values(), {})
})

counterTest('a token counts once among concurrent duplicates', async ({ db, name, values }) => {
  for (const n of numbers(20)) {
    const verdicts = await Promise.all(numbers(8).map(() =>
      one(db, 'SELECT counter_incr_once($1, $2)', [name(`message ${n}`), name('x')])))
    assert.equal(verdicts.filter((fresh) => fresh).length, 1, String(verdicts))
  }
  assert.deepEqual(await values(), { x: 20 })
})

counterTest('a token gives everybody the same value', async ({ db, name }) => {
  await db.query('SELECT counter_incr($1, 41)', [name('x')])
  const got = await Promise.all(numbers(8).map(() =>
    one(db, 'SELECT counter_incr_once_get($1, $2)', [name('message'), name('x')])))
  assert.deepEqual(got, Array(8).fill('42'))
  // The same token for something else is a mistake.
  await assert.rejects(
    db.query('SELECT counter_incr_once($1, $2, 7)', [name('message'), name('x')]),
    (error) => error.code === '22023' && Boolean(error.hint))
})

counterTest('a retry after the connection broke', async ({ db, connect, name, value }) => {
  const token = name('message')
  const text = 'SELECT counter_incr_once($1, $2)'
  const client = await connect()
  await client.query('BEGIN')
  assert.equal(await one(client, text, [token, name('x')]), true)
  const pid = await one(client, 'SELECT pg_backend_pid()')
  await db.query('SELECT pg_terminate_backend($1, 60000)', [pid])
  await assert.rejects(client.query('COMMIT'))
  assert.equal(await value('x'), 0)
  assert.equal(await one(db, text, [token, name('x')]), true)
  assert.equal(await one(db, text, [token, name('x')]), false)
  assert.equal(await value('x'), 1)
})

counterTest('serializable with retries', async ({ db, name, value }) => {
  // As if one transaction ran after the other: each sees another value.
  const seen = []
  await Promise.all(numbers(4).map(async () => {
    for (let done = 0; done < 20;) {
      try {
        seen.push(await transaction(db, async (client) => {
          await client.query('SET TRANSACTION ISOLATION LEVEL SERIALIZABLE')
          const before = await one(client, 'SELECT counter_value($1)', [name('x')])
          await client.query('SELECT counter_incr($1)', [name('x')])
          return Number(before)
        }))
        done += 1
      } catch (error) {
        if (error.code !== '40001') throw error
      }
    }
  }))
  assert.deepEqual(seen.sort((a, b) => a - b), numbers(80))
  assert.equal(await value('x'), 80)
})

counterTest('who is notified of a commit sees what it counted', async ({ db, connect, name }) => {
  const listener = await connect()
  const received = []
  listener.on('notification', (message) => received.push(message.payload))
  await listener.query('LISTEN counted')
  for (const n of numbers(20)) {
    await transaction(db, async (client) => {
      await client.query('SELECT counter_incr($1)', [name('x')])
      await client.query("SELECT pg_notify('counted', $1)", [String(n)])
    })
    await eventually('a notification', () => received.length === n + 1)
    assert.equal(await one(listener, 'SELECT counter_value($1)', [name('x')]), String(n + 1))
  }
  // And who only counts notifies nobody.
  await db.query('SELECT counter_incr($1)', [name('x')])
  await listener.query('UNLISTEN counted')
  assert.deepEqual(received, numbers(20).map(String))
})

counterTest('a cursor over the view', async ({ db, name, prefix }) => {
  await db.query(
    "SELECT counter_incr($1 || lpad(n::text, 3, '0'), n) FROM generate_series(0, 299) n", [prefix])
  const listed = []
  await transaction(db, async (client) => {
    await client.query(
      `DECLARE listing CURSOR FOR SELECT name, value FROM counters
       WHERE starts_with(name, ${pg.escapeLiteral(prefix)}) ORDER BY name`)
    for (;;) {
      const { rows } = await client.query('FETCH 70 FROM listing')
      if (rows.length === 0) break
      listed.push(...rows)
      // What others do in the meantime does not change the result.
      await db.query('SELECT counter_incr($1, 1000)', [name('299')])
    }
  })
  assert.deepEqual(listed.map((row) => Number(row.value)), numbers(300))
})
