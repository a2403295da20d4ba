"""What sending returns: handles that know ids and wait for values."""
