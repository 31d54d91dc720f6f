"""The models a node keeps: the current one of each task and the one before.

A model counts as *held* once this process has received or re-read and hashed it; a
file left by an earlier process is only a candidate. Losing a file costs a download.
"""

from __future__ import annotations

from common.ids import Sha256
from hospital_node.store import MODELS_KEPT, NodeStore


class ModelShelf:
    """Which models are held, and which files may go."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self._kept: dict[str, list[Sha256]] = {"": list(store.models()[-MODELS_KEPT:])}
        self._held: set[Sha256] = set()
        self._coming: dict[str, Sha256] = {}
        self._remove(set(store.models()))
        store.drop_partial_models(store.partial_models()[:-MODELS_KEPT])

    def holds(self, model: Sha256, by: str | None = None) -> bool:
        """Whether this process has checked the file's contents, for the task `by` if given."""
        return model in self._held and (by is None or model in self._kept.get(by, ()))

    def candidate(self, model: Sha256) -> bool:
        """Whether an earlier process left a file of that name."""
        return self._store.model_path(model).exists()

    def fetching(self, task: str, model: Sha256) -> None:
        """Note what a task fetches now; what it began before and left half done goes.

        Raises:
            StateError: DISK.
        """
        before = self._coming.get(task)
        self._coming[task] = model
        if before is not None and before not in self._coming.values():
            self._store.drop_partial_models((before,))

    def expect(self, task: str, model: Sha256) -> None:
        """Note that a task's open round will want this model, whatever lies there."""
        self._kept.setdefault(task, []).append(model)

    def keep(self, task: str, model: Sha256) -> None:
        """Note a checked model as the task's current one; drop what nobody needs.

        Raises:
            StateError: DISK.
        """
        self._held.add(model)
        kept = self._kept.setdefault(task, [])
        if model in kept:
            kept.remove(model)
        kept.append(model)
        before = set(kept)
        del kept[:-MODELS_KEPT]
        leftovers = set(self._kept.pop("", []))
        self._remove(before | leftovers)

    def _remove(self, candidates: set[Sha256]) -> None:
        needed = {model for models in self._kept.values() for model in models}
        gone = tuple(candidates - needed)
        self._held.difference_update(gone)
        self._store.drop_models(gone)
