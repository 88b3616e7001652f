"""The readers by name, and the only place that touches a file system on their behalf."""

import dataclasses
import os
import posixpath
import re
from collections.abc import Sequence

from pyarrow import fs

from raydr.errors import UserError
from raydr.fundus.readers import aptos, ddr, deepdrid, eyepacs, fgadr, folder, idrid, messidor2, table
from raydr.fundus.readers.rows import Listed, Reader, Row
from raydr.storage import Run

READERS: dict[str, Reader] = {
    "ddr": ddr.READER,
    "eyepacs": eyepacs.READER,
    "aptos": aptos.READER,
    "idrid": idrid.READER,
    "messidor2": messidor2.READER,
    "deepdrid": deepdrid.READER,
    "fgadr": fgadr.READER,
    "folder": folder.READER,
    "csv": table.READER,
}

ROLES = ("prior", "external")


def open_source(path: str) -> tuple[fs.FileSystem, str]:
    """File system and path inside it of a local folder or an s3:// or gs:// address."""
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    scheme, rest = path.split("://", 1)
    if scheme not in ("s3", "gs"):
        raise UserError(f"{path} cannot be read: give a local folder, s3://bucket/folder or gs://bucket/folder")
    bucket, _, inside = rest.partition("/")
    # Only the bucket goes through Run: its keys are plain names, while sources hold blanks ("B. Disease Grading").
    file_system, root = Run(f"{scheme}://{bucket}").filesystem()
    return file_system, f"{root}/{inside}".rstrip("/")


def read_bytes(file_system: fs.FileSystem, root: str, path: str) -> bytes:
    """Bytes of `path`, relative to the source's `root`."""
    where = posixpath.join(root, path)
    # pyarrow (26) holds the interpreter lock while it waits for an object of Google's that is opened as a file: threads
    # that read ahead would queue. As a stream it does not; S3's streams come in requests of 256 KB, its files whole.
    is_google = file_system.type_name == "gcs"
    with file_system.open_input_stream(where) if is_google else file_system.open_input_file(where) as stream:
        return stream.read()


def with_role(rows: Sequence[Row], role: str | None) -> list[Row]:
    """Rows as the run uses the source: `prior` trains generators only, `external` is only ever evaluated on.

    An official test split never becomes prior: it turns external, because no test photograph may enter the
    prior, in any mode.
    """
    if role is None:
        return list(rows)
    if role not in ROLES:
        raise UserError(f"role is one of {', '.join(ROLES)}, not '{role}'")
    kept = ("test", "external") if role == "prior" else ()
    return [dataclasses.replace(row, split="external" if row.split in kept else role) for row in rows]


def read_source(
    name: str, file_system: fs.FileSystem, root: str, dataset: str | None = None, role: str | None = None
) -> Listed:
    """Rows and rejections of the source `name` (a key of READERS) under `root`, sorted by image id.

    `dataset` renames the data set (default: the reader's; for `folder` and `csv` the name of the folder).
    For `csv`, `root` may be the CSV file itself. Raises UserError where nothing under `root` fits the layout.
    """
    if name not in READERS:
        raise UserError(f"unknown source '{name}': choose one of {', '.join(READERS)}")
    reader = READERS[name]
    info = file_system.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise UserError(f"{root} does not exist: give the folder that holds {reader.layout}")
    label_pattern = reader.label_files
    if info.type == fs.FileType.File:
        if name != "csv":
            raise UserError(f"{root} is a file: give the folder that holds {reader.layout}")
        label_pattern = f"^{re.escape(posixpath.basename(root))}$"
        root = posixpath.dirname(root)
    entries = file_system.get_file_info(fs.FileSelector(root, recursive=True))
    num_bytes = {entry.path[len(root) :].lstrip("/"): entry.size for entry in entries if entry.is_file}
    listing = sorted(num_bytes)
    label_paths = [path for path in listing if re.search(label_pattern, path, re.IGNORECASE)]
    rows, rejected = reader.read(listing, {path: read_bytes(file_system, root, path) for path in label_paths})
    if not rows:
        why = f"{len(rejected)} entries rejected, first: {rejected[0]}" if rejected else "no label file or image fits"
        raise UserError(f"no {reader.dataset} photographs under {root} ({why}): the layout is {reader.layout}")
    dataset = dataset or (posixpath.basename(root) if name in ("folder", "csv") else reader.dataset)
    rows = [
        dataclasses.replace(
            row,
            dataset=dataset,
            image_id=f"{dataset}/{row.image_id.split('/', 1)[1]}",
            # Patient 1 of one data set is nobody in another.
            patient_id=f"{dataset}/{row.patient_id}" if row.patient_id else None,
            num_bytes=num_bytes[row.path],
        )
        for row in with_role(rows, role)
    ]
    return sorted(rows, key=lambda row: row.image_id), sorted(rejected, key=lambda entry: (entry.name, entry.reason))


def list_source(name: str, path: str, dataset: str | None = None, role: str | None = None) -> Listed:
    """`read_source` of a local path or an s3:// or gs:// address."""
    file_system, root = open_source(path)
    return read_source(name, file_system, root, dataset, role)
