"""Snapshots of a fit: reported through Ray Train, found again without it.

Ray Train uploads and counts them; what a restart resumes from is read off the storage, newest first, and trusted by
the checksum inside. So neither a truncated snapshot, nor one that was uploaded but not yet registered, nor a damaged
record of Ray's own (rewritten in place at every report) costs more than the steps since the last good one.

    _ray/finetune/{fit}/{generator_id}@{step}-{token}/state.pt

A generator's id says what it is, so its snapshots are good whichever fit left them: alone, or one of several.
"""

import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train

from raydr.backends import mendable
from raydr.cluster.ranks import TorchRanks
from raydr.errors import DamagedData, MissingInput, UserError
from raydr.storage import Run

ROOT, FILE = "_ray/finetune", "state.pt"
# A snapshot that turns out damaged has one before it.
KEEP = 2
_KEY = re.compile(r"[^/]+/(?P<generator>[^/@]+)@(?P<step>\d+)-[0-9a-f]+/" + re.escape(FILE))


@dataclass(frozen=True)
class Snapshot:
    key: str
    generator_id: str
    step: int


def listed(target: Run) -> list[Snapshot]:
    """Every snapshot of every fit, newest step first."""
    found = []
    for key, _ in target.list(ROOT):
        match = _KEY.fullmatch(key.removeprefix(f"{ROOT}/"))
        if match:
            found.append(Snapshot(key, match["generator"], int(match["step"])))
    return sorted(found, key=lambda snapshot: -snapshot.step)


def newest(target: Run, generator_id: str, ranks: TorchRanks, say: Callable[[str], None] = lambda text: None) -> Any:
    """The newest good `State` of this generator, the same on every rank; None where there is none.

    Damaged ones are passed over, and `say` gets a sentence.
    """
    from raydr.diffusion.state import State

    chosen, state = None, None
    if ranks.rank == 0:
        damaged = []
        for snapshot in listed(target):
            if snapshot.generator_id != generator_id:
                continue
            try:
                state = State.from_bytes(target.read(snapshot.key))
            except (DamagedData, MissingInput):
                damaged.append(snapshot.step)
                continue
            chosen = snapshot.key
            break
        if damaged:
            where = f"step {state.step}" if state else "the start"
            say(
                f"The snapshot of {generator_id} at step {', '.join(map(str, damaged))} is cut short or damaged: "
                f"training went on from {where}"
            )
    chosen = ranks.gather(chosen)[0]
    if chosen is None or ranks.rank == 0:
        return state
    return State.from_bytes(target.read(chosen))


def report(
    ranks: TorchRanks,
    target: Run,
    name: str,
    generator_id: str,
    state: Any,
    wait: bool,
    on_mistake: Callable[[UserError], None],
) -> None:
    """Hand `state` to Ray Train, every rank as often as the others; rank 0 uploads it.

    The upload goes on while training does, unless `wait` (a node is about to go). It writes whole objects or none:
    a full disk raises UserError, after `on_mistake` has heard of it, and leaves the snapshot before.
    """
    mode = ray.train.CheckpointUploadMode.SYNC if wait else ray.train.CheckpointUploadMode.ASYNC
    metrics = {"generator_id": generator_id, "step": state.step}
    if ranks.rank != 0:
        ray.train.report(metrics, checkpoint_upload_mode=mode)
        return
    data, storage = state.to_bytes(), ray.train.get_context().get_storage()

    def upload(local: ray.train.Checkpoint, directory: str) -> ray.train.Checkpoint:
        try:
            target.replace(f"{ROOT}/{name}/{directory}/{FILE}", data)
        except UserError as error:  # in a thread of Ray's: the rank itself does not see it
            on_mistake(error)
            raise
        return ray.train.Checkpoint(f"{storage.experiment_fs_path}/{directory}", storage.storage_filesystem)

    # A name of its own: the same step made again after a damaged snapshot must not meet the old one.
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint(tempfile.mkdtemp(prefix="raydr-")),  # Ray wants a folder; `data` is uploaded
        checkpoint_dir_name=f"{generator_id}@{state.step:08d}-{secrets.token_hex(4)}",
        checkpoint_upload_mode=mode,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=upload,
    )


def prepare(target: Run, names: Sequence[str]) -> None:
    """Before fits: drop Ray's own records, which a kill inside their rewriting leaves unreadable, and old snapshots."""
    for name in names:
        target.delete(f"{ROOT}/{name}/checkpoint_manager_snapshot.json")
    kept: dict[str, int] = {}
    for snapshot in listed(target):
        kept[snapshot.generator_id] = kept.get(snapshot.generator_id, 0) + 1
        if kept[snapshot.generator_id] > KEEP:
            target.delete(snapshot.key)


def drop(target: Run, generator_ids: Collection[str]) -> None:
    """Once these generators are stored, their snapshots are worth nothing."""
    for snapshot in listed(target):
        if snapshot.generator_id in generator_ids:
            target.delete(snapshot.key)


class Preemption:
    """Says once per notice that a node of this fit is about to go. Every rank must ask equally often (a barrier)."""

    def __init__(self, possible: bool) -> None:
        self._possible, self._seen = possible, set[str]()
        # Whether the last answer was yes.
        self.noticed = False

    def __call__(self) -> bool:
        info = ray.train.get_preemption_info() if self._possible else None
        nodes = set(info.preempted_node_to_ranks) - self._seen if info is not None else set()
        self._seen |= nodes
        self.noticed = bool(nodes)
        return self.noticed


def explained(error: BaseException, url: str) -> UserError | None:
    """The error for the user that `error` is or stands for; None for one that no user can mend.

    TensorBoard's files and Ray's own records are written past raydr's storage: a full disk is a plain OSError there.
    """
    if isinstance(error, UserError):
        return error
    reason = mendable(error) if isinstance(error, OSError) else None
    if reason is None:
        return None
    where = getattr(error, "filename", None) or url
    return UserError(f"fine-tuning cannot use {where}: {reason}; mend that, then run the same command again to resume")


def sentence(error: BaseException, url: str) -> UserError | None:
    """The error for the user inside Ray Train's wrapper, if that is what ended the run on `url`."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in [*failures, error.__cause__, error]:
        while failure is not None:
            found = explained(failure, url)
            if found is not None:
                return found
            failure = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure.__cause__
    return None
