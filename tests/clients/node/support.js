// What the tests share: how to connect, and how to wait.
//
// The server and the user come from the environment (PGHOST, PGPORT, PGUSER, PGDATABASE), which
// node-postgres reads by itself.
'use strict'

const assert = require('node:assert/strict')
const { test } = require('node:test')
const pg = require('pg')

// How long a test waits for something that must happen. Generous: it only bounds a failure.
const DEADLINE = 60_000

const pooler = { port: Number(process.env.COUNTERX_POOLER_PORT) }
// The same, with DISCARD ALL after each transaction.
const resettingPooler = { port: Number(process.env.COUNTERX_RESETTING_POOLER_PORT) }

// A test, with a pool of connections and a prefix of its own for counters. What it makes with
// `connect` and `pool` is closed at its end.
function counterTest(title, body) {
  test(title, { timeout: DEADLINE }, async (t) => {
    const open = []
    const pool = (options) => {
      const made = new pg.Pool({ max: 10, ...options })
      open.push(made)
      // Of an idle connection that breaks; queries have their own errors.
      made.on('error', () => {})
      return made
    }
    const connect = async (options) => {
      const client = new pg.Client(options)
      open.push(client)
      client.on('error', () => {})
      await client.connect()
      return client
    }
    const db = pool()
    const prefix = `node:${title}:`
    const name = (rest) => prefix + rest
    // What everybody sees.
    const value = async (rest) => {
      const { rows } = await db.query('SELECT counter_value($1) AS value', [name(rest)])
      return Number(rows[0].value)
    }
    // All counters of this test, without the prefix. A counter that was never changed, or whose
    // changes were all rolled back, is not among them.
    const values = async () => {
      const { rows } = await db.query(
        'SELECT name, value FROM counters WHERE starts_with(name, $1)', [prefix])
      return Object.fromEntries(rows.map((row) => [row.name.slice(prefix.length), Number(row.value)]))
    }
    try {
      await body({ t, db, pool, connect, prefix, name, value, values })
    } finally {
      await Promise.allSettled(open.reverse().map((each) => each.end()))
    }
  })
}

// Calls `work` with a client that is in a transaction, as node-postgres recommends it.
async function transaction(pool, work) {
  const client = await pool.connect()
  try {
    await client.query('BEGIN')
    const result = await work(client)
    await client.query('COMMIT')
    return result
  } catch (error) {
    await client.query('ROLLBACK')
    throw error
  } finally {
    client.release()
  }
}

// The first column of the first row.
async function one(client, text, parameters) {
  const { rows } = await client.query({ text, values: parameters, rowMode: 'array' })
  return rows[0][0]
}

// The numbers 0 to count - 1.
const numbers = (count) => [...Array(count).keys()]

// Calls `condition` until it says true.
async function eventually(what, condition) {
  const end = Date.now() + DEADLINE
  while (!(await condition())) {
    assert.ok(Date.now() < end, `waited for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

module.exports = { counterTest, eventually, numbers, one, pooler, resettingPooler, transaction }
