"""A second, slow implementation of the protocol, written from its text alone.

Nothing here imports the shipped code, and nothing here is fast: keystreams come from
single AES blocks, polynomials are evaluated term by term, GCM and ML-KEM are written
out. Whatever both implementations agree on was understood the same way twice.

`plain` holds encodings and derivations, `gcm` and `mlkem` the two constructions that
are worth a second look, `quantiser` the way from floats to words, `noise` the table
sampler, `rounds` whole sessions and rounds over Python integers.
"""
