"""APTOS 2019 (Kaggle): `train_images/{id_code}.png` with `train.csv`; `test_images/` without labels.

Known duplicates, some with conflicting labels: run `raydr audit` before you trust a split of it.
"""

from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import Label, Listed, Naming, Reader, beside, images_in, join, merge, unlabelled
from raydr.fundus.readers.text import csv_records

NAMING = Naming("APTOS")


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    for path, data in label_files.items():
        labels = [Label(row["id_code"], row["diagnosis"]) for row in csv_records(data, path, ("id_code", "diagnosis"))]
        parts.append(join(NAMING, images_in(listing, beside(path, "train_images")), labels, None, path))
        parts.append(unlabelled(NAMING, images_in(listing, beside(path, "test_images")), "prior"))
    return merge(parts)


READER = Reader(
    "APTOS",
    read,
    label_files=r"(^|/)train\.csv$",
    layout="train_images/{id_code}.png with train.csv (id_code,diagnosis); optionally test_images/",
    terms="Kaggle competition rules (APTOS 2019 Blindness Detection)",
)
