"""IDRiD (Porwal et al. 2018), part B: one CSV for training and one for testing.

Its CSVs end in empty columns and rows and its column names in blanks; names repeat between the two sets.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import Label, Listed, Naming, Reader, images_in, join, merge
from raydr.fundus.readers.text import csv_records

FOLDERS = {"train": "a. Training Set", "test": "b. Testing Set"}


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    for path, data in label_files.items():
        split = "test" if re.search("testing", path, re.IGNORECASE) else "train"
        records = csv_records(data, path, ("image name", "retinopathy grade"))
        labels = [Label(row["image name"], row["retinopathy grade"]) for row in records]
        base = posixpath.dirname(posixpath.dirname(path))
        files = images_in(listing, posixpath.join(base, "1. Original Images", FOLDERS[split]))
        parts.append(join(Naming("IDRiD", prefix=f"{split}/"), files, labels, split, posixpath.basename(path)))
    return merge(parts)


READER = Reader(
    "IDRiD",
    read,
    label_files=r"(^|/)2\. Groundtruths/[ab]\. IDRiD_Disease Grading_(Training|Testing) Labels\.csv$",
    layout="B. Disease Grading/{1. Original Images/{a. Training Set,b. Testing Set},2. Groundtruths/*.csv}",
    terms="CC BY 4.0 (Porwal et al. 2018)",
)
