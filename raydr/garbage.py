"""What a run no longer needs: found by what supersedes it, and deleted on request.

Everything here can be lost without losing a committed row, a weight or a photograph; the stage that misses it makes
it again. It is for a run at rest: hold the driver's lock, or a shard between its bytes and its record looks orphaned.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raydr import shards
from raydr.backends import connect
from raydr.checks import TABLES
from raydr.config import Recipe
from raydr.ledger import ATTEMPTS, COMMITS, stem
from raydr.storage import DONE, Run

# Folders of weights: one `_done.json` each, this many parts below the run.
UPLOADS = {"graders": 3, "imported": 3, "generators": 2}
FINETUNE, SWEEP, BRANCHES, CACHE = "_ray/finetune", "_ray/sweep", "branches", "cache"
# A generator's snapshot, below its fit: plain-g1-0123abcd@00000080-4f2e/state.pt, or FOLDER/plain-g1-0123abcd.pt.
SNAPSHOT = re.compile(r"(?:([^/@]+)@\d+-[0-9a-f]+/.*|.*?([^/]+)\.pt)")
# Temporary files younger than this may belong to a worker that has not noticed the end of its driver.
TEMPORARY_SECONDS = 3600.0


@dataclass(frozen=True)
class Waste:
    """Something to delete: an object, a folder with all below it, or, hidden from listings, a local file."""

    what: str
    key: str
    bytes: int
    is_folder: bool = False
    path: Path | None = None


def find(run: Run, recipe: Recipe, caches: bool = False, seconds: float = TEMPORARY_SECONDS) -> list[Waste]:
    """All that `run` can do without, sorted by what it is; with `caches` also what was decoded or encoded once.

    Raises DamagedData where a commit record cannot be read: `raydr repair` comes first.
    """
    found = [*_attempts(run), *_orphans(run), *_uploads(run)]
    found += [Waste("temporary files", path.name, path.stat().st_size, path=path) for path in run.leftovers(seconds)]
    found += [*_snapshots(run), *_branches(run, recipe), *_experiments(run)]
    if caches:
        found += _folders("caches", run, CACHE)
    return sorted(found, key=lambda waste: (waste.what, waste.key))


def remove(run: Run, found: list[Waste], progress: Callable[[int], None] | None = None) -> None:
    """Delete what `find` found; anything that is gone already is passed over."""
    with ThreadPoolExecutor(1 if run.local is not None else 32) as pool:
        for number, _ in enumerate(pool.map(lambda waste: _remove(run, waste), found), 1):
            if progress is not None:
                progress(number)
    if run.local is not None:
        for folder in {ATTEMPTS, *UPLOADS, FINETUNE, SWEEP, BRANCHES, CACHE}:
            _prune(run.local / folder)


def _remove(run: Run, waste: Waste) -> None:
    if waste.path is not None:
        waste.path.unlink(missing_ok=True)
    elif not waste.is_folder:
        run.delete(waste.key)
    elif run.local is not None:
        shutil.rmtree(run.local / waste.key, ignore_errors=True)
    else:
        # Not by Run.delete: Ray and Tune name objects as a run never would.
        backend = connect(run.url)
        for key, _ in backend.list(waste.key):
            backend.delete(key)


def _prune(folder: Path) -> None:
    """Remove the empty folders below `folder`, and itself if it is one."""
    for parent, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)


def _size(run: Run, folder: str) -> int:
    if run.local is None:
        return sum(size for _, size in connect(run.url).list(folder))
    # With hidden files, which Run.list leaves out.
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(run.local / folder)
        for name in names
    )


def _children(run: Run, prefix: str) -> list[str]:
    """Names of the folders right below `prefix`, also of those that hold hidden files alone."""
    if run.local is not None:
        folder = run.local / prefix
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    names = {key.removeprefix(f"{prefix}/").split("/")[0] for key, _ in connect(run.url).list(prefix)}
    return sorted(names)


def _folders(what: str, run: Run, prefix: str) -> list[Waste]:
    keys = [f"{prefix}/{name}" for name in _children(run, prefix)]
    return [Waste(what, key, _size(run, key), is_folder=True) for key in keys]


def _attempts(run: Run) -> Iterator[Waste]:
    """Starts of shards that are committed; of a quarantined one they are the evidence, and stay."""
    done = {f"{ATTEMPTS}/{stem(key)}" for key in shards.commits(run)}
    for key, size in run.list(ATTEMPTS):
        if key.rpartition("/")[0] in done:
            yield Waste("starts of finished shards", key, size)


def _orphans(run: Run) -> Iterator[Waste]:
    """Shards without a commit record."""
    recorded = {name.removeprefix(f"{COMMITS}/").removesuffix(".json") for name, _ in run.list(COMMITS)}
    for table in TABLES:
        for key, size in run.list(table):
            if key.endswith(".parquet") and stem(key) not in recorded:
                yield Waste("shards without a record", key, size)


def _uploads(run: Run) -> Iterator[Waste]:
    """Weights whose upload was cut: nobody trusts them, and the upload that follows writes them anew."""
    for prefix, num_parts in UPLOADS.items():
        objects = run.list(prefix)
        whole = {str(PurePosixPath(key).parent) for key, _ in objects if key.endswith(f"/{DONE}")}
        for key, size in objects:
            folder = "/".join(key.split("/")[:num_parts])
            if folder != key and folder not in whole:
                yield Waste("uploads that were cut", key, size)


def _finished(run: Run) -> dict[str, dict[str, str]]:
    """{id: kind and branch_id} of the generators that are stored whole."""
    ids = [key.split("/")[1] for key, _ in run.list("generators") if key.endswith(f"/{DONE}")]
    found = {}
    for name in ids:
        record = run.read_json(f"generators/{name}/generator.json")
        found[name] = {"kind": record["kind"], "branch_id": record["branch_id"]}
    return found


def _snapshots(run: Run) -> Iterator[Waste]:
    """Fits whose generators are all stored, and of the others the snapshots of those that are."""
    finished = _finished(run)
    for name in _children(run, FINETUNE):
        fit = f"{FINETUNE}/{name}"
        matches = [SNAPSHOT.fullmatch(key.removeprefix(f"{fit}/")) for key, _ in run.list(fit)]
        of_fit = {match[1] or match[2] for match in matches if match}
        if of_fit <= finished.keys():
            yield Waste("snapshots of finished generators", fit, _size(run, fit), is_folder=True)
            continue
        for child in _children(run, fit):
            if child.split("@")[0] in finished and "@" in child:
                key = f"{fit}/{child}"
                yield Waste("snapshots of finished generators", key, _size(run, key), is_folder=True)


def _branches(run: Run, recipe: Recipe) -> Iterator[Waste]:
    """Checkpoints that generators branch from, once every kind of the recipe that would is stored."""
    branching = {kind for kind in recipe.finetune.kinds if kind != "plain"}
    finished = _finished(run).values()
    for name in _children(run, BRANCHES):
        made = {each["kind"] for each in finished if each["branch_id"] == name}
        if branching and branching <= made:
            key = f"{BRANCHES}/{name}"
            yield Waste("branch points that all have left", key, _size(run, key), is_folder=True)


def _experiments(run: Run) -> list[Waste]:
    """Tune's own files, once every planned trial is committed: its results are in `trials`."""
    if not run.exists("trials/plan.json"):
        return []
    done = shards.commits(run, "trials/results")
    planned = run.read_json("trials/plan.json")["trial_ids"]
    if any(f"trials/results/{trial_id}.parquet" not in done for trial_id in planned):
        return []
    return _folders("experiments of finished sweeps", run, SWEEP)
