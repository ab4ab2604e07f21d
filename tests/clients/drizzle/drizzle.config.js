'use strict'

const { page } = require('../node/page')

module.exports = {
  dialect: 'postgresql',
  schema: './schema.js',
  out: process.env.COUNTERX_DRIZZLE_OUT,
  dbCredentials: {
    host: process.env.PGHOST,
    port: Number(process.env.PGPORT),
    user: process.env.PGUSER,
    database: process.env.COUNTERX_DRIZZLE_DATABASE,
    ssl: false
  },
  ...(process.env.COUNTERX_DRIZZLE_FILTER && page('schema_tools', 'tablesFilter')),
  verbose: true
}
