"""A small Django project with tests of its own: what a user of greenorm would write. Run in processes of its own."""
