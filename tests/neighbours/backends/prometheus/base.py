from django_prometheus.db.backends.postgresql.base import DatabaseWrapper as TheirDatabaseWrapper

from greenorm.backends.mixin import AwaitableMixin


class DatabaseWrapper(AwaitableMixin, TheirDatabaseWrapper):
    pass
