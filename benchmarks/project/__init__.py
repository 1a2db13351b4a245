"""The Django project that is measured: its models, and the work that is done with them."""
