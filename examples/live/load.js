// A load: players who score, customers who buy, and deliveries of what has run low.
'use strict'

const { setTimeout: sleep } = require('node:timers/promises')

const PLAYERS = ['ada', 'bob', 'cy', 'dee', 'eve', 'finn', 'gus', 'hal', 'ida', 'joe', 'kay', 'lou', 'mia', 'ned']
const ITEMS = ['book', 'cup', 'lamp', 'mug', 'pen', 'shirt']
const WORKERS = 4
/** Between two transactions of one worker, in milliseconds. */
const PAUSE = 30
/** How long a delivery takes from the alert on. */
const DELIVERY = '3 seconds'

const random = (most) => Math.floor(Math.random() * most)
// The first ones more often.
const some = (list) => list[Math.floor(Math.random() ** 2 * list.length)]

async function work(db) {
  // Scores come more often than sales, or nothing would be left to sell.
  if (random(8) > 0) await db.query('SELECT counter_incr($1, $2)', [`live-board:${some(PLAYERS)}`, 1 + random(20)])
  // False where there are not as many left.
  else await db.query('SELECT counter_try_incr($1, $2)', [`live-stock:${some(ITEMS)}`, -1 - random(2)])
}

async function deliver(db) {
  await db.query(
    `SELECT counter_incr(name, 40) FROM counter_alerts_fired('live-low') WHERE since < now() - $1::interval`, [DELIVERY])
}

async function repeat(signal, pause, step) {
  while (!signal.aborted) {
    try {
      await step()
    } catch (error) {
      if (!signal.aborted) console.error(`load: ${error.message}`)
    }
    await sleep(pause, undefined, { signal }).catch(() => {})
  }
}

/** Runs until the signal comes. */
async function load(db, signal) {
  await db.query(
    `SELECT counter_incr(name, 30) FROM unnest($1::text[]) name WHERE counter_value(name) = 0`,
    [ITEMS.map((item) => `live-stock:${item}`)])
  await Promise.all([
    repeat(signal, 500, () => deliver(db)),
    ...Array.from({ length: WORKERS }, () => repeat(signal, PAUSE, () => work(db)))
  ])
}

module.exports = { load }
