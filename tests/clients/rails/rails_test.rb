# frozen_string_literal: true

# A small application on Active Record, which counts as docs/clients.md says: its lines, as they stand there.

require "active_record"
require "active_record/fixtures"
require "active_support/test_case"
require "minitest/autorun"
require File.join(ENV.fetch("COUNTERX_CLIENTS_PAGE"), "page_rails.rb")

server = {
  adapter: "postgresql", host: ENV.fetch("PGHOST"), port: ENV.fetch("PGPORT"),
  username: ENV.fetch("PGUSER"), database: ENV.fetch("PGDATABASE")
}
# As config.load_defaults "6.1" has it.
ActiveRecord::Base.legacy_connection_handling = false
ActiveRecord::Base.configurations = {
  "test" => {
    "primary" => server,
    # Takes reads only, as a standby does.
    "replica" => server.merge(variables: { default_transaction_read_only: "on" }, replica: true),
    # PgBouncer 1.18 knows no prepared statements of the protocol.
    "pooled" => server.merge(port: ENV.fetch("COUNTERX_POOLER_PORT"), prepared_statements: false, advisory_locks: false)
  }.transform_values { |config| config.deep_stringify_keys }
}
ENV["RAILS_ENV"] = "test"

class ApplicationRecord < ActiveRecord::Base
  self.abstract_class = true
end
ActiveRecord::Base.connects_to database: { writing: :primary, reading: :replica }

class PooledRecord < ActiveRecord::Base
  self.abstract_class = true
  establish_connection :pooled
end

class Post < ApplicationRecord
  self.table_name = "rails_posts"
  has_many :comments
end

class Comment < ApplicationRecord
  self.table_name = "rails_comments"
  belongs_to :post
  after_create { Counters.count("rails-callback:#{post_id}") }
end

class Prepare < ActiveRecord::Migration[6.1]
  def up
    enable_extension "counterx"
    create_table(:rails_posts) { |t| t.text :title }
    create_table(:rails_comments) { |t| t.references :post, foreign_key: { to_table: :rails_posts } }
    execute <<~SQL
      CREATE FUNCTION rails_count() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN
          PERFORM counter_incr('rails-trigger:' || NEW.post_id);
          RETURN NULL;
      END $$;
      CREATE TRIGGER count AFTER INSERT ON rails_comments FOR EACH ROW EXECUTE FUNCTION rails_count();
    SQL
    execute "SELECT counter_type_create('rails-stock', min => 0)"
  end
end
ActiveRecord::Migration.verbose = false
Prepare.new.migrate(:up)
# Committed, for all tests.
Counters.count("rails-stock:mug", 3)

class TransactionalTest < ActiveSupport::TestCase
  include ActiveRecord::TestFixtures
  self.use_transactional_tests = true

  ["", " again"].each do |again|
    test "rows are counted#{again}" do
      post = Post.create!(title: "a")
      Comment.create!(post: post)
      Comment.insert_all!([{ post_id: post.id }] * 3)
      assert_equal [1, 4], [Counters.value("rails-callback:#{post.id}"), Counters.value("rails-trigger:#{post.id}")]
      Comment.transaction(requires_new: true) do
        Comment.create!(post: post)
        raise ActiveRecord::Rollback
      end
      assert_equal [1, 4], [Counters.value("rails-callback:#{post.id}"), Counters.value("rails-trigger:#{post.id}")]
      Counters.count("rails-same-name")
      assert_equal 1, Counters.value("rails-same-name")
    end

    test "take all there is#{again}" do
      assert_equal true, Counters.take("rails-stock:mug", 3)
      assert_equal false, Counters.take("rails-stock:mug", 1)
      # What the test has added, it can take.
      Counters.count("rails-stock:mug", 5)
      assert_equal true, Counters.take("rails-stock:mug", 5)
      assert_equal false, Counters.take("rails-stock:mug", 1)
    end

    test "hold and confirm#{again}" do
      hold = Counters.ask("SELECT counter_hold(?, ?, ?)", "rails-stock:mug", 2, "1 minute")
      assert_equal false, Counters.take("rails-stock:mug", 2)
      assert_equal true, Counters.ask("SELECT counter_hold_confirm(?)", hold)
      assert_equal 1, Counters.value("rails-stock:mug")
    end

    test "tokens#{again}" do
      assert_equal true, Counters.count_once("rails-token", "rails-once", 3)
      assert_equal false, Counters.count_once("rails-token", "rails-once", 3)
      assert_equal 3, Counters.value("rails-once")
    end
  end

  test "errors" do
    refused = assert_raises(ActiveRecord::StatementInvalid) do
      ActiveRecord::Base.transaction(requires_new: true) { Counters.count("rails-stock:mug", -4) }
    end
    assert_kind_of PG::CheckViolation, refused.cause
    assert_equal true, Counters.take("rails-stock:mug", 3)
  end

  test "transactions are repeated, in a test's transaction too" do
    attempts = 0
    Counters.in_transaction do
      Counters.count("rails-retry")
      fail_with_40001 if (attempts += 1) < 3
    end
    assert_equal [3, 1], [attempts, Counters.value("rails-retry")]
  end

  def fail_with_40001
    ActiveRecord::Base.connection.execute("DO $$ BEGIN RAISE serialization_failure; END $$")
  end
end

class CacheTest < ActiveSupport::TestCase
  include ActiveRecord::TestFixtures

  def direct(name)
    ActiveRecord::Base.uncached { Counters.value(name) }
  end

  test "each count counts and is seen" do
    ActiveRecord::Base.cache do
      assert_equal 0, Counters.value("rails-cache")
      3.times { Counters.count("rails-cache") }
      assert_equal 3, Counters.value("rails-cache")
      assert_equal [true, false], Array.new(2) { Counters.count_once("rails-cache-token", "rails-cache", 4) }
      assert_equal 7, Counters.value("rails-cache")
      3.times { assert_equal true, Counters.take("rails-cache", 1) }
      assert_equal 4, Counters.value("rails-cache")
    end
  end

  test "what a select counts is cached" do
    ActiveRecord::Base.cache do
      3.times { ActiveRecord::Base.connection.select_value("SELECT counter_incr('rails-select')") }
      assert_equal 1, direct("rails-select")
    end
  end

  test "execute leaves the cache as it is" do
    ActiveRecord::Base.cache do
      assert_equal 0, Counters.value("rails-execute")
      ActiveRecord::Base.connection.execute("CALL counter_add('rails-execute')")
      assert_equal [0, 1], [Counters.value("rails-execute"), direct("rails-execute")]
    end
  end
end

class WritesTest < ActiveSupport::TestCase
  test "prevented writes" do
    ActiveRecord::Base.connected_to(role: :writing, prevent_writes: true) do
      [-> { Counters.count("rails-prevented") }, -> { Counters.take("rails-prevented", 1) },
       -> { Counters.count_once("rails-prevented", "rails-prevented") }].each do |change|
        assert_raises(ActiveRecord::ReadOnlyError, &change)
      end
      # What the two rules are for.
      ActiveRecord::Base.connection.select_value("SELECT counter_incr('rails-prevented')")
    end
    assert_equal 1, Counters.value("rails-prevented")
  end

  test "the replica reads" do
    Counters.count("rails-replica")
    ActiveRecord::Base.connected_to(role: :reading) do
      assert_equal "on", ActiveRecord::Base.connection.select_value("SHOW transaction_read_only")
      assert_equal 1, Counters.value("rails-replica")
      assert_raises(ActiveRecord::ReadOnlyError) { Counters.count("rails-replica") }
      refused = assert_raises(ActiveRecord::StatementInvalid) do
        ActiveRecord::Base.connection.select_value("SELECT counter_incr('rails-replica')")
      end
      assert_kind_of PG::ReadOnlySqlTransaction, refused.cause
    end
  end

  test "transactions are repeated, and only whole ones" do
    attempts = 0
    work = lambda do |times|
      Counters.count("rails-whole")
      ActiveRecord::Base.connection.execute("DO $$ BEGIN RAISE serialization_failure; END $$") if (attempts += 1) < times
    end
    Counters.in_transaction { work.call(3) }
    assert_equal [3, 1], [attempts, Counters.value("rails-whole")]
    attempts = 0
    assert_raises(ActiveRecord::SerializationFailure) { Counters.in_transaction(attempts: 2) { work.call(9) } }
    assert_equal [2, 1], [attempts, Counters.value("rails-whole")]
    attempts = 0
    assert_raises(ActiveRecord::SerializationFailure) do
      ActiveRecord::Base.transaction { Counters.in_transaction { work.call(9) } }
    end
    assert_equal [1, 1], [attempts, Counters.value("rails-whole")]
  end

  test "through a pooler" do
    10.times { PooledRecord.transaction { PooledRecord.connection.update("CALL counter_add('rails-pooled')") } }
    assert_equal 10, Counters.value("rails-pooled")
  end

  test "no function makes Rails look for its type" do
    # What a void does: a warning, and a string.
    _, warned = capture_io { ActiveRecord::Base.connection.select_value("SELECT pg_advisory_lock_shared(1)") }
    assert_match(/unknown OID/, warned)
    _, warned = capture_io do
      ActiveRecord::Base.connection.select_value("SELECT counter_incr_many('{}')")
      ActiveRecord::Base.connection.select_value("SELECT counter_hold_release(1)")
    end
    assert_empty warned
  end
end
