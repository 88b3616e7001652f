"""Source files -> rows of `real`, one worker's share: read ahead, prepare, set aside what cannot be used."""

import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pyarrow import fs

from raydr.errors import UserError
from raydr.fundus.preprocess import ABSURD_SIZE, Unusable, prepare, prepare_row
from raydr.fundus.readers.registry import open_source, read_bytes
from raydr.fundus.readers.rows import Rejected, Row
from raydr.identity import sha256

# The largest published fundus files are 30 MB; a file over this is not read at all.
MAX_BYTES = 300_000_000
# Files in memory before they are decoded: two hide a bucket's latency behind the decoding of the one before.
READ_AHEAD = 2
CRASHED = "crashes the decoder"
PATIENCE_SECONDS = 120


def prepare_rows(
    rows: Sequence[Row], base: str, px: int, crop: str, isolated: bool = False
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Rows of schema.REAL with `file_sha256` in the given order, and what could not be used.

    One file is decoded at a time, so a worker holds the encoded photographs of its shard and one decoded picture.
    `isolated` tries each file in a process of its own first: for shards that took their worker down before.
    """
    prepared, failures = [], []
    for row, data in read_ahead(rows, base):
        try:
            if data is None:
                raise Unusable(ABSURD_SIZE, f"{row.num_bytes} bytes")
            if isolated:
                require_survival(data, px, crop)
            prepared.append({**prepare_row(row, data, px, crop), "file_sha256": sha256(data)})
        except Unusable as error:
            failures.append(Rejected(row.path, error.reason, error.detail))
    return prepared, failures


def read_ahead(rows: Sequence[Row], base: str) -> Iterator[tuple[Row, bytes | None]]:
    """(row, bytes of its file) in order; None for files over MAX_BYTES."""
    file_system, root = open_source(base)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting: deque[tuple[Row, Future[bytes | None]]] = deque()
        for row in rows:
            waiting.append((row, pool.submit(read_file, file_system, root, row)))
            if len(waiting) > READ_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for row, future in waiting:
            yield row, future.result()


def read_file(file_system: fs.FileSystem, root: str, row: Row) -> bytes | None:
    if (row.num_bytes or 0) > MAX_BYTES:
        return None
    try:
        return read_bytes(file_system, root, row.path)
    except FileNotFoundError:
        raise UserError(f"{row.path} has gone from {root} since it was listed: run the same command again") from None
    except OSError as error:
        raise UserError(
            f"{row.path} in {root} cannot be read ({str(error).splitlines()[0][:200]}): mend that, then run the same "
            "command again to resume"
        ) from None


def require_survival(
    data: bytes, px: int, crop: str, command: Sequence[str] = (sys.executable, "-m", __name__)
) -> None:
    """Raise Unusable where preparing `data` kills a process, or keeps it busy for two minutes, twice in a row."""
    for _ in range(2):
        try:
            done = subprocess.run([*command, str(px), crop], input=data, timeout=PATIENCE_SECONDS, capture_output=True)
        except subprocess.TimeoutExpired:
            verdict = f"no result in {PATIENCE_SECONDS} s"
            continue
        if done.returncode == 0:
            return
        verdict = f"exit code {done.returncode}"
    raise Unusable(CRASHED, verdict)


def main() -> None:
    """`python -m raydr.cluster.source_files PX CROP < FILE`: exit code 0 where the file does no harm."""
    try:
        prepare(sys.stdin.buffer.read(), int(sys.argv[1]), sys.argv[2])
    except Unusable:
        return


if __name__ == "__main__":
    main()
