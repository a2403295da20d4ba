"""The calling service."""
