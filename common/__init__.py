"""What the coordinator, the hospital node and the researcher all need.

Import rules, checked by import-linter (`make lint`): nothing here imports
`coordinator`, `hospital_node` or `researcher`; nothing here imports torch; and
`common.secagg` is sans-io: no sockets, clocks, files, logs or global randomness.

It sets two variables for gRPC, which reads them while *it* is imported, and every
program of ours imports this package first:

- no cipher suite below TLS 1.3 (the one named needs a pre-shared key that nobody
  has). A second line: `common.transport.interceptors` refuses such calls anyway.
- gRPC's own log lines are off unless asked for: they hold peers' text, unescaped.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
