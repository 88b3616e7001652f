"""Messidor-2 with the adjudicated grades (Krause et al. 2018): `IMAGES/` and `messidor_data.csv`.

The CSV says `.jpg` for every file, the files are `2005..._PP.png` and `IM######.JPG`: matched by name.
"""

import re
from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import Label, Listed, Naming, Reader, beside, images_in, join, merge
from raydr.fundus.readers.text import csv_records


def stratum_of(name: str) -> str:
    """1,058 photographs come from Messidor-1 and carry its `_PP` names."""
    return "messidor1" if re.fullmatch(r"\d{8}_\d+_\d+_PP", name, re.IGNORECASE) else "extension"


NAMING = Naming("Messidor-2", stratum_of=stratum_of)
COLUMNS = ("image_id", "adjudicated_dr_grade", "adjudicated_gradable")


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    for path, data in label_files.items():
        labels = [
            Label(
                row["image_id"], row["adjudicated_dr_grade"], gradable=row["adjudicated_gradable"] not in ("0", "0.0")
            )
            for row in csv_records(data, path, COLUMNS)
        ]
        parts.append(join(NAMING, images_in(listing, beside(path, "IMAGES")), labels, "external", path))
    return merge(parts)


READER = Reader(
    "Messidor-2",
    read,
    label_files=r"(^|/)messidor_data\.csv$",
    layout="IMAGES/ with messidor_data.csv (image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable)",
    terms="research only (ADCIS, LaTIM); grades: Krause et al. 2018",
)
