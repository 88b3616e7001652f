"""A chosen training set as Parquet files, or as a folder of images with labels.csv; the cards come last.

DIR/train-00000.parquet ...          one row an image (schema.TRAINING), `image` opens as a picture in
                                     Hugging Face datasets
DIR/images/3/NAME.webp, labels.csv   the stored bytes as they are, by grade
DIR/card.md, DIR/card.json           where every row comes from; a set without them is not complete
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydr import schema
from raydr.backends import TEMPORARY
from raydr.errors import DamagedData, UserError
from raydr.identity import fingerprint, sha256
from raydr.ledger import damaged
from raydr.parquet import to_parquet
from raydr.storage import Run
from raydr.trainset.choose import Choice

CARD, CARD_TEXT, LABELS = "card.json", "card.md", "labels.csv"
FORMATS = ("parquet", "folder")
# A Parquet file of the set is closed at this many rows or bytes, whichever comes first.
FILE_ROWS, FILE_BYTES = 1024, 256 * 2**20
# First bytes of the codecs that photographs and samples come in.
ENDINGS = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"RIFF", "webp"),
    (b"BM", "bmp"),
    (b"II*", "tif"),
    (b"MM", "tif"),
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written, for the card: {file: sha256}, and whose scores the synthetic rows have."""

    files: dict[str, str]
    ensemble_ids: tuple[str, ...]


def write(
    run: Run, choice: Choice, to: Run, kind: str, datasets: Mapping[str, str], progress: Progress | None = None
) -> Written:
    """Write the set below `to`, without its cards.

    `datasets` says what each generator was tuned on. Raises UserError where `to` holds anything, DamagedData where
    an image is not the one that its row says.
    """
    check_empty(to)
    assert kind in FORMATS, kind
    total, judges, files = choice.real.num_rows + choice.synthetic.num_rows, set(), {}

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(_rows(run, choice, datasets), 1):
            if row["ensemble_id"]:
                judges.add(row["ensemble_id"])
            yield row
            if progress is not None and (number % 64 == 0 or number == total):
                progress(number, total)

    for key, data in _parquet(rows()) if kind == "parquet" else _folder(rows()):
        # No fsync a picture: the card, written last and synced, is what says that the set is whole.
        to.create(key, data, sync=False)
        files[key] = sha256(data)
    return Written(files, tuple(sorted(judges)))


def check_empty(to: Run) -> None:
    """UserError unless there is nothing below `to` yet."""
    there = to.list()
    if there:
        what = (
            "holds a training set already" if any(key == CARD for key, _ in there) else f"is not empty ({there[0][0]})"
        )
        raise UserError(f"{to.url} {what}: name another --to, or delete it")


def finish(to: Run, card: dict[str, Any], text: str) -> None:
    """Write the cards, which make the set complete."""
    to.create(CARD_TEXT, text.encode())
    to.create(CARD, json.dumps(card, indent=1).encode() + b"\n")
    if to.local is not None and (to.local / TEMPORARY).is_dir():
        (to.local / TEMPORARY).rmdir()


def _rows(run: Run, choice: Choice, datasets: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of schema.TRAINING: photographs, then samples, each shard read once and checked."""
    real = choice.real.select(["image_id", "grade", "sha256", "dataset", "patient_id", "shard"])
    for row, found in with_images(run, real, "real", "image_id", []):
        if sha256(found["image"]) != row["sha256"]:
            raise damaged(run, row["shard"], f"holds another image than its row {row['image_id']} says")
        yield _row(row) | {"synthetic": False, "image": found["image"]}
    more = ["sha256", "ensemble_id"]
    for row, found in with_images(run, choice.synthetic, "synthetic", "sample_id", more):
        if sha256(found["image"]) != found["sha256"]:
            raise damaged(run, row["shard"], f"holds another image than its row {row['sample_id']} says")
        ensemble_id = choice.request.ensemble_id or found["ensemble_id"]
        known = {"image_id": row["sample_id"], "synthetic": True, "dataset": datasets.get(row["generator_id"])}
        yield _row(row) | known | {"ensemble_id": ensemble_id, "image": found["image"], "sha256": found["sha256"]}


def _row(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values.get(name) for name in schema.TRAINING.names}


def with_images(
    run: Run, table: pa.Table, prefix: str, name: str, columns: list[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(row of `table`, {image and `columns`} of its shard) for each row, in the order of the shards.

    Four shards are in memory at a time: 300 MB of photographs of 1024 px.
    """
    filesystem, root = run.filesystem()
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        wanted.setdefault(row["shard"], []).append(row)

    def read(shard: str) -> dict[str, dict[str, Any]]:
        try:
            with filesystem.open_input_file(f"{root}/{shard}") as file:
                stored = pq.read_table(file, columns=[name, "image", *columns], page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise damaged(run, shard, f"is damaged or missing ({str(error).splitlines()[0][:200]})") from error
        ids = {row[name] for row in wanted[shard]}
        keep = [position for position, each in enumerate(stored[name].to_pylist()) if each in ids]
        return {row[name]: row for row in stored.take(keep).to_pylist()}

    with ThreadPoolExecutor(4) as pool:
        todo = sorted(wanted)
        for start in range(0, len(todo), 4):
            for shard, found in zip(todo[start : start + 4], pool.map(read, todo[start : start + 4]), strict=True):
                for row in wanted[shard]:
                    if row[name] not in found:
                        raise damaged(run, shard, f"lacks {row[name]}")
                    yield row, found[row[name]]


def _parquet(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    group: list[dict[str, Any]] = []
    number = size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"])
        if len(group) == FILE_ROWS or size >= FILE_BYTES:
            yield f"train-{number:05d}.parquet", _file(group)
            group, number, size = [], number + 1, 0
    if group:
        yield f"train-{number:05d}.parquet", _file(group)


def _file(rows: list[dict[str, Any]]) -> bytes:
    return to_parquet(pa.Table.from_pylist(rows, schema=schema.TRAINING))


def _folder(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    names = ["file_name", *(name for name in schema.TRAINING.names if name != "image")]
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    taken: set[str] = set()
    for row in rows:
        key = f"images/{row['grade']}/{_plain(row['image_id'])}"
        if key.lower() in taken:  # two ids that differ in what file names may not hold, or in case alone
            key += f"-{fingerprint(row['image_id'])[:8]}"
        taken.add(key.lower())
        data = row.pop("image")
        ending = next((ending for start, ending in ENDINGS if data.startswith(start)), None)
        if ending is None:
            raise DamagedData(f"{row['image_id']} is stored in no known image format: use --format parquet")
        table.writerow({"file_name": f"{key}.{ending}", **row})
        yield f"{key}.{ending}", data
    yield LABELS, text.getvalue().encode()


def _plain(image_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.@-]+", "-", image_id).lstrip(".-@")[-150:] or "image"
