// Shows what the service sends. Each event is all there is to show.
'use strict'

const byId = (id) => document.getElementById(id)
/** A full bar. */
const PLENTY = 60

/** A new element with children, which are elements or text: names are anybody's, and never taken for HTML. */
function element(name, className, ...children) {
  const made = document.createElement(name)
  made.className = className
  made.append(...children)
  return made
}

/** Makes the list's elements those of `all`, by their key: what is there is kept and changed. */
function keep(list, all, key, make, change) {
  const there = new Map([...list.children].map((child) => [child.dataset.key, child]))
  all.forEach((one, place) => {
    let child = there.get(key(one))
    there.delete(key(one))
    if (!child) {
      child = make(one)
      child.dataset.key = key(one)
    }
    change(child, one)
    // Only what is not in its place is moved, as that ends its transitions.
    if (list.children[place] !== child) list.insertBefore(child, list.children[place] ?? null)
  })
  there.forEach((child) => child.remove())
}

const value = (number) => (number === null ? '?' : number.toLocaleString('en'))

function showBoard(board) {
  // In the order of names, so that no element changes its place in the document when its rank changes.
  const sorted = [...board].sort((a, b) => (a.name < b.name ? -1 : 1))
  keep(byId('board'), sorted, ({ name }) => name,
    ({ name }) => element('li', '', element('span', 'place'), element('span', 'name', name), element('span', 'number')),
    (row, { place, value: score }) => {
      row.style.setProperty('--place', place)
      row.querySelector('.place').textContent = place
      row.querySelector('.number').textContent = value(score)
    })
}

function showStock(stock) {
  keep(byId('stock'), stock, ({ name }) => name,
    ({ name }) => element('li', '',
      element('span', 'name', name), element('span', 'bar', element('span', '')), element('span', 'number')),
    (row, { value: left, low }) => {
      row.classList.toggle('low', low)
      row.querySelector('.bar span').style.width = `${Math.min(100, 100 * left / PLENTY)}%`
      row.querySelector('.number').textContent = value(left)
    })
}

function showAlerts(alerts) {
  keep(byId('alerts'), alerts, ({ id }) => id,
    ({ kind, name, value: left, at }) => element('li', kind,
      element('span', '', kind === 'fired' ? `${name} runs low: ${value(left)} left` : `${name} is back: ${value(left)}`),
      element('time', '', new Date(at).toLocaleTimeString())),
    () => {})
}

const events = new EventSource('events')
events.onmessage = ({ data }) => {
  const { board, stock, alerts } = JSON.parse(data)
  showBoard(board)
  showStock(stock)
  showAlerts(alerts)
  byId('connection').textContent = 'live'
  byId('connection').dataset.live = ''
}
// The browser connects again by itself.
events.onerror = () => {
  byId('connection').textContent = 'connecting again'
  delete byId('connection').dataset.live
}
