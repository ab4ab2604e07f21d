// What `drizzle-kit push` and `drizzle-kit pull` make of counterx, in `public` and in a schema of its own.
'use strict'

const assert = require('node:assert/strict')
const { spawnSync } = require('node:child_process')
const { mkdtempSync, readFileSync, rmSync } = require('node:fs')
const { join } = require('node:path')
const { after, before, test } = require('node:test')
const pg = require('pg')

const installations = {
  public: 'CREATE EXTENSION counterx',
  counting: 'CREATE SCHEMA counting; CREATE EXTENSION counterx SCHEMA counting'
}
const out = mkdtempSync(join(__dirname, 'node_modules', '.tools-'))
after(() => rmSync(out, { recursive: true }))

async function query(database, text) {
  const client = new pg.Client({ database })
  await client.connect()
  try {
    return (await client.query(text)).rows
  } finally {
    await client.end()
  }
}

before(async () => {
  for (const [schema, commands] of Object.entries(installations)) {
    await query(undefined, `CREATE DATABASE drizzle_${schema}`)
    await query(`drizzle_${schema}`, commands)
  }
})

function kit(installation, filter, ...command) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath, [join(__dirname, 'node_modules/drizzle-kit/bin.cjs'), ...command],
    {
      cwd: __dirname,
      encoding: 'utf8',
      timeout: 120_000,
      env: {
        ...process.env,
        COUNTERX_DRIZZLE_DATABASE: `drizzle_${installation}`,
        COUNTERX_DRIZZLE_FILTER: filter ? 'yes' : '',
        COUNTERX_DRIZZLE_OUT: out,
        NO_COLOR: '1'
      }
    })
  return { status, said: stdout + stderr }
}

const tables = (installation) => query(`drizzle_${installation}`,
  "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")

test('push leaves a schema of its own alone', async () => {
  assert.match(kit('counting', false, 'push').said, /Changes applied/)
  assert.match(kit('counting', false, 'push').said, /No changes detected/)
  assert.deepEqual(await tables('counting'), [{ relname: 'post' }])
})

test('in public, push with a filter leaves the views alone', async () => {
  assert.match(kit('public', true, 'push').said, /Changes applied/)
  assert.match(kit('public', true, 'push').said, /No changes detected/)
  assert.deepEqual(await tables('public'), [{ relname: 'post' }])
})

// It ends with status 0 all the same.
test('in public, push wants to drop the views, and fails at the first', async () => {
  const { said } = kit('public', false, 'push')
  assert.match(said, /DROP VIEW "public"\."counter/)
  assert.match(said, /because extension counterx requires it/)
  assert.doesNotMatch(said, /Changes applied/)
  assert.equal((await query('drizzle_public', "SELECT FROM pg_extension WHERE extname = 'counterx'")).length, 1)
})

test('pull takes the views of public, and nothing else', async () => {
  const pulled = (installation, filter) => {
    const { status, said } = kit(installation, filter, 'pull')
    assert.equal(status, 0, said)
    const models = readFileSync(join(out, 'schema.ts'), 'utf8')
    return [...models.matchAll(/pg(?:Table|View)\("([^"]*)"/g)].map((match) => match[1]).sort()
  }
  assert.deepEqual(pulled('counting', false), ['post'])
  assert.deepEqual(pulled('public', true), ['post'])
  assert.deepEqual(pulled('public', false), ['counter_alerts', 'counter_histories', 'counter_holds', 'counter_sealed', 'counter_streams', 'counter_tracks', 'counter_types', 'counters', 'post'])
})
