"""Which images count towards a quota: a fundus, no memory of a photograph, and a score inside the band."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydr.ledger import Commit, damaged
from raydr.storage import Run

COLUMNS = ["blank", "valid_fundus", "score", "nearest_distance"]
# Shards whose columns are read at once: in a bucket each is a wait of some 50 ms.
READERS = 16


def accepted(
    blank: np.ndarray,
    valid_fundus: np.ndarray,
    scores: np.ndarray,
    distances: np.ndarray,
    band: tuple[float, float],
    threshold: float,
) -> np.ndarray:
    """bool (n,): which images count; `band` holds its ends, `threshold` is the memorisation gate's."""
    low, high = band
    return ~blank & valid_fundus & (scores >= low) & (scores <= high) & (distances >= threshold)


def counted(run: Run, records: Mapping[str, Commit], band: tuple[float, float] | None) -> dict[str, int]:
    """Accepted images of each committed shard of `synthetic`, by key.

    A record says how many lay in the band that was asked for when it was made. For another band its shard's scores are
    read again, and no image; None takes what the records say.
    """
    asked = None if band is None else list(band)
    known = {
        key: record.extra.get("accepted", 0)
        for key, record in records.items()
        if asked is None or record.extra.get("band") == asked
    }
    others = [record for key, record in records.items() if key not in known]
    if others and band is not None:
        with ThreadPoolExecutor(READERS) as pool:
            known |= dict(pool.map(lambda record: (record.key, _count(run, record, band)), others))
    return known


def _count(run: Run, record: Commit, band: tuple[float, float]) -> int:
    filesystem, root = run.filesystem()
    try:
        table = pq.read_table(f"{root}/{record.key}", columns=COLUMNS, filesystem=filesystem)
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, record.key, f"is damaged or missing ({str(error).splitlines()[0][:200]})") from error
    blank, fundus = np.asarray(table["blank"].fill_null(True)), np.asarray(table["valid_fundus"].fill_null(False))
    scores, distances = np.asarray(table["score"]), np.asarray(table["nearest_distance"].fill_null(np.inf))
    return int(accepted(blank, fundus, scores, distances, band, record.extra.get("threshold", -np.inf)).sum())
