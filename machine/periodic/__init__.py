"""Which periodic task is due when. Pure."""
