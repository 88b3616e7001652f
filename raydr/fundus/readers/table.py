"""Any CSV with a path and a grade column; optionally split, patient and gradable columns."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raydr.fundus.readers.rows import SPLITS, Label, Listed, Naming, Reader, is_image, join, merge, stem_of
from raydr.fundus.readers.text import csv_records, csv_rows

# Column names that are understood, most explicit first.
PATH_COLUMNS = ("path", "image_path", "filepath", "file", "filename", "image", "image_id", "id_code", "name")
GRADE_COLUMNS = ("grade", "dr_grade", "level", "diagnosis", "label")
PATIENT_COLUMNS = ("patient_id", "patient")
NO = ("0", "0.0", "false", "no")


def column_of(header: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in header), None)


def labels_of(path: str, data: bytes) -> list[Label]:
    """Labels of one CSV; none where it lacks a path or a grade column (another table in the same folder)."""
    header = [name.lower() for name in (csv_rows(data, path) or [[]])[0]]
    name_column, grade_column = column_of(header, PATH_COLUMNS), column_of(header, GRADE_COLUMNS)
    if name_column is None or grade_column is None:
        return []
    patient_column = column_of(header, PATIENT_COLUMNS) or ""
    labels = []
    for row in csv_records(data, path):
        name = row[name_column].replace("\\", "/")
        labels.append(
            Label(
                name,
                row[grade_column],
                gradable=row.get("gradable", "").lower() not in NO,
                patient_id=row.get(patient_column) or None,
                # train.csv and valid.csv say by their names what a column would.
                split=SPLITS.get(row.get("split", "").lower()) or SPLITS.get(stem_of(path).lower()),
                path=posixpath.normpath(posixpath.join(posixpath.dirname(path), name)),
            )
        )
    return labels


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    tables = {path: labels for path, data in label_files.items() if (labels := labels_of(path, data))}
    labels = [label for inside in tables.values() for label in inside]
    # A photograph without a label is one that lies beside labelled ones; other folders are not these tables'.
    names = {posixpath.splitext(posixpath.basename(label.name))[0].casefold() for label in labels}
    names |= {posixpath.basename(label.name).casefold() for label in labels}
    images = [image for image in listing if is_image(image)]
    folders = {posixpath.dirname(image) for image in images if stem_of(image).casefold() in names}
    files = [image for image in images if posixpath.dirname(image) in folders]
    rows, rejected = join(Naming("csv"), files, labels, None, ", ".join(tables))
    # Ids keep the folder, because names need not be unique across folders.
    return merge([([replace(row, image_id=f"csv/{posixpath.splitext(row.path)[0]}") for row in rows], rejected)])


READER = Reader(
    "csv",
    read,
    label_files=r"\.csv$",
    layout=f"a CSV with a column out of {', '.join(PATH_COLUMNS)} and one out of {', '.join(GRADE_COLUMNS)}",
    terms="the user's own",
)
