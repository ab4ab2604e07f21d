// What `prisma db pull` and `prisma db push` make of counterx, in `public` and in a schema of its own.
'use strict'

const assert = require('node:assert/strict')
const { spawnSync } = require('node:child_process')
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { join } = require('node:path')
const { after, before, test } = require('node:test')
const pg = require('pg')

const installations = {
  public: 'CREATE EXTENSION counterx',
  counting: 'CREATE SCHEMA counting; CREATE EXTENSION counterx SCHEMA counting'
}
const directory = mkdtempSync(join(__dirname, 'node_modules', '.tools-'))
after(() => rmSync(directory, { recursive: true }))

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
    await query(undefined, `CREATE DATABASE prisma_${schema}`)
    await query(`prisma_${schema}`, `${commands}; CREATE TABLE "Post" (id serial PRIMARY KEY, title text NOT NULL)`)
  }
})

// Runs a command of Prisma's on the database of an installation, beginning with a schema that has no models;
// returns the schema as it is then.
function prisma(installation, features, models, ...command) {
  const schema = join(directory, `${installation}.prisma`)
  writeFileSync(schema, `
generator client {
  provider        = "prisma-client-js"
  previewFeatures = ${JSON.stringify(features)}
}

datasource db {
  provider = "postgresql"
  url      = "postgresql://the-adapter-connects"
}
${models}`)
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(__dirname, 'node_modules/prisma/build/index.js'), ...command, '--config', join(__dirname, 'tools.config.mjs')],
    {
      cwd: __dirname,
      encoding: 'utf8',
      timeout: 120_000,
      env: {
        ...process.env,
        COUNTERX_PRISMA_SCHEMA: schema,
        COUNTERX_PRISMA_DATABASE: `prisma_${installation}`,
        CHECKPOINT_DISABLE: '1',
        // Programs that it asks for and does not run, as in scripts/clients.
        PRISMA_SCHEMA_ENGINE_BINARY: '/bin/true',
        PRISMA_QUERY_ENGINE_LIBRARY: '/bin/true',
        PRISMA_HIDE_UPDATE_MESSAGE: '1'
      }
    })
  assert.equal(status, 0, `${stdout}\n${stderr}`)
  return { schema: readFileSync(schema, 'utf8'), said: stdout + stderr }
}

const names = (schema) => [...schema.matchAll(/^(?:model|view) (\w+) \{/gm)].map((match) => match[1]).sort()

test('pull takes no more than the tables of the application', () => {
  for (const installation of Object.keys(installations)) {
    const { schema, said } = prisma(installation, [], '', 'db', 'pull')
    assert.deepEqual(names(schema), ['Post'], said)
  }
})

test('pull with the preview of views takes those of public', () => {
  assert.deepEqual(names(prisma('counting', ['views'], '', 'db', 'pull').schema), ['Post'])
  assert.deepEqual(names(prisma('public', ['views'], '', 'db', 'pull').schema),
    ['Post', 'counter_alerts', 'counter_histories', 'counter_holds', 'counter_sealed', 'counter_streams', 'counter_tracks', 'counter_types', 'counters'])
})

test('push changes nothing of it', async () => {
  const models = `
model Post {
  id    Int    @id @default(autoincrement())
  title String
  body  String?
}`
  for (const installation of Object.keys(installations)) {
    const { said } = prisma(installation, [], models, 'db', 'push')
    assert.match(said, /in sync/)
    const columns = await query(`prisma_${installation}`,
      `SELECT attname FROM pg_attribute WHERE attrelid = '"Post"'::regclass AND attnum > 0 ORDER BY attnum`)
    assert.deepEqual(columns.map((column) => column.attname), ['id', 'title', 'body'])
    const schema = installation === 'public' ? 'public' : 'counting'
    await query(`prisma_${installation}`, `SELECT ${schema}.counter_incr('posts')`)
    const [{ count }] = await query(`prisma_${installation}`, `SELECT count(*)::int FROM ${schema}.counters`)
    assert.equal(count, 1)
  }
})
