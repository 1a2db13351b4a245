"""What `python -m greenorm demo` runs: a small Django project, and a comparison that anyone can repeat."""
