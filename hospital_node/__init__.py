"""What runs inside one hospital: data, consent, training, masking, local models.

The node dials out, decides by its own policy what it runs, and sends only masked
vectors. Nothing the coordinator says can lower a rule of the hospital's.

Import rules, checked by import-linter (`make lint`): imports `common` only, never
`coordinator` or `researcher`; `hospital_node.round` is sans-io: no grpc, asyncio,
sockets, clocks, logs or randomness of its own.
"""
