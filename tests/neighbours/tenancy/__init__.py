"""An app with the tenants of django-tenants, and what each has in its schema."""
