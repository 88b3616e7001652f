"""A base model on many nodes: from the hub (or a folder of the driver) to the run once, from there to each node once.

    staging.prepare(recipe, run)                                  # on the driver, before a stage that loads the base
    base = load_base(staging.local(config.base, config.revision, run), ...)      # on a node

A hundred nodes that all ask the hub for 4 GB are throttled, and a tag that moves in between gives them different
weights. What is staged is kept with its revision and a content hash, and never fetched again.

    OUT/bases/{name}/       the files, with sizes and hashes
    OUT/bases/{name}.json   base, revision asked for, commit it stood for, content hash
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from raydr import terminal
from raydr.errors import DamagedData, UserError
from raydr.identity import fingerprint
from raydr.storage import Run

# What `load_base` reads, and no more: the hub's folder of Stable Diffusion 1.5 also holds 20 GB of duplicates.
WANTED = ("model_index.json", "scheduler/*.json", "tokenizer/*", "text_encoder/*", "vae/*", "unet/*")
UNWANTED = ("*.bin", "*.msgpack", "*.fp16.*", "*non_ema*", "*.onnx*", "*.h5", "*.ckpt")
SHIPPED = "phantom"


@dataclass(frozen=True)
class Staged:
    """What a run keeps of its base."""

    base: str
    # As the recipe names it; None = the hub's default branch.
    revision: str | None
    # The hub's commit that it stood for; None for a folder.
    commit: str | None
    # Hash over the names and SHA-256 of all files: equal content, equal hash, wherever it came from.
    content: str


def name_of(base: str, revision: str | None) -> str:
    """The folder in `OUT/bases` and in a node's cache."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", base.rstrip("/").rsplit("/", 1)[-1]).strip("-")[:40]
    return f"{words or 'base'}-{fingerprint('base', base, revision)[:8]}"


def is_needed(base: str, target: Run, num_nodes: int) -> bool:
    """A laptop's own cache or folder is near enough; the small base is on every node as part of the package."""
    return base != SHIPPED and (target.local is None or num_nodes > 1)


def prepare(base: str, revision: str | None, target: Run, num_nodes: int) -> Staged | None:
    """Stage `base` in the run, once; None where no staging is needed.

    Raises UserError where the hub or the folder cannot be read, DamagedData where another content is asked for under
    a name that the run has already.
    """
    key = f"bases/{name_of(base, revision)}"
    if target.exists(f"{key}.json"):
        return _record(target, key)
    if not is_needed(base, target, num_nodes):
        return None
    folder, commit = _source(base, revision)
    terminal.note(f"staging {base} into {target.url}, once for all nodes")
    target.upload(folder, key)
    content = _content(target, key)
    record = Staged(base, revision, commit, content)
    # Written last: nodes look for it. Of two drivers the first one's holds.
    target.create_json(f"{key}.json", asdict(record))
    return _record(target, key)


def local(base: str, revision: str | None, target: Run) -> str:
    """What `load_base` is to read on this node: the node's copy of a staged base, else `base` itself.

    One process of a node copies, the others wait for it. Raises DamagedData where the copy differs
    from what was staged.
    """
    key = f"bases/{name_of(base, revision)}"
    if base == SHIPPED or not target.exists(f"{key}.json"):
        return base
    if target.local is not None:  # on storage that the nodes share: the kernel's page cache keeps it near
        return str(target.folder(key, target.local))
    record = _record(target, key)
    # By content, not by run: ten runs with one base hold one copy on a node.
    place = node_folder() / f"{name_of(base, revision)}-{record.content}"
    with locked(place):
        return str(target.download(key, place))


def node_folder() -> Path:
    """Where this node keeps bases: RAYDR_CACHE, else the temporary folder."""
    return Path(os.environ.get("RAYDR_CACHE") or Path(tempfile.gettempdir()) / "raydr-cache") / "bases"


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process of this node at a time; a killed one frees it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _record(target: Run, key: str) -> Staged:
    try:
        return Staged(**target.read_json(f"{key}.json"))
    except TypeError:
        raise DamagedData(f"{key}.json in {target.url} is damaged: delete {key}.json and {key}/, then go on") from None


def _content(target: Run, key: str) -> str:
    return fingerprint(sorted(target.files(key).items()))


def _source(base: str, revision: str | None) -> tuple[Path, str | None]:
    """(folder of this machine with the base's files, the hub's commit)."""
    if Path(base).is_dir():
        if not (Path(base) / "model_index.json").is_file():
            raise UserError(f"The base folder {base} has no model_index.json: name a folder in diffusers layout")
        return Path(base), None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            base, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED), max_workers=4
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The base model {base!r} could not be fetched from the hub ({str(error).splitlines()[0][:200]}): name a "
            "folder in diffusers layout, or a hub id while online"
        ) from None
    return Path(found), Path(found).name
