"""EyePACS (Kaggle 2015): `train/{id}_{left,right}.jpeg` and `trainLabels.csv`.

Some eyes lie upside down, and nothing in the files says which: they stay as published, and copies of them are found
however they lie (`phash.ORIENTATIONS`).
"""

import re
from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import Label, Listed, Naming, Reader, beside, images_in, join, merge, stem_of, unlabelled
from raydr.fundus.readers.text import csv_records


def patient_of(name: str) -> str | None:
    """The number before `_`: both eyes of a patient stay in one split."""
    match = re.fullmatch(r"(\d+)_(left|right)", name, re.IGNORECASE)
    return match[1] if match else None


NAMING = Naming("EyePACS", patient_of=patient_of)


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    labelled_test = False
    for path, data in label_files.items():
        is_train = stem_of(path).lower() == "trainlabels"
        labelled_test |= not is_train
        labels = [Label(row["image"], row["level"]) for row in csv_records(data, path, ("image", "level"))]
        files = images_in(listing, beside(path, "train" if is_train else "test"))
        parts.append(join(NAMING, files, labels, None if is_train else "test", path))
    if not labelled_test and label_files:
        # The contest's test photographs come without labels: the paper's prior set takes them as they are.
        parts.append(unlabelled(NAMING, images_in(listing, beside(next(iter(label_files)), "test")), "prior"))
    return merge(parts)


READER = Reader(
    "EyePACS",
    read,
    label_files=r"(^|/)(trainLabels|testLabels|retinopathy_solution)\.csv$",
    layout="train/{id}_{left,right}.jpeg with trainLabels.csv (image,level); optionally test/",
    terms="Kaggle competition rules (Diabetic Retinopathy Detection, 2015)",
)
