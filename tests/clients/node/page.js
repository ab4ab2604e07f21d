// The code of a section of docs/clients.md, as functions. scripts/clients has taken it out of the page.
'use strict'

const { readFileSync } = require('node:fs')
const { join } = require('node:path')

function page(section, ...names) {
  const code = readFileSync(join(process.env.COUNTERX_CLIENTS_PAGE, `page_${section}.js`), 'utf8')
  return new Function(`'use strict'; ${code}; return { ${names} }`)()
}

// A function that fails with 40001 when it is called the first `times`, by a query of `run`.
function failing(times, run) {
  let calls = 0
  return async (db) => {
    calls += 1
    if (calls <= times) await run(db, 'DO $$ BEGIN RAISE serialization_failure; END $$')
    return calls
  }
}

module.exports = { failing, page }
