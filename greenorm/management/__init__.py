"""`manage.py greenorm`: what it does, and Django's command."""
