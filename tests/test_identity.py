import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from raydr.identity import added, as_dict, canonical, fingerprint, rng_of, seed_of, sha256


@dataclass(frozen=True)
class Pair:
    one: int
    other: tuple[float, ...]


@dataclass(frozen=True)
class Grown:
    """`Pair` of a later version."""

    one: int
    other: tuple[float, ...]
    more: float = added(0.5)
    inner: Pair | None = None


def test_a_field_that_came_later_counts_once_it_is_used():
    assert as_dict(Grown(1, (2.0,))) == {"one": 1, "other": (2.0,), "inner": None}
    assert as_dict(Grown(1, (2.0,), 0.75, Pair(3, ()))) == {
        "one": 1, "other": (2.0,), "more": 0.75, "inner": {"one": 3, "other": ()},
    }  # fmt: skip
    assert canonical([Grown(1, ())]) == '[{"inner":null,"one":1,"other":[]}]'


def test_canonical_form():
    assert canonical({"b": 1, "a": (1, 2.5, None, True, "é")}) == '{"a":[1,2.5,null,true,"\\u00e9"],"b":1}'
    assert canonical(Pair(1, (0.1,))) == canonical({"other": [0.1], "one": 1})
    assert canonical([np.int64(3), np.float32(0.5), np.bool_(True)]) == "[3,0.5,true]"


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", np.zeros(2), object(), Pair])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError, match="canonical form"):
        canonical(value)


def test_a_fingerprint_is_blake2b_of_the_parts():
    """Written out once more, so that no refactoring changes what runs on disk are called."""
    expected = hashlib.blake2b(b'["generator",3,{"steps":80}]', digest_size=8).hexdigest()
    assert fingerprint("generator", 3, {"steps": 80}) == expected
    assert len(expected) == 16


def test_a_seed_is_63_bits_of_a_personal_digest():
    digest = hashlib.blake2b(b'["sample",1]', digest_size=8, person=b"raydr-seed").digest()
    assert seed_of("sample", 1) == int.from_bytes(digest, "little") // 2
    assert all(0 <= seed_of(k) < 2**63 for k in range(200))


def test_names_that_differ_anywhere_differ():
    names = (
        [("a", k) for k in range(2000)] + [("a", str(k)) for k in range(2000)] + [("a", k, None) for k in range(2000)]
    )
    assert len({seed_of(*name) for name in names}) == len({fingerprint(*name) for name in names}) == len(names)
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(1) != fingerprint(1.0)


def test_generators_of_equal_names_agree():
    assert np.array_equal(rng_of("x", 1).random(5), rng_of("x", 1).random(5))
    assert not np.array_equal(rng_of("x", 1).random(5), rng_of("x", 2).random(5))


def test_sha256():
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
