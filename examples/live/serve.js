// The page, and its state as server-sent events.
'use strict'

const { readFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { join } = require('node:path')

/** At most so often, in milliseconds: more than ten times a second nobody sees. */
const FRAME = 100
/** Something is said at least so often, so that proxies and browsers know that the connection lives. */
const SILENCE = 15_000

const file = (name, type) => ({ type, text: readFileSync(join(__dirname, 'page', name)) })
const FILES = {
  '/': file('index.html', 'text/html; charset=utf-8'),
  '/live.css': file('live.css', 'text/css; charset=utf-8'),
  '/live.js': file('live.js', 'text/javascript; charset=utf-8')
}

/**
 * A server of the page. Call `changed` when `state()` would say something new.
 *
 * Each event is all that the page shows, so one that is left out is not missed: a browser that does not keep up
 * gets the latest when it has taken what it was sent, and nothing piles up for it here.
 */
function server(state) {
  const browsers = new Map()
  let event = ''
  let number = 0
  let due = null

  const send = (response, known) => {
    if (known.sent === number || response.writableNeedDrain) return
    known.sent = number
    response.write(event)
  }
  const frame = () => {
    due = null
    number += 1
    event = `id: ${number}\ndata: ${JSON.stringify(state())}\n\n`
    for (const [response, known] of browsers) send(response, known)
  }
  const changed = () => {
    due ??= setTimeout(frame, FRAME)
  }

  const http = createServer((request, response) => {
    const path = request.url.split('?', 1)[0]
    if (request.method !== 'GET') {
      response.writeHead(405, { Allow: 'GET' }).end()
    } else if (path === '/events') {
      response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' })
      response.write('retry: 1000\n\n')
      const known = { sent: null }
      browsers.set(response, known)
      response.on('drain', () => send(response, known))
      response.on('close', () => browsers.delete(response))
      if (number > 0) send(response, known)
    } else if (Object.hasOwn(FILES, path)) {
      response.writeHead(200, {
        'Content-Type': FILES[path].type,
        'Content-Security-Policy': "default-src 'self'; img-src data:",
        'X-Content-Type-Options': 'nosniff'
      })
      response.end(FILES[path].text)
    } else {
      response.writeHead(404, { 'Content-Type': 'text/plain' }).end('not found\n')
    }
  })
  const alive = setInterval(() => {
    for (const response of browsers.keys()) if (!response.writableNeedDrain) response.write(': alive\n\n')
  }, SILENCE)
  http.on('close', () => {
    clearInterval(alive)
    clearTimeout(due)
  })
  return { http, changed }
}

module.exports = { server }
