"""Tests; what is shared between them is imported as `tests.<package>`."""
