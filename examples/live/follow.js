// Following a stream of counterx: what a process in front of the database needs to know the present value of
// every counter under a prefix, and to hear of changes as they come.
'use strict'

const { setTimeout: sleep } = require('node:timers/promises')
const pg = require('pg')

/** Rows in a batch. */
const MOST = 1000
/** How long nobody looks where no hint has come, in milliseconds. */
const POLL = 1000
/** After a failure, the first pause and the longest one. */
const PAUSE = 100
const LONGEST_PAUSE = 5000

/** Lost, or a failover, or a restore: what this process has seen may not be what the database has. */
const NOT_IN_STEP = '55000'

/** The pauses after failures in a row. */
class Pauses {
  #next = PAUSE

  async wait(signal) {
    const now = this.#next
    this.#next = Math.min(now * 2, LONGEST_PAUSE)
    await sleep(now, undefined, { signal }).catch(() => {})
  }

  end() {
    this.#next = PAUSE
  }
}

/**
 * Hints that a stream has something new, by LISTEN on a connection of their own. A hint may come too often, too
 * late or never (behind a transaction pooler there are none), so who waits for one waits for a poll at most.
 */
class Hints {
  #waiting = new Map()
  #hinted = new Set()
  #signal
  #options

  constructor({ signal, ...options }) {
    this.#signal = signal
    this.#options = options
    // Nobody waits any longer.
    signal.addEventListener('abort', () => [...this.#waiting.keys()].forEach((stream) => this.#wake(stream)))
  }

  /** Listens until the signal comes; connects again when the connection is gone. */
  async listen() {
    const pauses = new Pauses()
    while (!this.#signal.aborted) {
      const client = new pg.Client({ keepAlive: true, ...this.#options })
      const gone = new Promise((resolve) => {
        client.once('end', resolve)
        client.once('error', resolve)
        this.#signal.addEventListener('abort', resolve, { once: true })
      })
      try {
        client.on('notification', ({ payload }) => this.#wake(payload))
        await client.connect()
        await client.query('LISTEN counterx')
        pauses.end()
        // What was said before was not heard.
        for (const stream of this.#waiting.keys()) this.#wake(stream)
        await gone
      } catch (error) {
        console.error(`no hints at present, polling: ${error.message}`)
      }
      // One that is broken has nothing to end.
      client.on('error', () => {})
      await client.end().catch(() => {})
      if (!this.#signal.aborted) await pauses.wait(this.#signal)
    }
  }

  #wake(stream) {
    this.#hinted.add(stream)
    this.#waiting.get(stream)?.()
  }

  /** Until there is a hint for the stream, one that has come since the last call included; or for `most` ms. */
  async wait(stream, most = POLL) {
    if (this.#signal.aborted) return
    if (!this.#hinted.has(stream)) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, most)
        this.#waiting.set(stream, () => {
          clearTimeout(timer)
          resolve()
        })
      })
      this.#waiting.delete(stream)
    }
    this.#hinted.delete(stream)
  }
}

/**
 * Keeps `values`, a map of names to values, in step with a stream. A process has a stream to itself: two that
 * follow the same one take rows from each other.
 *
 * `begun` is called, and waited for, when all values have been read anew: here is the place to read what else
 * goes with them. From then on `change` is called, and waited for, with the rows of each batch, once at least for
 * each of them, those of alerts included. Values are bigints, or null where one does not fit a bigint of the database.
 */
class Follower {
  values = new Map()
  #db
  #hints
  #stream
  #signal
  #begun
  #change

  constructor({ db, hints, stream, signal, begun, change }) {
    this.#db = db
    this.#hints = hints
    this.#stream = stream
    this.#signal = signal
    this.#begun = begun
    this.#change = change
  }

  /** Follows until the signal comes. */
  async run() {
    const pauses = new Pauses()
    // The database remembers the place, and this process has just begun: it knows no value.
    let begun = false
    while (!this.#signal.aborted) {
      try {
        if (!begun) {
          await this.#begin()
          begun = true
        }
        while (await this.#step());
        pauses.end()
        await this.#hints.wait(this.#stream)
      } catch (error) {
        if (this.#signal.aborted) return
        const again = begun && error.code === NOT_IN_STEP
        console.error(`stream ${this.#stream}: ${error.message}${again ? '; beginning again' : ''}`)
        if (again) begun = false
        await pauses.wait(this.#signal)
      }
    }
  }

  /** All counters, and the place from which changes are read after that, in one snapshot. */
  async #begin() {
    const { rows } = await this.#db.query('SELECT name, value FROM counter_stream_bootstrap($1)', [this.#stream])
    this.values = new Map(rows.map(({ name, value }) => [name, number(value)]))
    await this.#begun()
  }

  /**
   * A batch: read, taken over, and only then acknowledged. What is not acknowledged, as something breaks in
   * between, comes once more, and its values are the same ones or newer. False: there was nothing.
   */
  async #step() {
    const { rows } = await this.#db.query(
      'SELECT name, value, kind, alert, at, position FROM counter_stream_peek($1, $2)', [this.#stream, MOST])
    if (rows.length === 0) return false
    for (const row of rows) {
      row.value = number(row.value)
      // Of alerts the name is that of a counter as well, which another stream may cover.
      if (row.alert !== null) continue
      if (row.kind === 'dropped') this.values.delete(row.name)
      else this.values.set(row.name, row.value)
    }
    await this.#change(rows)
    await this.#db.query('SELECT counter_stream_ack($1, $2)', [this.#stream, rows.at(-1).position])
    return true
  }
}

/** node-postgres gives a bigint as text. */
const number = (value) => (value === null ? null : BigInt(value))

module.exports = { Follower, Hints }
