"""A pass through a model in which what is made of a row depends on that row alone, to the bit.

Where a guarantee says how far one patient can move a sum, the other patients' values must be
the same bits with and without that one. A matrix product adds in an order that depends on
the number and place of the rows, and the last bits differ. `product` rounds both factors to
so few bits that every sum is exact in float64, and exact sums know no order: it loses no more
than float32 does, whatever library multiplies. (The idea is Ozaki et al. 2012, with one part
of each factor only.) Functions of single values go over tiles of one size, because a
processor treats what does not fill its registers in another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from hospital_node.going_on import go_on
from hospital_node.models.perceptron import EPSILON, BatchNorm, Perceptron

TILE_ROWS: Final = 256
_EXACT_BITS: Final = 53
"""Of a float64: whole numbers up to 2^53 add up exactly."""

_LEAST: Final = 2.0**-400
"""Far below every float32: a row of zeros has a power of two above it as well."""


def tiles(rows: int) -> Iterator[slice]:
    """Yield the places of the rows of each tile; the last may lack some. Interruptible between."""
    for start in range(0, rows, TILE_ROWS):
        go_on()
        yield slice(start, min(start + TILE_ROWS, rows))


def filled(part: Tensor) -> Tensor:
    """Return the rows of a tile with rows of zeros up to its size, [TILE_ROWS, ...]."""
    missing = TILE_ROWS - len(part)
    return nn.functional.pad(part, (*(0, 0) * (part.dim() - 1), 0, missing))


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return `rows matrix`, [m, k] by [k, n], float64: the exact product of rounded factors.

    Each row, and each column of the matrix, is rounded to b bits below its own largest
    value, `k 2^(2 b) <= 2^53`: 23 bits for k up to 128, 21 up to 2,048.
    """
    bits = (_EXACT_BITS - (len(matrix) - 1).bit_length()) // 2
    return _rounded(rows.double(), 1, bits) @ _rounded(matrix.double(), 0, bits)


def forward(module: Perceptron, tile: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return each layer's input and output for a tile; the last output is the model's.

    A column is normalised by its running statistics, never by those of the tile.
    """
    inputs, outputs = [], []
    signal = tile.double()
    with torch.no_grad():
        for place, (weight, bias) in enumerate(_parameters(module)):
            signal = signal if place == 0 else torch.relu(_normalised(module, place - 1, signal))
            inputs.append(signal)
            signal = product(signal, weight.t()) + bias
            outputs.append(signal)
    return inputs, outputs


def backward(module: Perceptron, outputs: list[Tensor], last: Tensor) -> list[Tensor]:
    """Return the gradient by each layer's output, given the one by the last output.

    Of a module without normalisation: studies that ask for one row's gradient have none.
    """
    signals = [last]
    with torch.no_grad():
        inner = zip(_parameters(module)[1:], outputs, strict=False)
        for (weight, _), output in reversed(list(inner)):
            signals.append(product(signals[-1], weight) * (output > 0))
    return signals[::-1]


def _normalised(module: Perceptron, place: int, signal: Tensor) -> Tensor:
    if not module.norms:
        return signal
    norm = module.norms[place]
    if isinstance(norm, BatchNorm):
        mean, variance = norm.running_mean.double(), norm.running_var.double()
    else:
        ones = torch.full((signal.shape[1], 1), 1.0, dtype=torch.float64)
        mean = product(signal, ones) / signal.shape[1]
        variance = product((signal - mean) ** 2, ones) / signal.shape[1]
    scaled = (signal - mean) / torch.sqrt(variance + EPSILON)
    named = dict(norm.named_parameters())
    return scaled * named["weight"].double() + named["bias"].double()


def _parameters(module: Perceptron) -> list[tuple[Tensor, Tensor]]:
    named = dict(module.named_parameters())
    none = torch.zeros(1)
    return [
        (named[f"layers.{k}.weight"], named.get(f"layers.{k}.bias", none))
        for k in range(len(module.layers))
    ]


def _rounded(values: Tensor, dim: int, bits: int) -> Tensor:
    """Round to multiples of 2^-bits of the power of two above the largest value along `dim`.

    By adding a number so large that its last bit is that multiple, and taking it off again.
    """
    largest = values.abs().amax(dim, keepdim=True).clamp_min(_LEAST)
    power = largest / torch.frexp(largest).mantissa
    shift = power * (1.5 * 2.0 ** (_EXACT_BITS - 1 - bits))
    return (values + shift) - shift
