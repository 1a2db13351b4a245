"""A whole site, with the admin and Django REST framework, that real servers serve in processes of their own."""
