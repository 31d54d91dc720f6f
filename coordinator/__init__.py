"""The consortium's coordinator: opens rounds, adds masked updates, publishes models.

It never sees one hospital's update, sample count or metric; it sees sums.

Import rules, checked by import-linter (`make lint`): imports `common` only, never
`hospital_node` or `researcher`; no torch, polars or pandas; `coordinator.round` is
sans-io: no grpc, asyncio, sockets, clocks, logs or randomness of its own.
"""
