"""What makes Django's own ways of being async use runs. Each is optional, can be undone, and is imported by nothing."""
