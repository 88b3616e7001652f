"""Another ensemble's scores of images that exist: which members, what they may not have seen, one shard's scores."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydr import lineage, metrics, schema, shards
from raydr.errors import DamagedData, MissingInput
from raydr.grading.ensemble import META, WEIGHTS, Ensemble, Meta, load_member, load_meta, score
from raydr.identity import fingerprint, sha256
from raydr.images import decode
from raydr.ledger import Commit, damaged
from raydr.storage import DONE, Run

# Where the members of an ensemble from elsewhere are kept in the run, so that every node finds them.
IMPORTED = "imported"
COLUMNS = ["sample_id", "grade", "image"]


@dataclass(frozen=True)
class Judges:
    """Members of one role: `ensemble_id` names their scores, `prefixes` are their folders inside the run."""

    ensemble_id: str
    prefixes: tuple[str, ...]


def find(run: Run, ensemble: str, role: str, cache: Path) -> Judges:
    """The judges that `--ensemble` means: the id of an ensemble of this run, or a folder of members.

    A folder is copied into the run, under an id made from its weights. `role` is score, audit or all: other members
    of an ensemble than its `score` ones get an id of their own. Raises MissingInput where there are none.
    """
    name = _own(run, ensemble)
    if name is not None:
        prefixes = [key.removesuffix(f"/{DONE}") for key, _ in run.list(f"graders/{name}") if key.endswith(f"/{DONE}")]
        kept = tuple(prefix for prefix in prefixes if _has_role(load_meta(run.folder(prefix, cache)), role))
        if not kept:
            raise MissingInput(f"graders/{name} in {run.url} holds no finished member of role {role!r}: see --role")
        return Judges(name if role == "score" else f"{name}-{role}", kept)
    folders = sorted(path.parent for path in Path(ensemble).glob(f"[!.]*/{META}")) if "://" not in ensemble else []
    chosen = [folder for folder in folders if _has_role(load_meta(folder), role)]
    if not chosen:
        raise MissingInput(
            f"{ensemble} is neither an ensemble of {run.url} nor a folder of members of role {role!r} (FOLDER/*/{META})"
        )
    weights = [sha256((folder / name).read_bytes()) for folder in chosen for name in (META, WEIGHTS)]
    ensemble_id = f"i-{fingerprint('imported', weights)[:10]}"
    for folder in chosen:
        run.upload(folder, f"{IMPORTED}/{ensemble_id}/{folder.name}")
    return Judges(ensemble_id, tuple(f"{IMPORTED}/{ensemble_id}/{folder.name}" for folder in chosen))


def _own(run: Run, ensemble: str) -> str | None:
    """The id, where `ensemble` is one of the run's own, as an id or as its folder."""
    if "/" not in ensemble and run.list(f"graders/{ensemble}"):
        return ensemble
    if run.local is not None and Path(ensemble).absolute().parent == run.local / "graders":
        return Path(ensemble).name
    return None


def _has_role(meta: Meta, role: str) -> bool:
    return role in ("all", meta.role)


def metas(run: Run, judges: Judges, cache: Path) -> list[Meta]:
    return [load_meta(run.folder(prefix, cache)) for prefix in judges.prefixes]


def load(run: Run, judges: Judges, cache: Path, device: str = "cpu") -> Ensemble:
    return Ensemble([load_member(run.folder(prefix, cache), device) for prefix in judges.prefixes], device)


def plan(run: Run, judges: Judges) -> list[dict[str, Any]]:
    """One entry a committed shard of images: {key, scores, sha256, rows, fingerprint}."""
    return [
        {
            "key": key,
            "scores": lineage.scores_key(judges.ensemble_id, key),
            "sha256": record.sha256,
            "rows": record.rows,
            "fingerprint": fingerprint("scores", judges.ensemble_id, judges.prefixes, record.sha256),
        }
        for key, record in shards.commits(run, "synthetic").items()
    ]


def score_shard(run: Run, judges: Ensemble, ensemble_id: str, item: dict[str, Any]) -> Commit:
    """Judge the images of one shard of the plan, all at once as synthesis did, and commit their scores exactly once.

    Raises DamagedData where the shard is not the one that was committed.
    """
    data = run.read(item["key"])
    if sha256(data) != item["sha256"]:
        raise damaged(run, item["key"], "differs from its commit record")
    table = pq.read_table(io.BytesIO(data), columns=COLUMNS)
    try:
        pixels = np.stack([decode(image) for image in table["image"].to_pylist()])
    except OSError as error:
        raise DamagedData(f"{item['key']} in {run.url} holds an image that cannot be read ({error})") from None
    probabilities = judges.probabilities(pixels)
    rows = pa.table(
        {
            "sample_id": table["sample_id"],
            "ensemble_id": [ensemble_id] * table.num_rows,
            "probabilities": pa.array(probabilities.tolist(), schema.SCORES.field("probabilities").type),
            "score": score(probabilities, np.asarray(table["grade"])),
            "disagreement": metrics.disagreement(probabilities, np.asarray(table["grade"])),
        }
    )
    return shards.commit(run, item["scores"], rows, schema.SCORES, item["fingerprint"])
