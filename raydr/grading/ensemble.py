"""Graders that judge samples: members on disk, their probabilities, scores, and what they have seen.

{ensemble}/{member}/model.safetensors    weights
{ensemble}/{member}/grader.json          `Meta`: configuration, folds, data, temperature, validation
"""

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydr import config
from raydr.errors import DamagedData, LeakageError, MissingInput
from raydr.grades import NUM_GRADES
from raydr.grading import pixels
from raydr.grading.backbones import GradingModel, build
from raydr.identity import canonical

FORMAT = 1
WEIGHTS, META = "model.safetensors", "grader.json"


@dataclass(frozen=True)
class Meta:
    """All that is known of a grader beside its weights."""

    name: str
    grader: config.Grader
    seed: int
    # "score" (A, in the loop), "audit" (B, never), "trial" (a sweep's grader).
    role: str = "score"
    # Outer fold that must stay unseen (null = official splits); inner fold held out for calibration.
    fold: int | None = None
    inner_fold: int | None = None
    # "trained" here, so `seen` is complete, or "imported": nobody can say what it has seen.
    provenance: str = "trained"
    # Hash of the sorted content digests of all photographs trained or calibrated on.
    data_fingerprint: str = ""
    # 64-bit hashes of the image ids trained on, and calibrated on; sorted uint64.
    trained_on: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    calibrated_on: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    # Divides the logits where calibrated probabilities are wanted; scores use 1, as published.
    temperature: float = 1.0
    # Metrics on the held-out inner fold.
    validation: dict[str, float] = dataclasses.field(default_factory=dict)


def hash_ids(image_ids: Iterable[str]) -> np.ndarray:
    """Sorted uint64 hashes of image ids: 8 bytes a photograph; a false match has probability n m / 2^64."""
    hashes = [
        int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little") for image_id in image_ids
    ]
    return np.unique(np.array(hashes, dtype=np.uint64))


def data_fingerprint(sha256s: Iterable[str]) -> str:
    """16 hex digits over the sorted content digests: equal for equal sets of photographs."""
    return hashlib.blake2b("".join(sorted(set(sha256s))).encode(), digest_size=8).hexdigest()


def check_leakage(meta: Meta, forbidden: Iterable[str], what: str = "evaluated") -> None:
    """Raise LeakageError if `meta`'s grader was trained or calibrated on one of the image ids `forbidden`.

    `what` says in the message what is forbidden, e.g. "test" or "fold 2 validation". An imported grader
    raises always: nothing proves what it has not seen.
    """
    if meta.provenance != "trained":
        raise LeakageError(
            f"ensemble member {meta.name!r} was imported and cannot show that it never saw the {what} photographs: "
            f"use it in paper mode only (`raydr rescore --paper-mode`)"
        )
    hidden = hash_ids(forbidden)
    for verb, seen in (("trained", meta.trained_on), ("calibrated", meta.calibrated_on)):
        common = np.intersect1d(hidden, seen, assume_unique=True)
        if len(common):
            fold = "" if meta.fold is None else f" of fold {meta.fold}"
            inner = "" if meta.inner_fold is None else f" (inner fold {meta.inner_fold})"
            raise LeakageError(
                f"ensemble member {meta.name!r}{fold}{inner} was {verb} on {len(common)} of {len(hidden)} {what} "
                f"photographs: train the ensemble without them"
            )


def save_member(folder: str | Path, model: GradingModel, meta: Meta) -> Path:
    """Write weights, then `grader.json`, each by an atomic rename; a folder with both is complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    temporary = folder / f"{WEIGHTS}.part"
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / WEIGHTS)
    record = dataclasses.asdict(meta) | {
        "format": FORMAT,
        "trained_on": base64.b64encode(meta.trained_on.astype("<u8").tobytes()).decode(),
        "calibrated_on": base64.b64encode(meta.calibrated_on.astype("<u8").tobytes()).decode(),
    }
    temporary = folder / f"{META}.part"
    temporary.write_text(json.dumps(json.loads(canonical(record)), indent=1, sort_keys=True))
    os.replace(temporary, folder / META)
    return folder


def load_meta(folder: str | Path) -> Meta:
    """Raises MissingInput where there is no finished grader, DamagedData where its record is no such one."""
    path = Path(folder) / META
    if not path.is_file():
        raise MissingInput(f"no grader in {folder}: train one with `raydr ensemble`")
    try:
        record = json.loads(path.read_text())
        record.pop("format")
        for key in ("trained_on", "calibrated_on"):
            record[key] = np.frombuffer(base64.b64decode(record[key]), dtype="<u8").astype(np.uint64)
        return Meta(**record | {"grader": config.Grader(**record["grader"])})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DamagedData(
            f"{path} is no record of a grader of this version ({reason}): train the ensemble again"
        ) from error


def load_member(folder: str | Path, device: str | torch.device = "cpu") -> tuple[GradingModel, Meta]:
    """The model in eval mode on `device`, and its record; equal bits to the model that was saved."""
    meta = load_meta(folder)
    # The published weights that training started from are not needed to overwrite them.
    model = build(dataclasses.replace(meta.grader, pretrained=False, weights=""), seed=0)
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise MissingInput(f"no weights beside {folder}/{META}: train the ensemble again")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise DamagedData(f"{path} is no readable safetensors file ({error}): train the grader again") from error
    problem = model.load_state_dict(state, strict=False)
    if problem.missing_keys or problem.unexpected_keys:
        name = (problem.missing_keys + problem.unexpected_keys)[0]
        raise DamagedData(f"{path} does not hold the weights that its record describes ({name}): train again")
    return model.to(device).eval(), meta


class Ensemble:
    """Members of one role, ready to judge; their order is that of their folders' names."""

    def __init__(self, members: Sequence[tuple[GradingModel, Meta]], device: str | torch.device = "cpu") -> None:
        assert members, "an ensemble needs a member"
        self.models = [model.to(device).eval() for model, _ in members]
        self.metas = [meta for _, meta in members]
        self.device = torch.device(device)

    @classmethod
    def load(cls, folder: str | Path, role: str | None = "score", device: str | torch.device = "cpu") -> "Ensemble":
        """The members under `folder` with this role (None: all). Raises MissingInput if there is none."""
        # Names that begin with a dot are downloads that another process of the node has not finished, or died in.
        folders = sorted(path.parent for path in Path(folder).glob(f"[!.]*/{META}"))
        chosen = [path for path in folders if role is None or load_meta(path).role == role]
        if not chosen:
            raise MissingInput(f"no ensemble member of role {role!r} in {folder}: train them with `raydr ensemble`")
        return cls([load_member(path, device) for path in chosen], device)

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Raw softmax of every member: float32 (B, M, 5).

        `images` are uint8 (B, H, W, 3), or float (B, 3, H, W) in [0, 1] on any device; they are resized
        on the ensemble's device where a member's side differs, and judged `pixels.pass_size` at a time.
        """
        size = pixels.pass_size(max(model.px for model in self.models))
        parts = [self._pass(images[start : start + size]) for start in range(0, max(1, len(images)), size)]
        return np.concatenate(parts)

    def _pass(self, images: np.ndarray | Tensor) -> np.ndarray:
        if isinstance(images, np.ndarray):
            assert (images.dtype, images.ndim, images.shape[-1]) == (np.uint8, 4, 3), (images.dtype, images.shape)
            floats = pixels.to_input(torch.from_numpy(np.ascontiguousarray(images)), images.shape[1], self.device)
        else:
            assert (images.is_floating_point(), images.ndim, images.shape[1]) == (True, 4, 3), images.shape
            floats = images.to(self.device, torch.float32, memory_format=torch.channels_last)
        sized = {px: pixels.resize(floats, px) for px in {model.px for model in self.models}}
        outputs = [F.softmax(model(sized[model.px]).float(), dim=1) for model in self.models]
        return torch.stack(outputs, dim=1).cpu().numpy()


def score(probabilities: np.ndarray, grade: int | np.ndarray) -> np.ndarray:
    """Semantic score (paper.md 4): mean over members of the intended grade's probability; float32 (B,).

    `probabilities` (B, M, 5); `grade` is one intended grade or one per image (B,).
    """
    assert (probabilities.ndim, probabilities.shape[-1]) == (3, NUM_GRADES), probabilities.shape
    grades = np.broadcast_to(np.asarray(grade, dtype=np.int64), len(probabilities))
    return probabilities[np.arange(len(probabilities)), :, grades].mean(axis=1).astype(np.float32)
