// examples/live, as people meet it: the service in a process of its own, the page in a browser.
'use strict'

const assert = require('node:assert/strict')
const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdirSync, mkdtempSync, readFileSync, rmSync } = require('node:fs')
const { createRequire } = require('node:module')
const { tmpdir } = require('node:os')
const { join, resolve } = require('node:path')
const { createInterface } = require('node:readline')
const { after, before, test } = require('node:test')
const { chromium } = require('playwright-core')

const EXAMPLE = resolve(__dirname, '../../../examples/live')
const ARTEFACTS = resolve(__dirname, '../../../target/clients')
const pg = createRequire(join(EXAMPLE, 'package.json'))('pg')

// How long a test waits for something that must happen. Generous: it only bounds a failure.
const DEADLINE = 60_000
const DATABASE = 'live'
const ENVIRONMENT = { ...process.env, PGDATABASE: DATABASE, HOST: '127.0.0.1', PORT: '0' }

let db, browser, profile

// In the database: rows.
const query = async (text, parameters) => (await db.query(text, parameters)).rows

async function eventually(what, condition) {
  const end = Date.now() + DEADLINE
  let last
  while (!(last = await condition())) {
    assert.ok(Date.now() < end, `waited for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  return last
}

// The service: its address, what it has complained of so far, and its end. `port` is that of one before it.
async function start(t, { port = '0', ...environment } = {}) {
  const service = spawn('node', ['main.js'], {
    cwd: EXAMPLE, env: { ...ENVIRONMENT, PORT: port, ...environment }, stdio: ['ignore', 'pipe', 'pipe']
  })
  const complaints = []
  createInterface({ input: service.stderr }).on('line', (line) => complaints.push(line))
  const ended = once(service, 'exit')
  const stop = async () => {
    service.kill('SIGTERM')
    const late = setTimeout(() => service.kill('SIGKILL'), DEADLINE / 2)
    const [code] = await ended
    clearTimeout(late)
    return code
  }
  t.after(stop)
  const first = await Promise.race([once(createInterface({ input: service.stdout }), 'line'), ended])
  assert.match(String(first[0]), /^http:/, `the service did not start: ${complaints.join('\n')}`)
  return { address: first[0], complaints, stop }
}

async function open(t, address) {
  const page = await browser.newPage()
  const errors = []
  page.on('pageerror', (error) => errors.push(String(error)))
  page.on('console', (message) => { if (message.type() === 'error') errors.push(message.text()) })
  t.after(() => page.close())
  await page.goto(address)
  return { page, errors }
}

// What is to be seen, as text.
const seen = (page) => page.evaluate(() => {
  const list = (id, read) => [...document.querySelectorAll(`#${id} li`)].map(read)
  const text = (row, what) => row.querySelector(what).textContent
  return {
    live: 'live' in document.getElementById('connection').dataset,
    board: list('board', (row) => [Number(text(row, '.place')), text(row, '.name'), text(row, '.number')])
      .sort(([a], [b]) => a - b).map(([, name, number]) => `${name} ${number}`),
    stock: list('stock', (row) => `${text(row, '.name')} ${text(row, '.number')}${row.classList.contains('low') ? ' low' : ''}`),
    alerts: list('alerts', (row) => row.querySelector('span').textContent)
  }
})

// The same, by the counters.
async function counted() {
  const board = await query(`SELECT substr(name, length('live-board:') + 1) AS name, value FROM counter_top(10, 'live-board:')`)
  const stock = await query(
    `SELECT substr(c.name, length('live-stock:') + 1) AS name, c.value, f.name IS NOT NULL AS low
     FROM counters c LEFT JOIN counter_alerts_fired('live-low') f USING (name) WHERE c.name ^@ 'live-stock:' ORDER BY name COLLATE "C"`)
  return {
    board: board.map(({ name, value }) => `${name} ${Number(value).toLocaleString('en')}`),
    stock: stock.map(({ name, value, low }) => `${name} ${Number(value).toLocaleString('en')}${low ? ' low' : ''}`)
  }
}

async function shows(page, what = 'the page to show what was counted') {
  let is, should
  try {
    await eventually(what, async () => {
      is = await seen(page)
      should = await counted()
      return is.live && String(is.board) === String(should.board) && String(is.stock) === String(should.stock)
    })
  } catch (error) {
    // Says how they differ.
    assert.deepEqual({ board: is.board, stock: is.stock }, should, error.message)
    throw error
  }
}

const clear = async () => {
  await query('SELECT counterx.drop_all_counters()')
  await query(`SELECT counter_incr(name, 30) FROM unnest('{live-stock:cup,live-stock:mug}'::text[]) name`)
  await query(`SELECT counter_incr_many('{"live-board:ada": 1000, "live-board:bob": 20}')`)
}

before(async () => {
  const postgres = new pg.Client({ database: 'postgres' })
  await postgres.connect()
  await postgres.query(`CREATE DATABASE ${DATABASE}`)
  await postgres.end()
  db = new pg.Pool({ database: DATABASE, max: 4 })
  db.on('error', () => {})
  mkdirSync(ARTEFACTS, { recursive: true })
  profile = mkdtempSync(join(tmpdir(), 'counterx-live-'))
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: '/usr/bin/chromium',
    viewport: { width: 1024, height: 520 },
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync']
  })
})

after(async () => {
  await browser?.close()
  await db?.end()
  if (profile) rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
})

test('shows what a load counts, while it runs and afterwards', { timeout: DEADLINE * 3 }, async (t) => {
  const service = await start(t)
  const { page, errors } = await open(t, service.address)
  const first = await eventually('a leaderboard', async () => {
    const { board, stock } = await seen(page)
    return board.length >= 5 && stock.length >= 5 && board
  })
  await eventually('it to move', async () => String((await seen(page)).board) !== String(first))
  // Customers buy until something runs low, and then it is delivered.
  await eventually('an alert', async () => (await seen(page)).alerts.some((text) => / runs low: \d left/.test(text)))
  await eventually('a delivery', async () => (await seen(page)).alerts.some((text) => /is back/.test(text)))
  await page.screenshot({ path: join(ARTEFACTS, 'live.png') })
  assert.equal(await service.stop(), 0)
  assert.deepEqual(service.complaints, [])

  // Without a load, and begun anew: what is there now.
  const again = await start(t, { LIVE_LOAD: 'off', port: new URL(service.address).port })
  await shows(page, 'the page to connect again, and to show what was counted in all')
  await query(`SELECT counter_incr('live-board:zoe', 1000000)`)
  await query(`SELECT counter_drop('live-board:ada')`)
  await shows(page)
  assert.deepEqual(again.complaints, [])
  // But for the time in which there was no service.
  assert.deepEqual(errors.filter((error) => !/ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING/.test(error)), [])
})

test('an alert is shown when it fires, and until it is over', { timeout: DEADLINE * 3 }, async (t) => {
  const service = await start(t, { LIVE_LOAD: 'off' })
  await clear()
  const { page } = await open(t, service.address)
  await shows(page)
  const { alerts } = await seen(page)
  assert.ok(await (await query(`SELECT counter_try_incr('live-stock:mug', -25) AS sold`))[0].sold)
  await eventually('mugs to be low', async () => (await seen(page)).stock.includes('mug 5 low'))
  assert.equal((await seen(page)).alerts[0], 'mug runs low: 5 left')
  // Not enough to be over.
  await query(`SELECT counter_incr('live-stock:mug', 10)`)
  await eventually('mugs to be more', async () => (await seen(page)).stock.includes('mug 15 low'))
  // Who comes now sees it, too.
  const other = await open(t, service.address)
  await shows(other.page)
  await query(`SELECT counter_incr('live-stock:mug', 10)`)
  await eventually('mugs to be there', async () => (await seen(page)).stock.includes('mug 25'))
  assert.deepEqual((await seen(page)).alerts.slice(0, 2), ['mug is back: 25', 'mug runs low: 5 left'])
  assert.equal((await seen(page)).alerts.length, Math.min(8, alerts.length + 2))
  await shows(other.page)
})

test('names are shown as they are', { timeout: DEADLINE }, async (t) => {
  const service = await start(t, { LIVE_LOAD: 'off' })
  await clear()
  const { page } = await open(t, service.address)
  const name = '<img src=x onerror="document.title=1"> & ünïcode'
  await query('SELECT counter_incr($1, 2000)', [`live-board:${name}`])
  await eventually('the name', async () => (await seen(page)).board[0] === `${name} 2,000`)
  assert.equal(await page.title(), 'counterx live')
  // Beyond a bigint.
  await query(`SELECT counter_incr('live-board:big', 9223372036854775807)`)
  await query(`SELECT counter_incr('live-board:big', 1)`)
  await eventually('a value that is none', async () => (await seen(page)).board.includes('big ?'))
})

test('without LISTEN it polls', { timeout: DEADLINE }, async (t) => {
  const service = await start(t, { LIVE_LOAD: 'off', LIVE_LISTEN: 'off' })
  await clear()
  const { page } = await open(t, service.address)
  await shows(page)
  await query(`SELECT counter_incr('live-board:bob', 5000)`)
  await shows(page)
  assert.deepEqual((await seen(page)).board[0], 'bob 5,020')
})

test('goes on after its connections were cut', { timeout: DEADLINE * 2 }, async (t) => {
  const service = await start(t, { LIVE_LOAD: 'off' })
  await clear()
  const { page } = await open(t, service.address)
  await shows(page)
  const cut = await query(
    `SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity
     WHERE datname = $1 AND backend_type = 'client backend' AND query ~ 'LISTEN|counter_stream' AND pid <> pg_backend_pid()`, [DATABASE])
  assert.notEqual(cut[0].n, '0')
  await query(`SELECT counter_incr('live-board:bob', 7)`)
  await shows(page)
  await query(`SELECT counter_incr('live-board:bob', 7)`)
  await shows(page)
})

test('begins again when its streams are lost', { timeout: DEADLINE * 2 }, async (t) => {
  const service = await start(t, { LIVE_LOAD: 'off' })
  await clear()
  const { page } = await open(t, service.address)
  await shows(page)
  await clear()
  await query(`SELECT counter_incr('live-board:ada', 77)`)
  await shows(page)
  assert.ok(service.complaints.some((line) => /is lost.*beginning again/.test(line)), service.complaints.join('\n'))
})

test('all that it has made can be removed', { timeout: DEADLINE }, async () => {
  for (const statement of readFileSync(join(EXAMPLE, 'remove.sql'), 'utf8').split(';\n')) await query(statement)
  const left = await query(
    `SELECT stream AS name FROM counter_streams UNION SELECT alert FROM counter_alerts
     UNION SELECT name FROM counter_types UNION SELECT name FROM counters`)
  assert.deepEqual(left, [])
})
