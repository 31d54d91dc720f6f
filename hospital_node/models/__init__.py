"""The torch modules of the catalogue (`common.models`), small and seeded."""

from hospital_node.models.perceptron import Perceptron, build, flatten, load

__all__ = ["Perceptron", "build", "flatten", "load"]
