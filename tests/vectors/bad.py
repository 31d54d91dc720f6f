"""Bad vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS: dict[str, Callable[[], object]] = {}
