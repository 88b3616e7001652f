"""FGADR Seg-set (Zhou et al. 2021): `Seg-set/Original_Images/*.png` and a label file without a header."""

from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import Label, Listed, Naming, Reader, beside, images_in, join, merge
from raydr.fundus.readers.text import csv_rows


def stratum_of(name: str) -> str:
    """The digit after `_` is the collecting site; `_3` holds grades 3 and 4 only, a source shortcut."""
    return f"site {name.rsplit('_', 1)[1]}" if "_" in name else "other"


NAMING = Naming("FGADR", stratum_of=stratum_of)


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    for path, data in label_files.items():
        labels = [Label(row[0], row[1] if len(row) > 1 else "") for row in csv_rows(data, path)]
        parts.append(join(NAMING, images_in(listing, beside(path, "Original_Images")), labels, None, path))
    return merge(parts)


READER = Reader(
    "FGADR",
    read,
    label_files=r"(^|/)DR_Seg_Grading_Label\.csv$",
    layout="Seg-set/Original_Images/*.png with Seg-set/DR_Seg_Grading_Label.csv (no header)",
    terms="non-commercial (Zhou et al. 2021)",
)
