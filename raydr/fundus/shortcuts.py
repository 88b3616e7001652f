"""How well something that is not the retina predicts the grade: source, file name, size, border, mean colour.

A grader that can read the source off the picture learns the source instead of the disease. Each feature family alone
goes through a small decision tree, cross-validated; chance comes from the same trees on shuffled grades.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    BaseCrossValidator,
    GroupKFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.tree import DecisionTreeClassifier

from raydr.fundus.field_of_view import BLACK, border
from raydr.grades import NUM_GRADES
from raydr.identity import rng_of
from raydr.images import decode

NUM_SHUFFLES = 20
NUM_FOLDS = 5
# A shortcut must beat the luckiest shuffle by three points and the mean of the shuffles by three standard deviations.
MARGIN = 0.03
DEVIATIONS = 3
# Fewer images prove nothing: on 45 a tree was right by luck alone with .80 on two classes.
LEAST_IMAGES = 100
# Photographs looked at per data set for border and colour: 3,000 settle a balanced accuracy to about a point.
MAX_LOOKED_AT = 3000
# Splits that nothing is trained or chosen on.
EVALUATION = ("test", "external")
# A source is called telling where at least 20 photographs of it leave one grade, or two or three next to each other,
# next to alone: FGADR's files that end in _3 hold grades 3 and 4.
LEAST_IN_SOURCE = 20
NEARLY_ALL = 0.95
MOST_GRADES = 3


@dataclass(frozen=True)
class Shortcut:
    """What one feature family tells about the grade."""

    dataset: str
    feature: str  # stratum, name family, size, border, mean colour, all
    task: str  # "grade" (0-4), "any DR" (0 against 1-4) or "severe" (0-2 against 3-4)
    balanced_accuracy: float
    chance: float  # mean over shuffled grades
    luckiest_shuffle: float
    num_images: int
    found: bool
    explanation: str  # sources that hold (nearly) one grade only; "" where there are none


def name_family(image_id: str) -> str:
    """Shape of a file name: `DDR/007-0004-000` -> `9-9-9`, `DDR/20170413102628830` -> `9`, `FGADR/0000_3` -> `9_3`.

    Runs of digits become 9 and mixed words x, but a short last part stays: sites and eyes are written there.
    """
    parts = re.split(r"([^0-9a-zA-Z]+)", image_id.rsplit("/", 1)[-1].lower())

    def shape(index: int, part: str) -> str:
        if index == len(parts) - 1 and index > 0 and len(part) <= 2:
            return part
        if part.isdigit():
            return "9"
        if re.fullmatch(r"[a-z]{0,8}", part) or index % 2:
            return part
        prefixed = re.fullmatch(r"([a-z]{1,8})\d+", part)
        return f"{prefixed[1]}9" if prefixed else "x"

    return "".join(shape(index, part) for index, part in enumerate(parts))


def one_hot(values: Sequence[str | None]) -> np.ndarray:
    """(N, K) indicator columns of the values that at least 1 % of the rows share; rare ones have none set."""
    counts = Counter(values)
    kept = sorted(str(value) for value, count in counts.items() if value is not None and count >= 0.01 * len(values))
    return np.array([[value == name for name in kept] for value in values], dtype=float).reshape(len(values), -1)


def mean_colour(pixels: np.ndarray) -> list[float]:
    """Mean RGB of the lit part of uint8 RGB (H, W, 3)."""
    lit = pixels[pixels.max(axis=2) >= BLACK]
    return lit.mean(axis=0).tolist() if lit.size else [0.0, 0.0, 0.0]


def fold_indices(targets: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation folds with patients kept together; stratified where the rarest class allows it."""
    num_groups = len(np.unique(groups))
    folds = min(NUM_FOLDS, num_groups)
    splitter: BaseCrossValidator
    if np.bincount(targets)[np.unique(targets)].min() < folds:
        splitter = GroupKFold(folds)
    elif num_groups == len(groups):
        # One photograph a patient: the grouped splitter would do the same in a hundred times the time.
        return list(StratifiedKFold(folds, shuffle=True, random_state=0).split(targets[:, None], targets))
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    return list(splitter.split(targets[:, None], targets, groups))


def predicted(features: np.ndarray, targets: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Cross-validated balanced accuracy of a depth-4 tree with balanced classes."""
    tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=5, class_weight="balanced", random_state=0)
    return float(balanced_accuracy_score(targets, cross_val_predict(tree, features, targets, cv=folds)))


# (lowest, highest) grade, the fewest grades first; neighbours only, since that is how sources are collected.
RANGES = [(low, low + more) for more in range(MOST_GRADES) for low in range(NUM_GRADES - more)]


def telling_sources(names: Sequence[str | None], grades: np.ndarray) -> str:
    """Sentences such as "2511 of 2511 'timestamp' images are grade 0, 30 % of the rest"; the fewest grades that do."""
    sentences = []
    values = np.array([str(name) for name in names])
    for name, count in sorted(Counter(values.tolist()).items()):
        inside = values == name
        if count < LEAST_IN_SOURCE or inside.all():
            continue
        here, elsewhere = (np.bincount(grades[mask], minlength=5) / mask.sum() for mask in (inside, ~inside))
        for low, high in RANGES:
            shares = [share[low : high + 1].sum() for share in (here, elsewhere)]
            if shares[0] >= NEARLY_ALL:
                held = f"grade {low}" if low == high else f"grades {low}-{high}"
                if shares[1] < NEARLY_ALL - 0.1:
                    number = round(shares[0] * count)
                    sentences.append(f"{number} of {count} '{name}' images are {held}, {shares[1]:.0%} of the rest")
                break
    return "; ".join(sentences)


def measure(
    dataset: str,
    feature: str,
    features: np.ndarray,
    grades: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str | None] | None = None,
) -> list[Shortcut]:
    """The three tasks for one feature family of one data set; none where nothing varies."""
    found: list[Shortcut] = []
    if len(grades) < LEAST_IMAGES:
        return found
    # A source of severe eyes alone (FGADR's _3) says little about which of five grades, and nearly all about severity.
    tasks = {"grade": grades, "any DR": (grades > 0).astype(int), "severe": (grades >= 3).astype(int)}
    for task, targets in tasks.items():
        if (
            len(np.unique(targets)) < 2
            or len(np.unique(groups)) < 2
            or not features.size
            or not np.ptp(features, 0).any()
        ):
            continue
        folds = fold_indices(targets, groups)
        rng = rng_of("shortcut", dataset, feature, task)
        score = predicted(features, targets, folds)
        shuffles = [predicted(features, rng.permutation(targets), folds) for _ in range(NUM_SHUFFLES)]
        luckiest, chance = max(shuffles), float(np.mean(shuffles))
        found.append(
            Shortcut(
                dataset=dataset,
                feature=feature,
                task=task,
                balanced_accuracy=round(score, 4),
                chance=round(chance, 4),
                luckiest_shuffle=round(luckiest, 4),
                num_images=len(targets),
                found=score > max(luckiest + MARGIN, chance + DEVIATIONS * float(np.std(shuffles))),
                explanation=telling_sources(names, grades) if names is not None else "",
            )
        )
    return found


def shortcuts_of(
    dataset: str, columns: Mapping[str, Sequence], colours: np.ndarray, borders: np.ndarray
) -> list[Shortcut]:
    """Every feature family of one data set's graded rows, alone and all together.

    Args:
        columns: lists `image_id, grade, stratum, group, width, height`, one entry a row.
        colours: float (N, 3), as `mean_colour` gives them; borders: float (N, 3), as `field_of_view.border` does.
    """
    grades = np.asarray(columns["grade"], dtype=int)
    groups = np.unique(np.asarray(columns["group"], dtype=str), return_inverse=True)[1]
    families = [name_family(image_id) for image_id in columns["image_id"]]
    size = np.array([columns["width"], columns["height"]], dtype=float).T
    size = np.column_stack([size, size[:, 0] / size[:, 1]])
    named = {
        "stratum": (one_hot(columns["stratum"]), columns["stratum"]),
        "name family": (one_hot(families), families),
        "size": (size, None),
        "border": (borders, None),
        "mean colour": (colours, None),
    }
    found = [
        entry
        for name, (features, names) in named.items()
        for entry in measure(dataset, name, features, grades, groups, names)
    ]
    together = np.column_stack([features for features, _ in named.values()])
    return [*found, *measure(dataset, "all", together, grades, groups)]


def audited_shortcuts(
    columns: Mapping[str, Sequence], image_of: Callable[[int], bytes], on_event: Callable[[dict], None]
) -> tuple[Shortcut, ...]:
    """Shortcuts inside each data set (its trainable graded rows, else all graded ones), and between data sets."""
    order = sorted(range(len(columns["grade"])), key=lambda index: columns["image_id"][index])
    graded = [index for index in order if columns["grade"][index] is not None]
    trainable = [index for index in graded if columns["split"][index] not in EVALUATION]
    found: list[Shortcut] = []
    for dataset in sorted({columns["dataset"][index] for index in graded}):
        inside = [index for index in trainable if columns["dataset"][index] == dataset]
        inside = inside or [index for index in graded if columns["dataset"][index] == dataset]
        if len(inside) > MAX_LOOKED_AT:
            rng = rng_of("audit", dataset)
            inside = [inside[k] for k in sorted(rng.choice(len(inside), MAX_LOOKED_AT, replace=False))]
        looks = []
        for done, index in enumerate(inside, 1):
            pixels = decode(image_of(index))
            # A crop makes all borders alike: what a camera left is known from before it. Phantoms never had another.
            looks.append((mean_colour(pixels), columns["border"][index] or border(pixels)))
            if done % 200 == 0 or done == len(inside):
                on_event({"stage": "audit", "what": f"{dataset} pictures", "done": done, "total": len(inside)})
        colours, borders = np.array([look[0] for look in looks]), np.array([look[1] for look in looks])
        found += shortcuts_of(
            dataset, {name: [values[i] for i in inside] for name, values in columns.items()}, colours, borders
        )
    names = [columns["dataset"][index] for index in trainable]
    if len(set(names)) > 1:
        grades = np.array([columns["grade"][index] for index in trainable])
        groups = np.unique([columns["group"][index] for index in trainable], return_inverse=True)[1]
        found += measure("all data sets", "data set", one_hot(names), grades, groups, names)
    return tuple(found)
