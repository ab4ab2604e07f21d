# frozen_string_literal: true

# What schema.rb and structure.sql have of counterx, installed in `public` and in a schema of its own, and what a
# database that is made from them has.

require "active_record"
require "active_record/tasks/postgresql_database_tasks"
require "minitest/autorun"
require "stringio"
require "tempfile"

# structure.sql is made with pg_dump.
ENV["PATH"] = "#{ENV.fetch('COUNTERX_PG_BIN')}:#{ENV.fetch('PATH')}"
ActiveRecord::Migration.verbose = false

module Server
  module_function

  def connect(database)
    ActiveRecord::Base.establish_connection(
      adapter: "postgresql", host: ENV.fetch("PGHOST"), port: ENV.fetch("PGPORT"), username: ENV.fetch("PGUSER"),
      database: database, schema_search_path: "public, counting"
    )
    ActiveRecord::Base.connection
  end

  # A new database.
  def create(database)
    connect(ENV.fetch("PGDATABASE")).create_database(database)
    connect(database)
  end

  def schema_of_extension
    ActiveRecord::Base.connection.select_value(<<~SQL)
      SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'counterx'
    SQL
  end

  def tasks
    ActiveRecord::Tasks::PostgreSQLDatabaseTasks.new(ActiveRecord::Base.connection_db_config)
  end
end

INSTALLATIONS = {
  "public" => "CREATE EXTENSION counterx",
  "counting" => "CREATE SCHEMA counting; CREATE EXTENSION counterx SCHEMA counting"
}.freeze
INSTALLATIONS.each do |schema, commands|
  connection = Server.create("rails_#{schema}")
  connection.execute(commands)
  connection.create_table(:posts) { |t| t.text :title }
end

class SchemaTest < Minitest::Test
  INSTALLATIONS.each_key do |schema|
    define_method "test_schema_rb_names_the_extension_and_nothing_of_it_in_#{schema}" do
      Server.connect("rails_#{schema}")
      file = StringIO.new
      ActiveRecord::SchemaDumper.dump(ActiveRecord::Base.connection, file)
      assert_match(/^  enable_extension "counterx"$/, file.string)
      assert_equal ["posts"], file.string.scan(/create_table "([^"]*)"/).flatten
      refute_match(/counter_|counters/, file.string)

      Server.create("rails_#{schema}_from_ruby")
      eval(file.string) # rubocop:disable Security/Eval
      # It does not name the schema: it is the first of the search path. Calls find it all the same.
      assert_equal "public", Server.schema_of_extension
      ActiveRecord::Base.connection.execute("CALL counter_add('posts', 3)")
      assert_equal 3, ActiveRecord::Base.connection.select_value("SELECT counter_value('posts')")
    end

    define_method "test_structure_sql_of_all_schemas_has_the_extension_where_it_is_in_#{schema}" do
      Server.connect("rails_#{schema}")
      Tempfile.create("structure") do |file|
        with_dump_schemas(:all) { Server.tasks.structure_dump(file.path, nil) }
        Server.create("rails_#{schema}_from_sql")
        Server.tasks.structure_load(file.path, nil)
      end
      assert_equal schema, Server.schema_of_extension
      assert_equal 0, Server.connect("rails_#{schema}_from_sql").select_value("SELECT counter_value('posts')")
    end

    # With a search path in the configuration, which is the default of what is dumped.
    define_method "test_structure_sql_of_some_schemas_leaves_the_extension_out_of_#{schema}" do
      Server.connect("rails_#{schema}")
      Tempfile.create("structure") do |file|
        with_dump_schemas("public") { Server.tasks.structure_dump(file.path, nil) }
        refute_match(/CREATE EXTENSION/, File.read(file.path))
      end
    end
  end

  private

  def with_dump_schemas(schemas)
    before = ActiveRecord::Base.dump_schemas
    ActiveRecord::Base.dump_schemas = schemas
    yield
  ensure
    ActiveRecord::Base.dump_schemas = before
  end
end
