"""A run directory on a local disk or in a bucket: named bytes that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydr.backends import TEMPORARY, Bucket, Folder, connect, failpoint, mendable, s3_endpoint
from raydr.errors import DamagedData, MissingInput, UserError
from raydr.identity import fingerprint, sha256
from raydr.locks import LOCK, hold

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["Run", "check_key", "failpoint"]

DONE = "_done.json"
# A part never starts with a dot (no "..", nothing hidden); 200 bytes leave room below NAME_MAX = 255.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,199}")
_BUCKET_URL = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,62})(?:/(.*))?")


def check_key(key: str) -> str:
    """Return `key` if it is a relative path of plain names (letters, digits, `_.+@-`), else UserError."""
    if len(key) > 900 or not all(_PART.fullmatch(part) for part in key.split("/")):
        raise UserError(
            f"{key[:80]!r} is no valid name inside a run: use letters, digits and _.+@- between slashes, "
            "no leading dot, at most 200 characters a part"
        )
    return key


@dataclass(frozen=True)
class Run:
    """A run directory: `url` is a local path, `s3://bucket/prefix` or `gs://bucket/prefix`.

    Picklable, and absolute from the start, since it travels to workers with other working folders;
    connections are opened where they are used. Every method raises UserError for what a user can
    mend (full disk, no permission, no such bucket) and MissingInput for a key that is not there.
    """

    url: str

    def __post_init__(self) -> None:
        url = os.fspath(self.url).removeprefix("file://")
        if "://" in url:
            match = _BUCKET_URL.fullmatch(url)
            if not match:
                raise UserError("--out takes a path, s3://bucket/prefix or gs://bucket/prefix (no keys in the address)")
            prefix = (match[3] or "").strip("/")
            url = f"{match[1]}://{match[2]}" + (f"/{check_key(prefix)}" if prefix else "")
        elif not url or "\0" in url:
            raise UserError("--out is empty: name a folder or a bucket")
        else:
            url = os.path.abspath(os.path.expanduser(url))
        object.__setattr__(self, "url", url)

    @property
    def local(self) -> Path | None:
        """The folder, or None in a bucket."""
        return None if "://" in self.url else Path(self.url)

    def path(self, key: str) -> Path:
        """Where `key` lies on this machine; only for runs that are local."""
        assert self.local is not None, f"{self.url} has no local paths"
        return self.local / check_key(key)

    def child(self, name: str) -> "Run":
        return Run(f"{self.url}/{check_key(name)}")

    def filesystem(self) -> "tuple[FileSystem, str]":
        """(pyarrow file system, root inside it), for reading; credentials by the environment's usual chain."""
        from pyarrow import fs

        if self.local is not None:
            return fs.LocalFileSystem(), self.url
        scheme, root = self.url.split("://", 1)
        if scheme == "gs":
            return fs.GcsFileSystem(), root
        if not s3_endpoint():
            return fs.S3FileSystem(), root
        scheme, _, host = s3_endpoint().partition("://")
        return fs.S3FileSystem(scheme=scheme, endpoint_override=host.rstrip("/")), root

    def create(self, key: str, data: bytes | Path, sync: bool = True) -> bool:
        """Write `key` unless it exists: True for the one first writer, False for all others.

        `sync=False` skips the fsync (the file may be lost in a power cut, never in a crash of ours).
        """
        with self._explained(key, made=True) as backend:
            return backend.put(check_key(key), data, create=True, sync=sync)

    def replace(self, key: str, data: bytes | Path) -> None:
        """Write `key`, whatever was there; readers see the old bytes or the new ones."""
        with self._explained(key, made=True) as backend:
            backend.put(check_key(key), data, create=False)

    def read(self, key: str) -> bytes:
        with self._explained(key) as backend:
            return backend.get(check_key(key))

    def exists(self, key: str) -> bool:
        with self._explained(key) as backend:
            return backend.exists(check_key(key))

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens when it is not there."""
        with self._explained(key) as backend:
            backend.delete(check_key(key))

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Every (key, size in bytes) below the folder `prefix`, sorted; "" = the whole run."""
        with self._explained(prefix or "the run") as backend:
            return sorted(backend.list(check_key(prefix) if prefix else ""))

    def read_json(self, key: str) -> Any:
        """Raises DamagedData when the bytes are no JSON."""
        data = self.read(key)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise DamagedData(
                f"{key} in {self.url} is damaged (no JSON): restore it, or delete it and run its stage again"
            ) from None

    def create_json(self, key: str, value: Any, sync: bool = True) -> bool:
        return self.create(key, _json(value), sync)

    def replace_json(self, key: str, value: Any) -> None:
        self.replace(key, _json(value))

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """{key: bytes}; keys deleted meanwhile are left out. 32 requests at a time hide a bucket's latency."""

        def one(key: str) -> bytes | None:
            with contextlib.suppress(MissingInput):
                return self.read(key)
            return None

        if self.local is not None:  # a small local read is 30 us: threads would only contend
            found = map(one, keys)
            return {key: data for key, data in zip(keys, found, strict=True) if data is not None}
        with ThreadPoolExecutor(32) as pool:
            return {key: data for key, data in zip(keys, pool.map(one, keys), strict=True) if data is not None}

    def upload(self, folder: Path, prefix: str) -> bool:
        """Store a folder (weights) under `prefix`; its mark, written last, holds every file's size and SHA-256.

        False when a complete one is already there (it is kept). Files that a killed upload left
        behind are trusted by nobody, and replaced where they differ.
        """
        mark = f"{prefix}/{DONE}"
        if self.exists(mark):
            return False
        files: dict[str, dict[str, int | str]] = {}
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if name.startswith(".") or "/." in name or name == DONE:
                continue
            digest = _sha256_of(path)
            if not self.create(f"{prefix}/{name}", path) and sha256(self.read(f"{prefix}/{name}")) != digest:
                self.replace(f"{prefix}/{name}", path)
            files[name] = {"bytes": path.stat().st_size, "sha256": digest}
        failpoint("before_commit")
        created = self.create_json(mark, {"files": files})
        failpoint("after_commit")
        return created

    def uploaded(self, prefix: str) -> bool:
        """Whether a complete folder lies under `prefix`."""
        return self.exists(f"{prefix}/{DONE}")

    def files(self, prefix: str) -> dict[str, str]:
        """{name: SHA-256} of an uploaded folder; MissingInput without its mark, DamagedData where that is none."""
        mark = self.read_json(f"{prefix}/{DONE}")
        try:
            return {check_key(name): str(entry["sha256"]) for name, entry in mark["files"].items()}
        except (KeyError, TypeError, AttributeError):
            raise DamagedData(
                f"{prefix}/{DONE} in {self.url} is no mark of an upload: delete {prefix}, redo it"
            ) from None

    def download(self, prefix: str, to: Path) -> Path:
        """Copy an uploaded folder to `to`, which appears whole or not at all; nothing is done if it is there.

        Raises MissingInput without the mark of a complete upload, DamagedData where bytes differ from it.
        """
        if (to / DONE).is_file():
            return to
        files = self.files(prefix)
        to.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=to.parent))
        try:
            for name, digest in files.items():
                (half / name).parent.mkdir(parents=True, exist_ok=True)
                with self._explained(f"{prefix}/{name}") as backend:
                    backend.fetch(f"{prefix}/{name}", half / name)
                if _sha256_of(half / name) != digest:
                    raise DamagedData(
                        f"{prefix}/{name} in {self.url} differs from its upload: delete {prefix}, redo it"
                    )
            (half / DONE).write_bytes(self.read(f"{prefix}/{DONE}"))
            try:
                half.rename(to)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # those: another process was first
                    raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
        if not (to / DONE).is_file():
            raise UserError(f"{to} is in the way and no complete download: delete it, then run the same command again")
        return to

    def folder(self, prefix: str, cache: Path) -> Path:
        """An uploaded folder as a path of this machine: the folder itself, or its copy below `cache` for a bucket."""
        if self.local is None:
            return self.download(prefix, cache / fingerprint(self.url) / check_key(prefix))
        if not self.uploaded(prefix):
            raise MissingInput(f"{prefix} is not complete in {self.url}: run the stage that makes it, or check --out")
        return self.path(prefix)

    def leftovers(self, seconds: float = 3600.0) -> Sequence[Path]:
        """Temporary files that killed writers left on a local disk, older than `seconds`; for `raydr gc`."""
        if self.local is None:  # an aborted put leaves nothing that can be listed
            return []
        oldest = time.time() - seconds
        return sorted(path for path in (self.local / TEMPORARY).glob("*") if path.stat().st_mtime < oldest)

    @contextlib.contextmanager
    def lock(self, purpose: str, force: bool = False) -> Iterator[threading.Event]:
        """Hold the run's driver lock; the second driver gets a UserError naming host, pid and start of the first.

        It saves money; correctness never rests on it (first writer wins). Yields an event that is
        set if a bucket's lock is lost to another driver. `force` goes on without the lock.
        """
        with contextlib.ExitStack() as stack:
            lost = threading.Event()
            if not force:
                with self._explained(LOCK, made=True) as backend:  # what the run itself raises stays as it is
                    stack.enter_context(hold(backend, self.url, purpose, lost))
            yield lost

    @staticmethod
    @contextlib.contextmanager
    def locks(purpose: str, *runs: "Run") -> Iterator[Sequence[threading.Event]]:
        """`lock` of each of `runs` (a run and its replicates), each once; yields their events."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(run.lock(purpose)) for run in {run.url: run for run in runs}.values()]

    @contextlib.contextmanager
    def _explained(self, key: str, made: bool = False) -> Iterator[Folder | Bucket]:
        """The backend; what a user can mend becomes one sentence. `made`: `key` is written, so it need not be there."""
        try:
            yield connect(self.url)
        except FileNotFoundError:
            if made:  # as below /proc: the system knows no such folder, and makes none
                told = f"cannot write {key} in {self.url}: no folder can be made there; choose another --out"
                raise UserError(told) from None
            raise MissingInput(f"{key} is not in {self.url}: run the stage that makes it, or check --out") from None
        except Exception as error:
            reason = mendable(error)
            if reason is None:
                raise
            advice = "mend that, then run the same command again to resume"
            raise UserError(f"cannot use {key} in {self.url}: {reason}; {advice}") from None


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
