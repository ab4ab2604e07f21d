// The models of the application.
'use strict'

const { pgTable, serial, text } = require('drizzle-orm/pg-core')

exports.post = pgTable('post', { id: serial().primaryKey(), title: text().notNull() })
