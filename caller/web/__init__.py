"""
The HTTP caller's room: requests in, signatures out; states in Redis, documents out.

It speaks to a `machine.server.Server` as any caller does, and keeps nothing in
memory that another replica would need. Starlette and msgspec are known here only.
"""
