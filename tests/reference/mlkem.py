"""ML-KEM-768 as FIPS 203 writes it, with the random message as an argument.

The library encapsulates with its own randomness, so it cannot make a stored vector
twice; this can. Slow and not constant-time: for vectors only.
"""

from __future__ import annotations

import hashlib

Q = 3329
N = 256
K = 3
ETA = 2
DU, DV = 10, 4

Poly = list[int]


def _bit_reversed(i: int) -> int:
    return int(f"{i:07b}"[::-1], 2)


_ZETAS = [pow(17, _bit_reversed(i), Q) for i in range(128)]
_GAMMAS = [pow(17, 2 * _bit_reversed(i) + 1, Q) for i in range(128)]


def _ntt(f: Poly) -> Poly:
    f = list(f)
    i = 1
    length = 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            zeta = _ZETAS[i]
            i += 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j + length] = (f[j] - t) % Q
                f[j] = (f[j] + t) % Q
        length //= 2
    return f


def _ntt_inverse(f: Poly) -> Poly:
    f = list(f)
    i = 127
    length = 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            zeta = _ZETAS[i]
            i -= 1
            for j in range(start, start + length):
                t = f[j]
                f[j] = (t + f[j + length]) % Q
                f[j + length] = zeta * (f[j + length] - t) % Q
        length *= 2
    return [x * 3303 % Q for x in f]


def _multiply(f: Poly, g: Poly) -> Poly:
    out = [0] * N
    for i in range(128):
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        out[2 * i] = (a0 * b0 + a1 * b1 * _GAMMAS[i]) % Q
        out[2 * i + 1] = (a0 * b1 + a1 * b0) % Q
    return out


def _add(f: Poly, g: Poly) -> Poly:
    return [(a + b) % Q for a, b in zip(f, g, strict=True)]


def _sample_uniform(seed: bytes, j: int, i: int) -> Poly:
    data = hashlib.shake_128(seed + bytes([j, i])).digest(3 * 1024)
    out: Poly = []
    for k in range(0, len(data), 3):
        d1 = data[k] + 256 * (data[k + 1] % 16)
        d2 = data[k + 1] // 16 + 16 * data[k + 2]
        out += [d for d in (d1, d2) if d < Q]
    return out[:N]


def _bits(data: bytes) -> list[int]:
    return [byte >> k & 1 for byte in data for k in range(8)]


def _sample_small(seed: bytes, count: int) -> Poly:
    bits = _bits(hashlib.shake_256(seed + bytes([count])).digest(64 * ETA))
    out = []
    for i in range(N):
        part = bits[2 * i * ETA : 2 * (i + 1) * ETA]
        out.append((sum(part[:ETA]) - sum(part[ETA:])) % Q)
    return out


def _pack(f: Poly, d: int) -> bytes:
    total = sum(x << (d * k) for k, x in enumerate(f))
    return total.to_bytes(32 * d, "little")


def _unpack(data: bytes, d: int) -> Poly:
    total = int.from_bytes(data, "little")
    return [(total >> (d * k)) % 2**d % (Q if d == 12 else 2**d) for k in range(N)]


def _compress(f: Poly, d: int) -> Poly:
    return [(x * 2 ** (d + 1) + Q) // (2 * Q) % 2**d for x in f]


def _decompress(f: Poly, d: int) -> Poly:
    return [(2 * x * Q + 2**d) // 2 ** (d + 1) for x in f]


def _matrix(rho: bytes) -> list[list[Poly]]:
    return [[_sample_uniform(rho, j, i) for j in range(K)] for i in range(K)]


def _dot(row: list[Poly], column: list[Poly]) -> Poly:
    total = [0] * N
    for f, g in zip(row, column, strict=True):
        total = _add(total, _multiply(f, g))
    return total


def _keys(d: bytes) -> tuple[bytes, bytes]:
    g = hashlib.sha3_512(d + bytes([K])).digest()
    rho, sigma = g[:32], g[32:]
    a = _matrix(rho)
    s = [_ntt(_sample_small(sigma, k)) for k in range(K)]
    e = [_ntt(_sample_small(sigma, K + k)) for k in range(K)]
    t = [_add(_dot(a[i], s), e[i]) for i in range(K)]
    return b"".join(_pack(f, 12) for f in t) + rho, b"".join(_pack(f, 12) for f in s)


def _encrypt(ek: bytes, m: bytes, r: bytes) -> bytes:
    t = [_unpack(ek[384 * k : 384 * (k + 1)], 12) for k in range(K)]
    a = _matrix(ek[384 * K :])
    y = [_ntt(_sample_small(r, k)) for k in range(K)]
    e1 = [_sample_small(r, K + k) for k in range(K)]
    e2 = _sample_small(r, 2 * K)
    u = [_add(_ntt_inverse(_dot([a[j][i] for j in range(K)], y)), e1[i]) for i in range(K)]
    mu = _decompress(_unpack(m, 1), 1)
    v = _add(_add(_ntt_inverse(_dot(t, y)), e2), mu)
    return b"".join(_pack(_compress(f, DU), DU) for f in u) + _pack(_compress(v, DV), DV)


def _decrypt(dk: bytes, ct: bytes) -> bytes:
    cut = 32 * DU * K
    u = [_decompress(_unpack(ct[32 * DU * k : 32 * DU * (k + 1)], DU), DU) for k in range(K)]
    v = _decompress(_unpack(ct[cut:], DV), DV)
    s = [_unpack(dk[384 * k : 384 * (k + 1)], 12) for k in range(K)]
    product = _ntt_inverse(_dot(s, [_ntt(f) for f in u]))
    w = [(a - b) % Q for a, b in zip(v, product, strict=True)]
    return _pack(_compress(w, 1), 1)


def public_key(seed: bytes) -> bytes:
    """Return the 1,184-byte encapsulation key of a 64-byte seed d || z."""
    return _keys(seed[:32])[0]


def encapsulate(public: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Return (shared secret, 1,088-byte ciphertext) for a 32-byte random message."""
    g = hashlib.sha3_512(message + hashlib.sha3_256(public).digest()).digest()
    return g[:32], _encrypt(public, message, g[32:])


def decapsulate(seed: bytes, ct: bytes) -> bytes:
    """Return the shared secret; a wrong ciphertext gives an unrelated one (FIPS 203)."""
    public, secret = _keys(seed[:32])
    message = _decrypt(secret, ct)
    g = hashlib.sha3_512(message + hashlib.sha3_256(public).digest()).digest()
    if _encrypt(public, message, g[32:]) == ct:
        return g[:32]
    return hashlib.shake_256(seed[32:] + ct).digest(32)
