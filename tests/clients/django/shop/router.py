class ReadsFromReplica:
    """Queries of models go to the replica; where a router is not asked, they do not."""

    def db_for_read(self, model, **hints):
        return "replica"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True
