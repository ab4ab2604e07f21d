// The service: makes what it needs in the database, follows two streams, serves the page, and runs a load.
// Where the database is, the environment says, as for psql: PGHOST, PGPORT, PGUSER, PGDATABASE.
'use strict'

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const pg = require('pg')
const { Alerts, state } = require('./board')
const { Follower, Hints } = require('./follow')
const { load } = require('./load')
const { server } = require('./serve')

const { HOST = '127.0.0.1', PORT = '8080', LIVE_LISTEN = 'on', LIVE_LOAD = 'on' } = process.env

async function main() {
  const stop = new AbortController()
  const { signal } = stop
  const db = new pg.Pool({ max: 8 })
  // Of an idle connection that breaks: the next query makes another one, or has the error.
  db.on('error', () => {})
  await db.query(readFileSync(join(__dirname, 'setup.sql'), 'utf8'))

  const hints = new Hints({ signal })
  const alerts = new Alerts()
  const low = async () => {
    const { rows } = await db.query(`SELECT name FROM counter_alerts_fired('live-low')`)
    alerts.is(rows)
  }
  const scores = new Follower({
    db, hints, signal, stream: 'live-board',
    begun: () => page.changed(),
    change: () => page.changed()
  })
  const stock = new Follower({
    db, hints, signal, stream: 'live-stock',
    begun: async () => {
      await low()
      page.changed()
    },
    change: async (rows) => {
      rows.forEach((row) => alerts.add(row))
      if (rows.some(Alerts.concerns)) await low()
      page.changed()
    }
  })
  const page = server(() => state(scores.values, stock.values, alerts))

  for (const end of ['SIGINT', 'SIGTERM']) process.once(end, () => stop.abort())
  const running = [scores.run(), stock.run()]
  if (LIVE_LISTEN !== 'off') running.push(hints.listen())
  if (LIVE_LOAD !== 'off') running.push(load(db, signal))

  await new Promise((resolve, reject) => {
    page.http.on('error', reject)
    page.http.listen(Number(PORT), HOST, resolve)
  })
  console.log(`http://${HOST}:${page.http.address().port}/`)

  await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
  page.http.close()
  page.http.closeAllConnections()
  await Promise.all(running)
  await db.end()
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
