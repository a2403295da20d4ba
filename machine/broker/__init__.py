"""Who gets which message, and for how long."""
