"""A worker's child process: it claims messages, runs tasks and settles them."""
