"""How signatures become queued messages; cancellation; periodic entries of callers."""
