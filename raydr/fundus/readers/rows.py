"""What a reader returns, and the join of label rows with files that all readers share.

A reader is a pure function: the list of paths under a source's root and the bytes of its label files
in, rows and rejections out. It opens nothing, so a data set of 90,000 files is tested on a listing.
Every label row and every image file of the folders that a data set grades ends in one of the two lists: nothing is
dropped in silence.
"""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

from raydr.fundus.readers.text import grade_of

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".jp2"})

LABEL_WITHOUT_FILE = "label without file"
FILE_WITHOUT_LABEL = "file without label"
CONFLICTING_LABELS = "conflicting labels"
AMBIGUOUS_NAME = "ambiguous name"
REPEATED_ID = "repeated image id"

# Spellings of the official splits in folder names, file names and columns.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
    "prior": "prior",
    "external": "external",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One photograph of a source, before its file is opened."""

    path: str  # relative to the source's root
    image_id: str  # "{dataset}/{name}", unique in the source
    dataset: str  # as prompts name it
    split: str | None  # train, validation, test, prior, external; None = the source has no split
    patient_id: str | None
    grade: int | None  # 0-4; None = ungraded or ungradable
    gradable: bool
    stratum: str | None  # acquisition source inside the data set, for reporting only
    num_bytes: int | None = None  # size of the file; filled by `registry.read_source`

    def values(self) -> tuple:
        """The fields in order. `dataclasses.astuple` copies deeply, at 7 us a row against .2."""
        return _VALUES(self)


_VALUES = attrgetter(*(field.name for field in fields(Row)))


@dataclass(frozen=True)
class Rejected:
    """A label row or a file that cannot become a row."""

    name: str  # path of the file, or the name a label row gives
    reason: str
    detail: str


Listed = tuple[list[Row], list[Rejected]]
Read = Callable[[Sequence[str], Mapping[str, bytes]], Listed]


@dataclass(frozen=True)
class Label:
    """One row of a label file. `grade` is its raw text; `path` names the exact file where the source does."""

    name: str
    grade: str
    gradable: bool = True
    patient_id: str | None = None
    split: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Reader:
    """One data set: how its label files are called, how they are read, and on what terms it is used."""

    dataset: str
    read: Read
    label_files: str  # regular expression over relative paths
    layout: str  # shown when nothing fits
    terms: str


def stem_of(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def is_image(path: str) -> bool:
    """True for image files; hidden files and macOS's `._x.jpg` shadows of real files are none."""
    name = posixpath.basename(path)
    hidden = name.startswith(".") or path.startswith("__MACOSX/") or "/__MACOSX/" in path
    return not hidden and posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def images_in(listing: Sequence[str], folder: str, recursive: bool = False) -> list[str]:
    """Image paths of `listing` in `folder` ("" = the root), compared without case."""
    prefix = f"{folder}/".casefold() if folder else ""
    inside = [path for path in listing if is_image(path) and path.casefold().startswith(prefix)]
    return inside if recursive else [path for path in inside if "/" not in path[len(prefix) :]]


def beside(label_file: str, *parts: str) -> str:
    """Path of a folder that lies next to `label_file`."""
    return posixpath.join(posixpath.dirname(label_file), *parts)


def no_patient(name: str) -> str | None:
    """For sources without patient ids."""
    return None


def no_stratum(name: str) -> str | None:
    """For sources whose names tell nothing about the camera."""
    return None


@dataclass(frozen=True)
class Naming:
    """How rows of one data set are named and grouped; each function gets the file name without extension."""

    dataset: str
    patient_of: Callable[[str], str | None] = no_patient
    stratum_of: Callable[[str], str | None] = no_stratum
    # Goes between data set and name where the source repeats names (IDRiD_001 is in train and in test).
    prefix: str = ""
    # Labels that mean "cannot be graded": the row is kept with grade null.
    ungradable: tuple[int, ...] = ()

    def row(
        self, path: str, split: str | None, grade: int | None, gradable: bool, patient_id: str | None = None
    ) -> Row:
        stem = stem_of(path)
        return Row(
            path=path,
            image_id=f"{self.dataset}/{self.prefix}{stem}",
            dataset=self.dataset,
            split=split,
            patient_id=patient_id or self.patient_of(stem),
            grade=grade,
            gradable=gradable,
            stratum=self.stratum_of(stem),
        )


@dataclass
class Files:
    """Image files of a source, to be found by what a label file calls them; compared without case."""

    by_path: dict[str, list[str]]
    by_name: dict[str, list[str]]
    by_stem: dict[str, list[str]]

    @staticmethod
    def of(paths: Iterable[str]) -> "Files":
        files = Files(defaultdict(list), defaultdict(list), defaultdict(list))
        for path in paths:
            files.by_path[path.casefold()].append(path)
            files.by_name[posixpath.basename(path).casefold()].append(path)
            files.by_stem[stem_of(path).casefold()].append(path)
        return files

    def named(self, label: Label) -> list[str]:
        """Candidates for `label`: by its path, else its name, else its name whatever the extension."""
        name = label.name.replace("\\", "/").rsplit("/", 1)[-1].casefold()
        found = self.by_path.get(label.path.casefold()) if label.path else None
        # A CSV says `20051020_43808_0100_PP.jpg` where the file is `.png`, or gives the bare name.
        stem = posixpath.splitext(name)[0]
        return found or self.by_name.get(name) or self.by_stem.get(name) or self.by_stem.get(stem) or []


def join(naming: Naming, files: Sequence[str], labels: Iterable[Label], split: str | None, label_file: str) -> Listed:
    """Match `labels` to `files`; every label and every file ends in a Row or in a Rejected with its reason."""
    index = Files.of(files)
    rejected: list[Rejected] = []
    claims: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        found = index.named(label)
        if len(found) == 1:
            claims[found[0]].append(label)
        elif found:
            rejected.append(Rejected(label.name, AMBIGUOUS_NAME, f"{label_file}: fits {', '.join(found)}"))
        else:
            rejected.append(Rejected(label.name, LABEL_WITHOUT_FILE, f"listed in {label_file}"))

    rows: list[Row] = []
    for path in files:
        if path not in claims:
            rejected.append(Rejected(path, FILE_WITHOUT_LABEL, f"not in {label_file}"))
            continue
        label = claims[path][0]
        texts = sorted({f"{claim.grade} {claim.split or ''}".strip() for claim in claims[path]})
        if len(texts) > 1:
            rejected.append(Rejected(path, CONFLICTING_LABELS, f"{label_file}: {' against '.join(texts)}"))
            continue
        try:
            grade, gradable = grade_of(label.grade, naming.ungradable) if label.gradable else (None, False)
        except ValueError as error:
            rejected.append(Rejected(path, str(error), f"{label_file}: '{label.grade}'"))
            continue
        rows.append(naming.row(path, label.split or split, grade, gradable, label.patient_id))
    return rows, rejected


def unlabelled(naming: Naming, files: Sequence[str], split: str) -> Listed:
    """Rows of a folder that the publisher ships without labels, such as a contest's test set."""
    return [naming.row(path, split, None, True) for path in files], []


def merge(parts: Iterable[Listed]) -> Listed:
    """Concatenate; a second file of the same id is rejected, because ids must stay unique in a run."""
    rows: list[Row] = []
    rejected: list[Rejected] = []
    first: dict[str, str] = {}
    for part_rows, part_rejected in parts:
        rejected.extend(part_rejected)
        for row in part_rows:
            if row.image_id in first:
                rejected.append(Rejected(row.path, REPEATED_ID, f"{row.image_id} is {first[row.image_id]}"))
            else:
                first[row.image_id] = row.path
                rows.append(row)
    return rows, rejected
