// The commands of Prisma's that look into a database, with the schema engine that is in its package and the
// adapter: the engine of the other configuration would be downloaded.
import { PrismaPg } from '@prisma/adapter-pg'
import Result from 'pg/lib/result.js'

// Types of the catalogs that the adapter of this version does not know, as ones of the same form that it knows:
// "char" as character, name as text.
const KNOWN = { 18: 1042, 19: 25, 1002: 1014, 1003: 1009 }
const addFields = Result.prototype.addFields
Result.prototype.addFields = function (fields) {
  for (const field of fields) field.dataTypeID = KNOWN[field.dataTypeID] ?? field.dataTypeID
  return addFields.call(this, fields)
}

export default {
  schema: process.env.COUNTERX_PRISMA_SCHEMA,
  experimental: { adapter: true },
  engine: 'js',
  adapter: async () => new PrismaPg({ database: process.env.COUNTERX_PRISMA_DATABASE })
}
