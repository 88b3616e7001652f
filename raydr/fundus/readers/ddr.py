"""DDR (Li et al. 2019): `DR_grading/{train,valid,test}/*.jpg` and `.txt` lists of `name label`."""

import posixpath
from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import SPLITS, Label, Listed, Naming, Reader, beside, images_in, join, merge, stem_of
from raydr.fundus.readers.text import text_of


def stratum_of(name: str) -> str:
    """File names tell the clinic. In train and validation every gradable time-stamped image is grade 0: report per
    stratum, and never let a name reach a model."""
    if name.isdigit() and len(name) >= 14 and name.startswith("20"):
        return "timestamp"
    return "coded" if name.count("-") == 2 and name.replace("-", "").isdigit() else "other"


# Label 5 = ungradable, kept without a grade: the prior set uses these photographs.
NAMING = Naming("DDR", stratum_of=stratum_of, ungradable=(5,))


def list_labels(data: bytes) -> list[Label]:
    """Labels of a `name label` text list."""
    lines = [line.rsplit(maxsplit=1) for line in text_of(data).splitlines() if line.strip()]
    return [Label(parts[0].strip(), parts[1] if len(parts) > 1 else "") for parts in lines]


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts = []
    for path, data in label_files.items():
        name = stem_of(path)
        files = images_in(listing, beside(path, name))
        parts.append(join(NAMING, files, list_labels(data), SPLITS[name.lower()], posixpath.basename(path)))
    return merge(parts)


READER = Reader(
    "DDR",
    read,
    label_files=r"(^|(^|/)DR_grading/)(train|valid|test)\.txt$",
    layout="DR_grading/{train,valid,test}/*.jpg with DR_grading/{train,valid,test}.txt",
    terms="research; terms of the photographs unclear (Li et al. 2019)",
)
