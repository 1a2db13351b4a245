"""A Django app with PostGIS and contrib.postgres types, for the alias that has the extensions."""
