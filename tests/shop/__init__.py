"""A small Django app with relations, for the tests."""
