"""The invariants of section 16 of docs/protocol.md, one file each, over random inputs."""
