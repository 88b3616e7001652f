"""What one node of a cluster is like, found out on the node itself: for `raydr doctor`."""

import contextlib
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata

import psutil
import ray

from raydr.cluster.provenance import PACKAGES
from raydr.errors import MissingInput, UserError
from raydr.storage import Run

HUB_TIMEOUT_SECONDS = 3.0
# Enough to tell a disk from a bucket, small enough for a slow link.
STORAGE_BYTES = 2 << 20


@dataclass(frozen=True)
class Gpu:
    name: str
    bytes: int


@dataclass(frozen=True)
class Facts:
    """One node, as it sees itself. Sizes in bytes."""

    node: str
    host: str
    versions: dict[str, str]
    cpus: int
    load: float
    ram: int
    ram_free: int
    gpus: tuple[Gpu, ...]
    # GPUs that torch can use; None where there are none to ask about.
    torch_gpus: int | None
    shm: int
    disk: int
    disk_free: int
    native_bf16: bool
    # Seconds until the hub answered; None where it did not, or was not asked.
    hub_seconds: float | None
    hub_offline: bool
    base_cached: bool
    # Filled on the driver: this node's clock minus the driver's, and how exactly that is known.
    skew_seconds: float = 0.0
    skew_error_seconds: float = 0.0
    # Also from the driver: what Ray was started with on this node.
    object_store: int = 0
    ray_gpus: int = 0


@dataclass(frozen=True)
class Storage:
    """What one node could do with the run directory; `problem` is the sentence of what went wrong."""

    node: str
    problem: str = ""
    exclusive: bool = False
    seen: tuple[str, ...] = ()
    write_seconds: float = 0.0
    read_seconds: float = 0.0


@dataclass(frozen=True)
class Cluster:
    facts: list[Facts]
    storage: list[Storage] = field(default_factory=list)
    # {node id: reason} of living nodes that could not be asked.
    silent: dict[str, str] = field(default_factory=dict)


@ray.remote(num_cpus=0)
class Probe:
    """Lives on one node for as long as it is looked at."""

    def __init__(self, node: str, base: str) -> None:
        self._node, self._base = node, base

    def facts(self) -> Facts:
        return facts(self._node, self._base)

    def now(self) -> float:
        return time.time()

    def write(self, url: str, nonce: str) -> Storage:
        """Create a key of this node's own, twice: the second time must lose."""
        key, data = f"cache/doctor/{nonce}-{self._node}", secrets.token_bytes(STORAGE_BYTES)
        try:
            started = time.perf_counter()
            first = Run(url).create(key, data)
            seconds = time.perf_counter() - started
            return Storage(self._node, "", first and not Run(url).create(key, b"second"), write_seconds=seconds)
        except UserError as error:
            return Storage(self._node, str(error))

    def read(self, url: str, nonce: str, nodes: Sequence[str]) -> tuple[tuple[str, ...], float]:
        """(nodes whose key is here whole, seconds a key)."""
        seen, started = [], time.perf_counter()
        for node in nodes:
            with contextlib.suppress(MissingInput, UserError):
                if len(Run(url).read(f"cache/doctor/{nonce}-{node}")) == STORAGE_BYTES:
                    seen.append(node)
        return tuple(seen), (time.perf_counter() - started) / max(1, len(nodes))


def facts(node: str, base: str) -> Facts:
    """What this machine is like; `base` is the hub id whose weights are looked for in the cache ("" = none)."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(tempfile.gettempdir())
    shm = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    gpus = nvidia_gpus()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    return Facts(
        node=node,
        host=platform.node(),
        versions=versions(),
        cpus=os.cpu_count() or 1,
        load=os.getloadavg()[0],
        ram=memory.total,
        ram_free=memory.available,
        gpus=gpus,
        torch_gpus=torch_gpus() if gpus else None,
        shm=shm,
        disk=disk.total,
        disk_free=disk.free,
        native_bf16=has_native_bf16(),
        hub_seconds=None if offline else hub_seconds(),
        hub_offline=offline,
        base_cached=bool(base) and is_cached(base),
    )


def versions() -> dict[str, str]:
    """{package: version}, "missing" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def nvidia_gpus() -> tuple[Gpu, ...]:
    """Name and memory of every GPU that the driver shows; () without a driver."""
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    return parse_gpus(answer.stdout) if answer.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """`nvidia-smi`'s lines "NAME, MIB"; a GPU without a size (some virtual ones) counts 0 bytes."""
    rows = (line.rsplit(",", 1) for line in text.splitlines() if "," in line)
    return tuple(Gpu(name.strip(), int(mib) << 20 if mib.strip().isdigit() else 0) for name, mib in rows)


def torch_gpus() -> int:
    """GPUs that torch can use, asked in a process of its own: Ray hides them from an actor that reserved none."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    code = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, env=environment)
    return int(answer.stdout.strip() or 0) if answer.returncode == 0 else 0


def has_native_bf16() -> bool:
    """Whether the CPU computes bf16 itself (x86 flags; elsewhere taken as no)."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def hub_seconds() -> float | None:
    """Seconds until the model hub (HF_ENDPOINT) answered anything at all, or None."""
    url, started = os.environ.get("HF_ENDPOINT", "https://huggingface.co"), time.perf_counter()
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError):
        return None
    return time.perf_counter() - started


def is_cached(base: str) -> bool:
    """Whether `base` is a folder of this node, or its hub cache (HF_HOME) holds the UNet of that hub id."""
    if os.path.isdir(base) or base.startswith((".", "/", "~")):
        return os.path.isdir(base)
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(base, "unet/diffusion_pytorch_model.safetensors"), str)
