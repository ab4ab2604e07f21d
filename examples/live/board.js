// What the page shows, as plain data: the first of the leaderboard, the stock, and the latest alerts.
'use strict'

const PLACES = 10
const ALERTS = 8

const rest = (name) => name.slice(name.indexOf(':') + 1)
// What a number of JavaScript cannot hold exactly goes as text, and what the database could not give as nothing.
const shown = (value) => {
  if (value === null) return null
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : value.toString()
}
const byName = (a, b) => (a < b ? -1 : 1)
const byValue = ([name, value], [other, than]) => {
  if (value === than) return byName(name, other)
  if (value === null || than === null) return value === null ? 1 : -1
  return value > than ? -1 : 1
}

/** Which counters are low, and the latest that was said of it. */
class Alerts {
  low = new Set()
  latest = []

  /**
   * Does a row of the stream say that others may be low now? A counter that is dropped loses its alerts without a
   * word, and in a batch the rows of alerts are in no order with those of counters.
   */
  static concerns({ kind }) {
    return kind !== 'changed' && kind !== 'adjusted'
  }

  /** What is so now, by the rows of counter_alerts_fired. */
  is(rows) {
    this.low = new Set(rows.map(({ name }) => name))
  }

  /** A row of the stream, which may come more than once. */
  add({ kind, name, value, at }) {
    if (kind !== 'fired' && kind !== 'rearmed') return
    const id = `${kind} ${name} ${at.getTime()}`
    if (this.latest.some((alert) => alert.id === id)) return
    this.latest = [{ id, kind, name: rest(name), value: shown(value), at: at.toISOString() }, ...this.latest]
      .slice(0, ALERTS)
  }
}

/** The page's state. */
function state(scores, stock, alerts) {
  return {
    board: [...scores].sort(byValue).slice(0, PLACES)
      .map(([name, value], place) => ({ place: place + 1, name: rest(name), value: shown(value) })),
    stock: [...stock].sort(([a], [b]) => byName(a, b))
      .map(([name, value]) => ({ name: rest(name), value: shown(value), low: alerts.low.has(name) })),
    alerts: alerts.latest
  }
}

module.exports = { Alerts, state }
