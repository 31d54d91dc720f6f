"""The only gRPC in `common`: credentials, options, who calls, and errors over the wire.

tls.py           identities -> credentials, channels, servers; TLS 1.3 only
options.py       every channel and server setting in one table, with its reason
identity.py      authenticated peer -> PeerIdentity, or refusal
interceptors.py  the guard in front of every handler
health.py        grpc.health.v1 on the port, and on a node's Unix socket
ask.py           what the health commands do
status.py        FedError <-> gRPC status, both directions
"""
