from django_tenants.postgresql_backend.base import DatabaseWrapper as TheirDatabaseWrapper

from greenorm.backends.mixin import AwaitableMixin


class DatabaseWrapper(AwaitableMixin, TheirDatabaseWrapper):
    pass
