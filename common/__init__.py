"""What the coordinator, the hospital node and the researcher all need.

Import rules, checked by import-linter (`make lint`): nothing here imports
`coordinator`, `hospital_node` or `researcher`; nothing here imports torch; and
`common.secagg` is sans-io: no sockets, clocks, files, logs or global randomness.
"""
