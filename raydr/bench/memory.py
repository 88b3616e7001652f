"""20,000 small photographs through both passes of ingest: does anybody's memory grow with their number?

A tenth of them goes first, in the same session, so that what is compared are processes that have imported, allocated
and filled their buffers: the difference of the two peaks is what the other nine tenths cost.
"""

import os
from pathlib import Path
from typing import Any

from raydr import terminal
from raydr.bench import workload
from raydr.bench.ingest import add_folder
from raydr.bench.meter import Recording, recording
from raydr.bench.results import Result
from raydr.storage import Run

SIZES, QUICK_SIZES = (2_000, 20_000), (200, 800)
SIZE, PX = (64, 48), 32


def run(folder: Path, result: Result, sizes: tuple[int, int] = SIZES) -> None:
    """Fill `result.scaling["memory"]`: resident bytes of the driver and of the largest worker, at both sizes."""
    records: list[Recording] = []
    known = None
    for count in sizes:
        with terminal.bar("photographs", count, "files drawn"):
            known = workload.write_photographs(folder / f"photographs-{count}", count, known, SIZE)
        with recording(memory=False, resident=True) as record:
            about = add_folder(Run(str(folder / f"memory-{count}")), known, PX)
        assert about["photographs"] == count, about
        records.append(record)
        terminal.line("bench", f"{count} photographs in {record.seconds:.0f} s")
    found = growth(sizes, records, os.getpid())
    result.scaling["memory"] = found | {"rows": sizes[-1], "seconds": records[-1].seconds}
    for who in ("driver", "worker"):
        note = f"from {sizes[0]} to {sizes[1]} photographs; peak {found[who]['peaks'][1] / 2**20:.0f} MiB"
        result.add(f"growth of the {who}", found[who]["bytes_a_row"], "bytes a photograph", note)


def growth(sizes: tuple[int, int], records: list[Recording], driver: int) -> dict[str, Any]:
    """{driver, worker}: {curve: [(seconds, resident bytes)] of the second run, peaks of both runs, bytes_a_row}.

    "worker" is the largest of Ray's workers at each moment.
    """
    found: dict[str, Any] = {}
    for who in ("driver", "worker"):
        curves = [
            [
                (moment - record.started, float(max(sizes_of(who, resident, record, driver), default=0)))
                for moment, resident in record.resident
            ]
            for record in records
        ]
        peaks = [max(size for _, size in curve) for curve in curves]
        each = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
        found[who] = {"curve": curves[1], "peaks": peaks, "bytes_a_row": each}
    return found


def sizes_of(who: str, resident: dict[int, int], record: Recording, driver: int) -> list[int]:
    return [size for pid, size in resident.items() if (pid == driver if who == "driver" else pid in record.workers)]
