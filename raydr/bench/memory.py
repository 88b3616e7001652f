"""20,000 phantoms through ingest: does the memory of the driver or of a worker grow with the rows?"""

import os
from pathlib import Path
from typing import Any

from raydr import terminal
from raydr.bench import workload
from raydr.bench.fits import at, fit, median
from raydr.bench.meter import Recording, recording
from raydr.bench.results import Result
from raydr.cluster import ingest
from raydr.storage import Run

NUM_SHARDS, QUICK_SHARDS, PX = 313, 24, 32  # 20,032 photographs
# Python's and Ray's own buffers settle while the first rows pass.
WARM_UP = 0.3


def run(folder: Path, result: Result, num_shards: int = NUM_SHARDS) -> None:
    """Fill `result.scaling["memory"]`: resident bytes of the driver and of the largest worker against rows."""
    target, recipe = Run(str(folder / "memory")), workload.phantoms(num_shards, PX)
    with recording(memory=False, resident=True) as record:
        ingest.run(recipe, target)
    points = workload.committed(target, "real", record.started)
    found = growth(record, points, os.getpid())
    result.scaling["memory"] = found | {"rows": points[-1][0], "seconds": record.seconds}
    for who in ("driver", "worker"):
        result.add(f"growth of the {who}", found[who]["bytes_a_row"], "bytes a row", f"over {points[-1][0]:.0f} rows")
    terminal.line("bench", f"{points[-1][0]:.0f} photographs in {record.seconds:.0f} s")


def growth(record: Recording, points: list[tuple[float, float]], driver: int) -> dict[str, Any]:
    """{driver, worker}: {curve: [(rows, resident bytes)], bytes_a_row after the warm-up, median bytes}.

    "worker" is the process that was largest at the end, but for the driver.
    """
    rows_at = [(seconds, rows) for rows, seconds in points]
    last = record.resident[-1][1]
    worker = max((pid for pid in last if pid != driver), key=lambda pid: last[pid], default=driver)
    found: dict[str, Any] = {}
    for name, pid in (("driver", driver), ("worker", worker)):
        curve = [
            (at(rows_at, moment - record.started), float(sizes[pid]))
            for moment, sizes in record.resident
            if pid in sizes
        ]
        kept = [point for point in curve if WARM_UP * points[-1][0] < point[0] < points[-1][0]]
        slope = fit(kept).each if len({rows for rows, _ in kept}) > 1 else 0.0
        found[name] = {"curve": curve, "bytes_a_row": slope, "median_bytes": median(size for _, size in curve)}
    return found
