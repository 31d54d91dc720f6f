"""How a step of making says that it cannot go on."""

from __future__ import annotations


class Failure(Exception):
    """One line for the person at the terminal: what is wrong, and what to do."""
