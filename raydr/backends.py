"""The two kinds of place a run can live in, with one guarantee: a key appears whole or not at all,
and of several `put(create=True)` exactly one returns True.

Local folders: temporary file + fsync + `os.link`, which fails when the name exists. Buckets: one
conditional create through obstore (pyarrow ignores If-None-Match and publishes partial objects).
"""

import contextlib
import errno
import functools
import os
import random
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raydr.errors import UserError

# Holds files that are being written, inside the run so that `os.link` stays on one file system.
TEMPORARY = ".tmp"
_MENDABLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.EPERM: "the file system does not allow it (it may lack hard links)",
    errno.ENOTSUP: "the file system lacks hard links",
    errno.EXDEV: "a folder inside it lies on another disk, and the whole of --out must be on one",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENOLCK: "the file system lacks locks",
}
# Before a conditional create whose connection broke is sent again.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Fail here if RAYDR_FAILPOINT is "name:action[:nth]"; action is exit (137, as SIGKILL), raise or enospc.

    Only tests set it. `nth` counts the calls of this name in this process, from 1 (the default).
    """
    wanted = os.environ.get("RAYDR_FAILPOINT")
    if not wanted or not wanted.startswith(name + ":"):
        return
    _, action, *nth = wanted.split(":")
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] != int(nth[0] if nth else 1):
        return
    if action == "exit":
        os.write(2, f"failpoint {name}\n".encode())  # proof for a test that the process died here
        os._exit(137)
    if action == "enospc":
        raise OSError(errno.ENOSPC, "injected by RAYDR_FAILPOINT")
    assert action == "raise", wanted
    raise RuntimeError(f"failpoint {name}")


def mendable(error: Exception) -> str | None:
    """What a user can mend about an error of this module's backends, in words; None for anything else."""
    if isinstance(error, OSError):
        return _MENDABLE.get(error.errno or 0)
    if type(error).__module__ != "obstore.exceptions":
        return None
    # Listing reports these as a generic error with the status in its text.
    refused = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    if refused or re.search(r"status code: 40[13]", str(error)):
        return "the object store refuses these credentials"
    if "status code: 404" in str(error):
        return "the bucket does not exist"
    # Up to the first line or tag: the rest of obstore's text is a dump of request and answer.
    return f"the object store does not answer as it should ({re.split('[<{]|$', str(error), flags=re.M)[0][:300]})"


class Folder:
    """A run on a file system of this machine (or mounted on it); `root` is absolute."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, key: str, data: bytes | Path, create: bool, sync: bool = True) -> bool:
        target = self.root / key
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{secrets.token_hex(8)}"
        _make_folder(temporary.parent)
        _make_folder(target.parent)
        try:
            with open(temporary, "xb") as file:
                if isinstance(data, Path):
                    with open(data, "rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                else:
                    file.write(data)
                file.flush()
                failpoint("before_fsync")
                if sync:
                    os.fsync(file.fileno())
            failpoint("after_write")
            if create:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
            else:
                os.replace(temporary, target)
            failpoint("after_link")
            if sync:
                _sync_folder(target.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def fetch(self, key: str, to: Path) -> None:
        shutil.copyfile(self.root / key, to)

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def list(self, prefix: str) -> list[tuple[str, int]]:
        """Every (key, bytes) below the folder `prefix`, unsorted; hidden names are skipped."""
        found: list[tuple[str, int]] = []
        folders = [(os.path.join(self.root, prefix), f"{prefix}/" if prefix else "")]
        while folders:
            folder, start = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir():
                            folders.append((entry.path, f"{start}{entry.name}/"))
                        else:
                            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                                found.append((start + entry.name, entry.stat().st_size))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can forget the name of a file whose bytes are safe.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Bucket:
    """A run in an object store (S3 or Google Cloud Storage)."""

    def __init__(self, url: str) -> None:
        import obstore.store

        self.url = url
        self.store = obstore.store.from_url(url, **_options(url))

    def put(self, key: str, data: bytes | Path, create: bool, sync: bool = True) -> bool:
        failpoint("before_fsync")
        failpoint("after_write")
        if self.put_if(key, data, "create" if create else None) is None:
            return False
        failpoint("after_link")
        return True

    def put_if(self, key: str, data: bytes | Path, condition: Any) -> dict[str, str] | None:
        """Write when `condition` holds ("create", a version, None = always); the new version, or None if it fails."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            # A conditional put is one request: a multipart upload would drop the condition on some stores.
            result = _again(
                lambda: obstore.put(self.store, key, data, mode=condition, use_multipart=False if condition else None),
                RETRY_SECONDS if condition == "create" else (),
            )
        except FileNotFoundError:
            raise UserError(f"the bucket of {self.url} does not exist: create it first, or check --out") from None
        except (AlreadyExistsError, PreconditionError):
            return None
        return _version(result)

    def get(self, key: str) -> bytes:
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, dict[str, str]]:
        import obstore

        result = obstore.get(self.store, key)
        return bytes(result.bytes()), _version(result.meta)

    def fetch(self, key: str, to: Path) -> None:
        """Copy an object to a file in pieces of 8 MiB: a UNet of 3.4 GB need not fit in memory."""
        import obstore

        with open(to, "wb") as file:
            for piece in obstore.get(self.store, key).stream(min_chunk_size=8 << 20):
                file.write(piece)

    def exists(self, key: str) -> bool:
        import obstore

        try:
            obstore.head(self.store, key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):
            obstore.delete(self.store, key)

    def list(self, prefix: str) -> list[tuple[str, int]]:
        """Every (key, bytes) below the folder `prefix`, unsorted."""
        import obstore

        pages = obstore.list(self.store, prefix or None, chunk_size=1000)
        # pyarrow, which Ray Train and Tune write through, leaves empty objects that stand for folders: "" is our own.
        return [(meta["path"], meta["size"]) for page in pages for meta in page if meta["path"]]


def _again(put: Callable[[], Any], waits: Sequence[float]) -> Any:
    """`put()`, again after each of `waits` where the connection broke: obstore itself repeats no conditional one. The
    broken request may have arrived: whoever creates looks whose it is where the key is taken."""
    from obstore.exceptions import GenericError

    for wait in waits:
        try:
            return put()
        except GenericError as error:
            if "error sending request" not in str(error):
                raise
            time.sleep(wait * (1 + random.random()))  # of many that lost a connection together, not all at once
    return put()


def _version(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


def s3_endpoint() -> str:
    """The S3-compatible server that the environment names; "" = Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _options(url: str) -> dict[str, Any]:
    """Client options; credentials come from the environment's usual chain and stay inside the client."""
    # By default a request may take 30 s from first byte to last: SD 1.5's UNet of 3.4 GB, one conditional put, would
    # need 115 MB/s. A server that answers nothing for a minute is given up all the same.
    client: dict[str, Any] = {"timeout": "1h", "read_timeout": "60s"}
    options: dict[str, Any] = {"client_options": client}
    if not url.startswith("s3://"):
        return options
    if s3_endpoint():
        client["allow_http"] = s3_endpoint().startswith("http://")
        options["endpoint"] = s3_endpoint()
    elsewhere = {"AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"}
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    if file.is_file() and not elsewhere & set(os.environ):
        try:  # obstore itself does not read profiles, pyarrow and the AWS tools do
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ImportError:
            raise UserError(f"{file} can only be read with boto3: pip install boto3, or export its keys") from None
        options["credential_provider"] = Boto3CredentialProvider()
    return options


@functools.cache
def _connect(url: str, pid: int, endpoint: str) -> Folder | Bucket:
    return Bucket(url) if "://" in url else Folder(Path(url))


def connect(url: str) -> Folder | Bucket:
    """The backend of `url`, one a process and server.

    A forked child must not share its parent's connections, and a client stays with the server that the environment
    named when it was made.
    """
    return _connect(url, os.getpid(), s3_endpoint())
