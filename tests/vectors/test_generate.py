"""The stored vectors are what the reference makes; the reference stands on its own feet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.reference import gcm, mlkem
from tests.vectors import generate, inputs

REFERENCE = Path(__file__).parents[1] / "reference"
OURS = {"common", "coordinator", "hospital_node", "researcher", "fedcare"}


def test_every_stored_vector_is_what_the_reference_makes() -> None:
    assert generate.stale() == []


def test_a_changed_vector_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate.VECTORS, "params.json", dict)
    assert generate.stale() == ["params.json"]


def test_a_printed_value_that_the_reference_misses_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(generate.PRINTED, "CK_2", "00" * 32)
    with pytest.raises(generate.MismatchError, match="CK_2"):
        generate.section_15()


def test_the_reference_imports_nothing_of_the_product() -> None:
    makers = [*REFERENCE.glob("*.py"), *(Path(__file__).parent / f"{n}.py" for n in MAKERS)]
    for path in makers:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & OURS, path


MAKERS = ("inputs", "generate", "bad")


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 66, 165])
def test_the_written_out_gcm_is_the_librarys(length: int) -> None:
    key, nonce = inputs.fixed("k", length), inputs.fixed("n", length, size=12)
    text, aad = inputs.fixed("t", size=length), inputs.fixed("aad", size=length + 3)
    sealed = AESGCM(key).encrypt(nonce, text, aad)
    assert gcm.seal(key, nonce, aad, text) == sealed
    assert gcm.unseal(key, nonce, aad, sealed) == text
    with pytest.raises(ValueError, match="tag"):
        gcm.unseal(key, nonce, aad + b"x", sealed)
    with pytest.raises(InvalidTag):
        AESGCM(key).decrypt(nonce, sealed, aad + b"x")


def test_the_written_out_ml_kem_is_the_librarys() -> None:
    seed = inputs.fixed("kem", size=64)
    key = MLKEM768PrivateKey.from_seed_bytes(seed)
    assert key.public_key().public_bytes_raw() == mlkem.public_key(seed)
    secret, ct = mlkem.encapsulate(mlkem.public_key(seed), inputs.fixed("m"))
    assert key.decapsulate(ct) == secret == mlkem.decapsulate(seed, ct)
    theirs, ct = key.public_key().encapsulate()
    assert mlkem.decapsulate(seed, ct) == theirs
    wrong = bytes([ct[0] ^ 1]) + ct[1:]
    assert mlkem.decapsulate(seed, wrong) == key.decapsulate(wrong) != theirs
