"""Seeds and fingerprints: the same name always gives the same noise and the same hash.

Nothing here depends on batch, actor, retry or machine. A seed is the first eight bytes of the
BLAKE2b digest of what the sample *is*, so two processes that never talk agree on it.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np


def added(default: Any) -> Any:
    """A dataclass field that came after runs were made: at its default it is left out of what identifies.

    So a new option leaves the fingerprints of every run that does not use it as they were.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def as_dict(value: Any) -> Any:
    """`dataclasses.asdict` without the `added` fields that have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [
            field
            for field in dataclasses.fields(value)
            if not field.metadata.get("added") or getattr(value, field.name) != field.default
        ]
        return {field.name: as_dict(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    return type(value)(map(as_dict, value)) if type(value) in (list, tuple) else value


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; dataclasses become dicts (`as_dict`), tuples lists."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return as_dict(item)
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError(f"{type(item).__name__} has no canonical form")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain)


def fingerprint(*parts: Any) -> str:
    """16 hex digits that identify `parts` (any JSON value or dataclass)."""
    return hashlib.blake2b(canonical(parts).encode(), digest_size=8).hexdigest()


def seed_of(*parts: Any) -> int:
    """A 63-bit seed derived from `parts` alone (63 bits: torch's generators take int64)."""
    digest = hashlib.blake2b(canonical(parts).encode(), digest_size=8, person=b"raydr-seed").digest()
    return int.from_bytes(digest, "little") >> 1


def rng_of(*parts: Any) -> np.random.Generator:
    """A NumPy generator seeded by `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
