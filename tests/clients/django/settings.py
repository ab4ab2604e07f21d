"""A small application on Django. The server comes from the environment, as libpq takes it."""

import os

_server = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["PGDATABASE"],
    "USER": os.environ["PGUSER"],
    "HOST": os.environ["PGHOST"],
    "PORT": os.environ["PGPORT"],
}
DATABASES = {
    "default": _server,
    # Takes reads only, as a standby does.
    "replica": _server | {
        "OPTIONS": {"options": "-c default_transaction_read_only=on"},
    },
}
DATABASE_ROUTERS = ["shop.router.ReadsFromReplica"]
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
