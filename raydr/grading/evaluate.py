"""What a trained grader says of a table of photographs, and graders that travel without a run.

from raydr.grading.evaluate import load_grader
grader = load_grader("exported")
probabilities = grader("photograph.png")
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raydr import images, metrics, schema
from raydr.grades import NAMES, NUM_GRADES
from raydr.grading.backbones import MEAN, STD, GradingModel
from raydr.grading.calibration import temper
from raydr.grading.ensemble import Meta, load_member, save_member
from raydr.grading.training import Images, predict


def prediction_rows(
    trial_id: str, split: str, image_ids: Sequence[str], grades: np.ndarray, probabilities: np.ndarray
) -> pa.Table:
    """Rows of schema.PREDICTIONS for photographs with `grades` (n,) and `probabilities` (n, 5)."""
    assert probabilities.shape == (len(image_ids), NUM_GRADES), probabilities.shape
    assert len(grades) == len(image_ids), (len(grades), len(image_ids))
    probabilities = np.asarray(probabilities, dtype=np.float32)
    table = pa.table(
        {
            "trial_id": pa.array([trial_id] * len(image_ids), pa.string()),
            "split": pa.array([split] * len(image_ids), pa.string()),
            "image_id": pa.array(list(image_ids), pa.string()),
            "grade": pa.array(np.asarray(grades, dtype=np.int8)),
            "prediction": pa.array(probabilities.argmax(axis=1).astype(np.int8)),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
        }
    )
    return schema.conform(table, schema.PREDICTIONS)


def evaluate_grader(
    model: GradingModel,
    array: Images,
    rows: np.ndarray,
    image_ids: Sequence[str],
    grades: np.ndarray,
    *,
    trial_id: str,
    split: str,
    batch: int | None = None,
) -> tuple[pa.Table, dict[str, float]]:
    """Predictions (schema.PREDICTIONS) and every metric of `metrics.summary` for `array[rows]`."""
    probabilities = predict(model, array, rows, batch)
    table = prediction_rows(trial_id, split, image_ids, grades, probabilities)
    return table, metrics.summary(np.asarray(grades), probabilities.argmax(axis=1), probabilities)


@dataclass(frozen=True)
class LoadedGrader:
    """A grader from a folder; call it with one photograph or several."""

    model: GradingModel
    meta: Meta

    def __call__(
        self, photographs: str | Path | np.ndarray | Sequence[str | Path | np.ndarray], calibrated: bool = False
    ) -> np.ndarray:
        """Probability of each grade 0-4: float32 (5,) for one photograph, (n, 5) for several.

        A photograph is a file, or uint8 pixels (H, W, 3): the field of view, cropped and padded to a
        square (`raydr.fundus.preprocess.prepare` does that), of any side. `calibrated` divides the logits
        by the temperature fitted on held-out photographs.
        """
        if isinstance(photographs, str | Path | np.ndarray):
            return self([photographs], calibrated)[0]
        batch = np.stack([_pixels(item, self.model.px) for item in photographs])
        probabilities = predict(self.model, batch, np.arange(len(batch)))
        return temper(probabilities, self.meta.temperature) if calibrated else probabilities


def load_grader(folder: str | Path, device: str | torch.device = "cpu") -> LoadedGrader:
    """The grader in `folder`: an export, an ensemble member or a saved trial. Raises MissingInput."""
    return LoadedGrader(*load_member(folder, device))


def export_grader(source: str | Path, target: str | Path, title: str, notes: str = "", phantom: bool = False) -> Path:
    """Copy the grader in `source` to `target` with a model card, README.md; returns `target`.

    `notes` joins the card as written (training data, licence). `phantom` states that no patient's
    photograph was involved.
    """
    model, meta = load_member(source)
    folder = save_member(target, model, meta)
    (folder / "README.md").write_text(model_card(meta, title, notes, phantom))
    return folder


def model_card(meta: Meta, title: str, notes: str, phantom: bool) -> str:
    grader = meta.grader
    values = "\n".join(f"| {key} | {value:.4f} |" for key, value in sorted(meta.validation.items()))
    settings = "\n".join(f"| {key} | {value} |" for key, value in dataclasses.asdict(grader).items())
    seen = f"{len(meta.trained_on)} photographs (content fingerprint `{meta.data_fingerprint}`)"
    if meta.provenance != "trained":
        seen = "unknown: these weights were imported, so nothing shows which photographs they have seen"
    warning = (
        "Trained on procedural phantoms: it tests software and says nothing about patients.\n\n" if phantom else ""
    )
    scale = ", ".join(f"{grade} {name}" for grade, name in enumerate(NAMES))
    return f"""# {title}

{warning}Grades colour fundus photographs on the ICDR scale ({scale}).
For research; not a medical device.

```python
from raydr.grading.evaluate import load_grader
grader = load_grader("path/to/this/folder")
probabilities = grader("photograph.png")  # float32 (5,)
```

Input: the field of view, cropped and padded with black to a square; any side, resized to {grader.px} px.
The model takes RGB in [0, 1] and normalises itself (mean {MEAN}, std {STD}).

Trained on: {seen}.
Temperature for calibrated probabilities: {meta.temperature:.4f} (`grader(photograph, calibrated=True)`).

{notes}

## Held-out metrics

| metric | value |
|---|---|
{values or "| none recorded | |"}

## Configuration

| field | value |
|---|---|
{settings}
| seed | {meta.seed} |
"""


def _pixels(item: str | Path | np.ndarray, px: int) -> np.ndarray:
    data = images.encode(item) if isinstance(item, np.ndarray) else Path(item).read_bytes()
    return images.decode(data, px)
