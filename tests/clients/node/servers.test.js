// Which server counts a name: the code of docs/recipes/several-servers.md, which is TypeScript.
'use strict'

const assert = require('node:assert/strict')
const { test } = require('node:test')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const ts = require('typescript')

const page = readFileSync(join(process.env.COUNTERX_ROOT, 'docs/recipes/several-servers.md'), 'utf8')

function load() {
  const { outputText, diagnostics } = ts.transpileModule(
    readFileSync(join(process.env.COUNTERX_CLIENTS_PAGE, 'servers.ts'), 'utf8'),
    { reportDiagnostics: true, compilerOptions: { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022 } },
  )
  assert.deepEqual(diagnostics, [])
  const module = { exports: {} }
  new Function('module', 'exports', 'require', outputText)(module, module.exports, require)
  return module.exports
}

test('a name is on the server that SQL says', () => {
  const { serverOf } = load()
  const examples = [...page.matchAll(/^ (\S+) +\| ([abc]) +\| ([abc])$/gm)]
  assert.ok(examples.length >= 10)
  for (const [, name, ofTwo, ofThree] of examples) {
    assert.equal(serverOf(name, ['a', 'b']), ofTwo, name)
    assert.equal(serverOf(name, ['c', 'a', 'b']), ofThree, name)
  }
})

test('names move to a new server only', () => {
  const { serverOf } = load()
  let moved = 0
  for (let n = 0; n < 1000; n += 1) {
    const name = `größe:${n}`
    const before = serverOf(name, ['a', 'b', 'c'])
    const after = serverOf(name, ['d', 'a', 'c', 'b'])
    if (before !== after) {
      moved += 1
      assert.equal(after, 'd')
    }
  }
  assert.ok(moved > 150 && moved < 350, `${moved}`)
})
