"""DeepDRiD (Liu et al. 2022), regular photographs: four a patient, graded per eye.

The per-patient grade is the maximum of both eyes and would label the better eye wrongly, so the column of the
photograph's own eye is read; the other one is blank. Grade 5 = ungradable.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import Label, Listed, Naming, Reader, images_in, join, merge, stem_of
from raydr.fundus.readers.text import csv_records


def patient_of(name: str) -> str | None:
    match = re.fullmatch(r"(\d+)_[lr]\d+", name, re.IGNORECASE)
    return match[1] if match else None


NAMING = Naming("DeepDRiD", patient_of=patient_of, ungradable=(5,))
SPLIT_OF = {
    "regular-fundus-training": "train",
    "regular-fundus-validation": "validation",
    "challenge1_labels": "test",
}


def eye_grade(record: Mapping[str, str]) -> str:
    """Raw grade of the photographed eye: `_l` in the name is the left one."""
    if "dr_levels" in record:  # the evaluation set has one column
        return record["dr_levels"]
    eye = "left" if re.search(r"_l\d+$", record["image_id"], re.IGNORECASE) else "right"
    return record[f"{eye}_eye_dr_level"]


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    for path, data in label_files.items():
        split = SPLIT_OF[stem_of(path).lower()]
        grades = ("dr_levels",) if split == "test" else ("left_eye_dr_level", "right_eye_dr_level")
        records = csv_records(data, path, ("image_id", *grades))
        labels = [Label(record["image_id"], eye_grade(record)) for record in records]
        files = images_in(listing, posixpath.dirname(path), recursive=True)
        parts.append(join(NAMING, files, labels, split, posixpath.basename(path)))
    return merge(parts)


READER = Reader(
    "DeepDRiD",
    read,
    label_files=r"(^|/)(regular-fundus-(training|validation)|Challenge1_labels)\.csv$",
    layout="regular_fundus_images/regular-fundus-{training,validation}/{*.csv,Images/}; the evaluation set's "
    "Challenge1_labels saved as CSV beside its Images/",
    terms="see Zenodo 6452623",
)
