"""The store on Redis and Valkey; no other room imports their client."""
