"""A worker's supervising process: it keeps children alive, renews leases and recovers work."""
