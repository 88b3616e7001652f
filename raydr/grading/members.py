"""One ensemble member from photographs to record: inner fold held out, trained, calibrated on it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from raydr import config, metrics
from raydr.errors import UserError
from raydr.grading import calibration, training
from raydr.grading.ensemble import Meta, data_fingerprint, hash_ids
from raydr.identity import seed_of


def train_member(
    name: str,
    member: config.Member,
    num_inner_folds: int,
    images: training.Images,
    rows: np.ndarray,
    grades: np.ndarray,
    image_ids: Sequence[str],
    sha256s: Sequence[str],
    *,
    seed: int,
    fold: int | None = None,
    groups: Sequence[str | None] | None = None,
    device: str | torch.device = "cpu",
    on_event: Callable[[dict[str, Any]], None] | None = None,
    num_threads: int | None = None,
) -> tuple[training.Trained, Meta]:
    """Train `member` on the rows outside its inner fold, and measure and calibrate it on that fold.

    All sequences have one entry per training photograph of the evaluated `fold` (n,): positions into
    `images`, grades, ids, content digests and, as `groups`, patients. `seed` is the run's: it fixes the
    inner folds, equal for all members, and with `member.seed` the weights. Raises UserError where a
    fold would leave a grade without a training or a held-out photograph.
    """
    rows, grades = np.asarray(rows, dtype=np.int64), np.asarray(grades, dtype=np.int64)
    folds = calibration.inner_folds(grades, num_inner_folds, seed, list(groups) if groups is not None else None)
    held = folds == member.inner_fold
    for part, mask in (("train on", ~held), ("calibrate on", held)):
        absent = sorted(set(grades.tolist()) - set(grades[mask].tolist()))
        if absent:
            raise UserError(
                f"inner fold {member.inner_fold} of {num_inner_folds} leaves no photograph of grade {absent[0]} to "
                f"{part}: lower ensemble.inner_folds"
            )
    trained = training.train(
        member.grader,
        images,
        rows[~held],
        grades[~held],
        seed=seed_of("member", seed, member.seed),
        device=device,
        validation=(rows[held], grades[held]),
        on_event=on_event,
        num_threads=num_threads,
    )
    probabilities = training.predict(trained.model, images, rows[held])
    temperature = calibration.fit_temperature(probabilities, grades[held])
    tempered = calibration.temper(probabilities, temperature)
    values = metrics.summary(grades[held], probabilities.argmax(axis=1), probabilities)
    values["expected_calibration_error_tempered"] = metrics.expected_calibration_error(grades[held], tempered)
    meta = Meta(
        name=name,
        grader=member.grader,
        seed=member.seed,
        role=member.role,
        fold=fold,
        inner_fold=member.inner_fold,
        data_fingerprint=data_fingerprint(sha256s),
        trained_on=hash_ids(image_id for image_id, out in zip(image_ids, held, strict=True) if not out),
        calibrated_on=hash_ids(image_id for image_id, out in zip(image_ids, held, strict=True) if out),
        temperature=temperature,
        # nan (no verdict of a grade, say) has no place in JSON: left out.
        validation={key: float(value) for key, value in values.items() if not np.isnan(value)},
    )
    return trained, meta
