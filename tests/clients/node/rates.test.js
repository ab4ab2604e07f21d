// The service of docs/recipes/rate-limits.md, which is started here and asked over HTTP.
'use strict'

const assert = require('node:assert/strict')
const { once } = require('node:events')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { after, before } = require('node:test')
const pg = require('pg')
const { counterTest, eventually, numbers, one, pooler } = require('./support')

const page = (file) => readFileSync(join(process.env.COUNTERX_CLIENTS_PAGE, file), 'utf8')
const code = page('rates.js')

// The page's function, without the program that uses it.
const { limited } = new Function('require', `'use strict'; ${code.split('const pg = ')[0]}; return { limited }`)(require)

// All of the page's code, as a program with this environment, and with a pool that is closed with the test.
function program(env, pool) {
  const given = (name) => (name === 'pg' ? { Pool: function () { return pool() } } : require(name))
  return new Function('require', 'process', `'use strict'; ${code}; return service`)(given, { env })
}

const hello = (request, response, client) => response.end(`Hello, ${client}\n`)

// The page's table and function; and plans whose windows are as long as a test wants them.
before(async () => {
  const client = new pg.Client()
  await client.connect()
  try {
    const [declared] = page('rates.sql').split('SELECT client, granted')
    assert.match(declared, /CREATE FUNCTION take_request/)
    await client.query(declared)
    await client.query(`
      SELECT counter_type_create('api-day', max => 3, per => '1 day');
      SELECT counter_type_create('api-crowd', max => 20, per => '1 day');
      SELECT counter_type_create('api-second', max => 1, per => '1 second');
      SELECT counter_type_create('api-slow', max => 2, per => '1 day', sliding => true)`)
  } finally {
    await client.end()
  }
})

after(async () => {
  const client = new pg.Client()
  await client.connect()
  try {
    await client.query('DROP FUNCTION take_request; DROP TABLE api_client')
    const { rows } = await client.query("SELECT name FROM counter_types WHERE name LIKE 'api-%'")
    // Each in a transaction of its own.
    for (const { name } of rows) await client.query('SELECT counter_type_drop($1)', [name])
  } finally {
    await client.end()
  }
})

// A test with a client of a plan, and servers that are closed at its end.
function rateTest(title, plan, body) {
  counterTest(title, async (given) => {
    const servers = []
    const key = `key of ${title}`
    const client = `rate: ${title}`
    await given.db.query('INSERT INTO api_client VALUES ($1, $2, $3)', [key, client, plan])
    const listen = async (server) => {
      servers.push(server)
      if (!server.listening) {
        server.listen(0, '127.0.0.1')
        await once(server, 'listening')
      }
      return (headers = { 'X-API-Key': key }) =>
        fetch(`http://127.0.0.1:${server.address().port}/`, { headers })
    }
    try {
      await body({ ...given, client, key, listen })
    } finally {
      for (const server of servers) {
        server.closeAllConnections()
        server.close()
      }
    }
  })
}

const seconds = (response, header) => Number(response.headers.get(header))

rateTest('within the limit, and beyond it', 'day', async ({ db, listen, client }) => {
  const ask = await listen(limited(db, hello))
  for (const left of ['2', '1', '0']) {
    const response = await ask()
    assert.equal(response.status, 200)
    assert.equal(await response.text(), `Hello, ${client}\n`)
    assert.equal(response.headers.get('X-RateLimit-Limit'), '3')
    assert.equal(response.headers.get('X-RateLimit-Remaining'), left)
    assert.equal(response.headers.get('Retry-After'), null)
    assert.ok(seconds(response, 'X-RateLimit-Reset') >= 1)
  }
  const [from, response, to] = [
    await one(db, "SELECT ceil(extract(epoch FROM ends_at - clock_timestamp()))::int FROM counter_window('api-day:x')"),
    await ask(),
    await one(db, "SELECT floor(extract(epoch FROM ends_at - clock_timestamp()))::int FROM counter_window('api-day:x')")
  ]
  assert.equal(response.status, 429)
  assert.deepEqual(await response.json(), { error: 'too many requests' })
  assert.equal(response.headers.get('X-RateLimit-Remaining'), '0')
  // The end of the day.
  const wait = seconds(response, 'Retry-After')
  assert.ok(wait <= from && wait >= to, `${from} >= ${wait} >= ${to}`)
  assert.equal(seconds(response, 'X-RateLimit-Reset'), wait)
  // What was refused does not count.
  assert.equal(await one(db, "SELECT counter_value(counter_name('api-day', $1::text))", [client]), '3')
})

rateTest('many processes at once grant as many as there are', 'crowd', async ({ pool, listen }) => {
  const asks = []
  for (const each of [pool(), pool(), pool({ ...pooler })]) asks.push(await listen(limited(each, hello)))
  const answers = await Promise.all(numbers(90).map((n) => asks[n % asks.length]()))
  const statuses = answers.map((answer) => answer.status)
  assert.equal(statuses.filter((status) => status === 200).length, 20)
  assert.equal(statuses.filter((status) => status === 429).length, 70)
  const left = answers.filter((answer) => answer.status === 200)
    .map((answer) => seconds(answer, 'X-RateLimit-Remaining'))
  assert.ok(left.every((each) => each >= 0 && each < 20))
})

rateTest('the next window has room again', 'second', async ({ db, listen }) => {
  const ask = await listen(limited(db, hello))
  await eventually('a refusal', async () => {
    const response = await ask()
    if (response.status === 200) return false
    assert.equal(response.status, 429)
    assert.equal(response.headers.get('Retry-After'), '1')
    return true
  })
  await eventually('the next second', async () => (await ask()).status === 200)
})

rateTest('a window that slides says when there is room', 'slow', async ({ db, listen }) => {
  const ask = await listen(limited(db, hello))
  for (const status of [200, 200]) assert.equal((await ask()).status, status)
  const response = await ask()
  assert.equal(response.status, 429)
  // Half of the next day: one of two that were counted has ceased to count then.
  const beyond = seconds(response, 'Retry-After') - seconds(response, 'X-RateLimit-Reset')
  assert.ok(Math.abs(beyond - 43_200) <= 1, `${beyond}`)
})

rateTest('unknown keys', 'day', async ({ db, listen }) => {
  const ask = await listen(limited(db, hello))
  for (const headers of [{}, { 'X-API-Key': 'no such key' }]) {
    const response = await ask(headers)
    assert.equal(response.status, 401)
    assert.equal(response.headers.get('X-RateLimit-Limit'), null)
  }
})

rateTest('what fails has been a request', 'day', async ({ db, listen, client }) => {
  const ask = await listen(limited(db, (request, response) => {
    response.setHeader('Content-Type', 'text/plain')
    throw new Error('not today')
  }))
  const response = await ask()
  assert.equal(response.status, 500)
  assert.deepEqual(await response.json(), { error: 'internal error' })
  assert.equal(await one(db, "SELECT counter_value(counter_name('api-day', $1::text))", [client]), '1')
  const broken = await listen(limited(db, (request, response) => {
    response.write('half')
    throw new Error('in the midst of it')
  }))
  await assert.rejects(async () => (await broken()).text())
})

rateTest('a database that cannot be asked', 'day', async ({ pool, listen }) => {
  // A port at which nobody listens.
  const ask = await listen(limited(pool({ port: 1 }), hello))
  const response = await ask()
  assert.equal(response.status, 503)
  assert.equal(response.headers.get('Retry-After'), null)
})

rateTest('the program of the page', 'day', async ({ pool, listen, client }) => {
  const service = program({ PORT: '0' }, pool)
  if (!service.listening) await once(service, 'listening')
  const ask = await listen(service)
  const response = await ask()
  assert.equal(response.status, 200)
  assert.equal(await response.text(), `Hello, ${client}\n`)
})
