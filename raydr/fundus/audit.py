"""What is wrong with a `real` table before anybody trains on it: leaks, duplicates, shortcuts, class balance.

`audit(table)` computes, `Audit.to_json` stores, `audit_page.page` shows. Leaks are what `--strict` fails on: the same
picture or the same patient on both sides of a split. Shortcuts are reported, because a published data set has the
ones it has: metrics per stratum are the answer to those.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raydr.fundus.duplicates import Pair, find_pairs
from raydr.fundus.shortcuts import EVALUATION, Shortcut, audited_shortcuts
from raydr.fundus.splits import groups_of

# Lost last when duplicates are dropped: evaluation sets first of all stay as published.
PROTECTION = ("test", "external", "validation", "train", "prior", "fresh")
# What a split is used for: the same picture under two of these is a leak, under train and prior it is none.
USE = {
    "train": "training",
    "prior": "training",
    "fresh": "training",  # phantoms beyond the training set
    "validation": "choosing",
    "test": "judging",
    "external": "judging",
}

Event = Callable[[dict], None]


@dataclass(frozen=True)
class Duplicate:
    """Two rows that show the same picture."""

    a: str  # image ids, a < b
    b: str
    kind: str  # exact, perceptual
    mirrored: bool
    bits: int
    correlation: float
    splits: tuple[str, str]
    datasets: tuple[str, str]
    grades: tuple[int | None, int | None]
    turned: bool = False  # one lies upside down

    @property
    def across_splits(self) -> bool:
        """Used for two things, such as training and judging."""
        return USE[self.splits[0]] != USE[self.splits[1]]

    @property
    def across_datasets(self) -> bool:
        return self.datasets[0] != self.datasets[1]

    @property
    def conflicting(self) -> bool:
        return None not in self.grades and self.grades[0] != self.grades[1]


@dataclass(frozen=True)
class PatientLeak:
    """A patient with photographs in more than one split."""

    patient_id: str
    splits: tuple[str, ...]
    image_ids: tuple[str, ...]


@dataclass(frozen=True)
class Balance:
    """Class counts of one data set's split."""

    dataset: str
    split: str
    counts: tuple[int, int, int, int, int]  # grade 0-4
    num_ungraded: int

    @property
    def ratio(self) -> float:
        """Largest over smallest class; infinite where a grade is absent."""
        return max(self.counts) / min(self.counts) if min(self.counts) else float("inf")


@dataclass(frozen=True)
class Drop:
    """A row that `--drop-duplicates` leaves out."""

    image_id: str
    because_of: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """Everything found; lists are sorted, so two audits of one table are equal."""

    num_images: int
    duplicates: tuple[Duplicate, ...]
    patient_leaks: tuple[PatientLeak, ...]
    shortcuts: tuple[Shortcut, ...]
    balance: tuple[Balance, ...]
    duplicates_to_drop: tuple[Drop, ...]

    @property
    def leaks(self) -> list[str]:
        """One sentence per leak across splits: what `--strict` fails on."""
        return [
            f"{pair.a} ({pair.splits[0]}) and {pair.b} ({pair.splits[1]}) show the same picture"
            for pair in self.duplicates
            if pair.across_splits
        ] + [f"patient {leak.patient_id} is in {' and '.join(leak.splits)}" for leak in self.patient_leaks]

    @property
    def warnings(self) -> list[str]:
        """One sentence per shortcut found and per duplicate with two grades."""
        found = [
            f"{entry.dataset}: {entry.feature} alone predicts {entry.task} with balanced accuracy "
            f"{entry.balanced_accuracy:.2f} (chance {entry.chance:.2f})"
            + (f": {entry.explanation}" if entry.explanation else "")
            for entry in self.shortcuts
            if entry.found
        ]
        return found + [
            f"{pair.a} (grade {pair.grades[0]}) and {pair.b} (grade {pair.grades[1]}) show the same picture"
            for pair in self.duplicates
            if pair.conflicting
        ]

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind of finding."""
        pairs = self.duplicates
        return {
            "exact duplicates": sum(pair.kind == "exact" for pair in pairs),
            "perceptual duplicates": sum(pair.kind == "perceptual" for pair in pairs),
            "across splits": sum(pair.across_splits for pair in pairs),
            "across data sets": sum(pair.across_datasets for pair in pairs),
            "conflicting labels": sum(pair.conflicting for pair in pairs),
            "patients in several splits": len(self.patient_leaks),
            "shortcuts": sum(entry.found for entry in self.shortcuts),
        }

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the derived lists."""
        return {
            **dataclasses.asdict(self),
            "counts": self.counts,
            "leaks": self.leaks,
            "warnings": self.warnings,
        }


def describe(pairs: Sequence[Pair], columns: Mapping[str, Sequence]) -> tuple[Duplicate, ...]:
    found = []
    for pair in pairs:
        a, b = sorted((pair.a, pair.b), key=lambda index: columns["image_id"][index])
        both = {name: (columns[name][a], columns[name][b]) for name in ("image_id", "split", "dataset", "grade")}
        found.append(
            Duplicate(
                *both["image_id"],
                kind=pair.kind,
                mirrored=pair.mirrored,
                turned=pair.turned,
                bits=pair.bits,
                correlation=pair.correlation,
                splits=both["split"],
                datasets=both["dataset"],
                grades=both["grade"],
            )
        )
    return tuple(sorted(found, key=lambda pair: (pair.a, pair.b)))


def patient_leaks(columns: Mapping[str, Sequence]) -> tuple[PatientLeak, ...]:
    """Patients whose photographs are used for two things, such as training and judging."""
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for patient_id, split, image_id in zip(columns["patient_id"], columns["split"], columns["image_id"], strict=True):
        if patient_id is not None:
            rows[patient_id].append((split, image_id))
    leaks = []
    for patient_id, entries in sorted(rows.items()):
        splits = tuple(sorted({split for split, _ in entries}))
        if len({USE[split] for split in splits}) > 1:
            leaks.append(PatientLeak(patient_id, splits, tuple(sorted(image_id for _, image_id in entries))))
    return tuple(leaks)


def class_balance(columns: Mapping[str, Sequence]) -> tuple[Balance, ...]:
    tallies: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for dataset, split, grade in zip(columns["dataset"], columns["split"], columns["grade"], strict=True):
        tallies[dataset, split][grade] += 1
    return tuple(
        Balance(dataset, split, (tally[0], tally[1], tally[2], tally[3], tally[4]), tally[None])
        for (dataset, split), tally in sorted(tallies.items())
    )


def drops(duplicates: Sequence[Duplicate], columns: Mapping[str, Sequence]) -> tuple[Drop, ...]:
    """What to leave out so that no picture repeats: the best protected row of each group stays.

    Test and external rows are never dropped. A group whose grades disagree keeps evaluation rows only, because
    nobody knows which of its labels is right.
    """
    row_of = {image_id: index for index, image_id in enumerate(columns["image_id"])}
    grade = {image_id: columns["grade"][index] for image_id, index in row_of.items()}
    split = {image_id: columns["split"][index] for image_id, index in row_of.items()}
    involved = sorted({image_id for pair in duplicates for image_id in (pair.a, pair.b)})
    groups: dict[str, list[str]] = defaultdict(list)
    linked = groups_of(involved, [None] * len(involved), [(pair.a, pair.b) for pair in duplicates])
    for image_id in involved:
        groups[linked[image_id]].append(image_id)
    found = []
    for inside in groups.values():
        # A graded row before an ungraded one of the same split, then by id.
        inside.sort(key=lambda i: (PROTECTION.index(split[i]), grade[i] is None, i))
        keeper = inside[0]
        conflict = len({grade[i] for i in inside} - {None}) > 1
        for image_id in inside:
            if split[image_id] in EVALUATION or (image_id == keeper and not conflict):
                continue
            other = keeper if image_id != keeper else inside[1]
            found.append(Drop(image_id, other, "conflicting labels" if conflict else "duplicate"))
    return tuple(sorted(found, key=lambda drop: drop.image_id))


def audit(
    table: pa.Table, image_of: Callable[[str], bytes] | None = None, on_event: Event = lambda event: None
) -> Audit:
    """Audit rows of schema.REAL.

    A run larger than memory leaves the `image` column out of `table` and gives `image_of(image_id) -> encoded bytes`.
    """
    names = ("image_id", "dataset", "split", "patient_id", "grade", "stratum", "width", "height", "sha256", "phash")
    columns: dict[str, list] = {name: table.column(name).to_pylist() for name in names}
    for name in ("width", "height"):
        source = table.column(f"source_{name}").to_pylist()
        columns[name] = [there or stored for there, stored in zip(source, columns[name], strict=True)]
    columns["border"] = table.column("source_border").to_pylist()
    columns["group"] = [
        patient or image_id for patient, image_id in zip(columns["patient_id"], columns["image_id"], strict=True)
    ]

    def image_at(index: int) -> bytes:
        if image_of is not None:
            return image_of(columns["image_id"][index])
        return table.column("image")[index].as_py()

    duplicates = describe(find_pairs(columns["sha256"], columns["phash"], image_at, on_event), columns)
    return Audit(
        num_images=table.num_rows,
        duplicates=duplicates,
        patient_leaks=patient_leaks(columns),
        shortcuts=audited_shortcuts(columns, image_at, on_event),
        balance=class_balance(columns),
        duplicates_to_drop=drops(duplicates, columns),
    )
