"""The checks of `raydr doctor`: sentences that follow from what the nodes said of themselves. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from raydr.cluster.probe import STORAGE_BYTES, Cluster, Facts

RAY_SERIES = "2.60."
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    name: str
    state: str  # ok, warn or bad
    sentence: str


def ok(name: str, sentence: str) -> Check:
    return Check(name, "ok", sentence)


def warn(name: str, sentence: str) -> Check:
    """It works, but."""
    return Check(name, "warn", sentence)


def bad(name: str, sentence: str) -> Check:
    """It will fail."""
    return Check(name, "bad", sentence)


def judge(cluster: Cluster, base: str, needs_base: bool = False) -> list[Check]:
    """The checks that follow from what the nodes said; `needs_base` makes an unreachable base model bad."""
    facts = cluster.facts
    if not facts:
        return [check_nodes(cluster)]
    found = [
        check_nodes(cluster),
        check_versions(facts),
        check_gpus(facts),
        check_memory(facts),
        check_shm(facts),
        check_disk(facts),
        check_clock(facts),
        check_hub(facts, base, needs_base),
    ]
    if cluster.storage:
        found.insert(6, check_storage(cluster))
    return [*found, *slow(cluster)]


def check_nodes(cluster: Cluster) -> Check:
    if cluster.silent:
        first, reason = next(iter(cluster.silent.items()))
        return bad(
            "nodes",
            f"{len(cluster.silent)} of {len(cluster.silent) + len(cluster.facts)} nodes could not be "
            f"asked (node {first[:8]}: {reason}): raydr must be installed there, or sent with `raydr submit`",
        )
    cpus = sum(fact.cpus for fact in cluster.facts)
    return ok("nodes", f"{_count(len(cluster.facts), 'node')} answered, {_count(cpus, 'CPU')}")


def check_versions(facts: Sequence[Facts]) -> Check:
    """Ray refuses other Ray and Python versions late and obscurely; other packages may change pixels."""
    shown = facts[0].versions
    if not shown["ray"].startswith(RAY_SERIES):
        return bad(
            "versions", f"Ray is {shown['ray']} and raydr is made for {RAY_SERIES}*: pip install 'ray=={RAY_SERIES}*'"
        )
    differing = {
        name: sorted({fact.versions[name] for fact in facts})
        for name in shown
        if len({_relevant(name, fact.versions[name]) for fact in facts}) > 1
    }
    text = "; ".join(f"{name} {' and '.join(values)}" for name, values in differing.items())
    if set(differing) & {"python", "ray", "raydr"}:
        return bad("versions", f"the nodes differ in {text}: install one version everywhere")
    if differing:
        return warn("versions", f"the nodes differ in {text}: images may differ in the last bits from node to node")
    return ok("versions", f"Ray {shown['ray']}, Python {shown['python']}, torch {shown['torch']} everywhere")


def _relevant(name: str, version: str) -> str:
    """What must agree: Python's minor version; of torch the release, since a CPU head has another build ("+cpu")."""
    return ".".join(version.split(".")[:2]) if name == "python" else version.split("+")[0]


def check_gpus(facts: Sequence[Facts]) -> Check:
    gpus = [gpu for fact in facts for gpu in fact.gpus]
    if not gpus:
        return warn("GPUs", "no GPU: phantom recipes run, Stable Diffusion 1.5 does not in useful time")
    blind = [fact for fact in facts if fact.torch_gpus is not None and fact.torch_gpus < len(fact.gpus)]
    if blind:
        return bad(
            "GPUs",
            f"torch sees {blind[0].torch_gpus} of {len(blind[0].gpus)} GPUs on {_hosts(blind)}: install a "
            "torch built for that driver's CUDA, or a newer driver",
        )
    idle = [fact for fact in facts if fact.ray_gpus < len(fact.gpus)]
    if idle:
        return warn(
            "GPUs", f"Ray offers {idle[0].ray_gpus} of {len(idle[0].gpus)} GPUs on {_hosts(idle)}: restart it there"
        )
    kinds = Counter(f"{gpu.name} {gpu.bytes / GIB:.0f} GiB" for gpu in gpus)
    text = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    largest = max(gpu.bytes for gpu in gpus)
    if 0 < largest < 20 * GIB:  # 0: a virtual GPU that does not say
        return warn(
            "GPUs",
            f"{text}: enough to generate and to train graders, but fine-tuning Stable Diffusion 1.5 in batches of 3 "
            "pairs wants 24 GiB",
        )
    if len(kinds) > 1:
        return warn("GPUs", f"{text}: pixels are bit-equal on one kind only, so keep one kind in a pool")
    return ok("GPUs", text)


def check_memory(facts: Sequence[Facts]) -> Check:
    """A worker that holds torch and diffusers takes about 0.9 GB (835 MB measured)."""
    worst = min(facts, key=lambda fact: fact.ram_free / fact.cpus)
    text = f"{_size(worst.ram_free)} of {_size(worst.ram)} free on {worst.host} ({_count(worst.cpus, 'CPU')})"
    if worst.ram_free < 2 * GIB:
        return bad("memory", f"{text}: Ray kills workers when it is full, and one needs about 1 GiB")
    if worst.ram_free < worst.cpus * GIB:
        return warn("memory", f"{text}: fewer than one worker a CPU, lower the shape's numbers")
    return ok("memory", text)


def check_shm(facts: Sequence[Facts]) -> Check:
    """Objects live in /dev/shm; where it is smaller than the object store Ray writes them to disk instead."""
    short = [fact for fact in facts if fact.shm < fact.object_store]
    store = sum(fact.object_store for fact in facts)
    if short:
        return warn(
            "object store",
            f"/dev/shm is {_size(short[0].shm)} on {_hosts(short)} and the object store "
            f"{_size(short[0].object_store)}: objects go to disk; enlarge it (docker run --shm-size, mount -o remount)",
        )
    least = min(fact.object_store for fact in facts)
    if least < 75e6:
        return bad("object store", f"{_size(least)} is less than Ray's least of 78 MB: free memory first")
    return ok("object store", f"{_size(store)} in all, /dev/shm is large enough on every node")


def check_disk(facts: Sequence[Facts]) -> Check:
    """Ray takes no more objects when a disk is 95 % full; a base model and its latents take about 10 GB."""
    worst = min(facts, key=lambda fact: fact.disk_free)
    text = f"{_size(worst.disk_free)} of {_size(worst.disk)} free on {worst.host}"
    if worst.disk_free < 0.05 * worst.disk or worst.disk_free < 2 * GIB:
        return bad("disk", f"{text}: Ray stops working at 95 % full, make room")
    if worst.disk_free < 20 * GIB:
        return warn("disk", f"{text}: a base model, cached photographs and spilled blocks want 20 GiB")
    return ok("disk", text)


def check_storage(cluster: Cluster) -> Check:
    nodes = {item.node for item in cluster.storage}
    hosts = {fact.node: fact.host for fact in cluster.facts}
    for item in cluster.storage:
        if item.problem:
            return bad("storage", f"{hosts[item.node]}: {item.problem}")
    for item in cluster.storage:
        if nodes - set(item.seen):
            missing = hosts[next(iter(nodes - set(item.seen)))]
            return bad(
                "storage",
                f"what {missing} writes is not there on {hosts[item.node]}: the nodes do not share "
                "this path, name a bucket or a shared folder",
            )
    loose = [item for item in cluster.storage if not item.exclusive]
    if loose:
        return bad(
            "storage",
            f"a second writer on {hosts[loose[0].node]} overwrote the first: shards would not be written "
            "exactly once here, use a storage with conditional creates (AWS S3, Google Cloud Storage, MinIO, R2)",
        )
    return ok("storage", f"shared by {_count(len(nodes), 'node')}, the first writer wins")


def check_clock(facts: Sequence[Facts]) -> Check:
    """Locks of a bucket compare times, and S3 refuses a request that is 15 minutes off."""
    worst = max(facts, key=lambda fact: abs(fact.skew_seconds) - fact.skew_error_seconds)
    skew = abs(worst.skew_seconds)
    text = f"{worst.host}'s clock is {skew:.2f} s off (+- {worst.skew_error_seconds:.2f} s)"
    if skew - worst.skew_error_seconds > 60:
        return bad("clock", f"{text}: start chrony or systemd-timesyncd there")
    if skew - worst.skew_error_seconds > 2:
        return warn("clock", f"{text}: logs and heartbeats of nodes will not line up, synchronise it")
    return ok("clock", f"at most {skew:.2f} s apart (+- {worst.skew_error_seconds:.2f} s)")


def check_hub(facts: Sequence[Facts], base: str, needed: bool) -> Check:
    """Whether every node can get the base model, from its cache or from the hub."""
    if base == "phantom":
        return ok("hub", "not needed: the small base ships with raydr")
    without = [fact for fact in facts if not fact.base_cached and fact.hub_seconds is None]
    cached = sum(fact.base_cached for fact in facts)
    if without:
        why = "is offline (HF_HUB_OFFLINE)" if without[0].hub_offline else "does not reach the hub"
        return (bad if needed else warn)(
            "hub",
            f"{_hosts(without)} {why} and has no {base} in its cache: phantom recipes "
            "run; for others name a folder or open the network once",
        )
    slowest = max((fact.hub_seconds or 0.0 for fact in facts), default=0.0)
    reached = f", reachable within {slowest:.1f} s" if slowest else ""
    return ok("hub", f"{base} is cached on {cached} of {_count(len(facts), 'node')}{reached}")


def check_auth(mode: str, gcs_address: str, num_nodes: int) -> Check:
    """Ray runs whatever it is sent, so who may send is the whole of its security."""
    host = urlsplit(f"//{gcs_address}").hostname or ""
    if mode == "token":
        return ok(
            "authentication", "a token is required; metrics ports answer without one, so keep them behind a firewall"
        )
    if num_nodes > 1:
        return bad(
            "authentication",
            f"anyone who reaches {gcs_address} can run code on all nodes: start Ray with RAY_AUTH_MODE=token",
        )
    if host in ("127.0.0.1", "localhost", "::1"):
        return ok("authentication", "off, and Ray listens on this machine only")
    return warn(
        "authentication",
        f"off, and Ray listens at {gcs_address}: set RAY_AUTH_MODE=token unless you trust this network",
    )


def slow(cluster: Cluster) -> list[Check]:
    """What will work but take long, with the reason; "nothing" where nothing is known to."""
    facts, reasons = cluster.facts, []
    starved = [fact for fact in facts if fact.gpus and fact.cpus < 4 * len(fact.gpus)]
    if starved:
        reasons.append(
            f"fewer than 4 CPUs a GPU on {_hosts(starved)}: decoding and encoding images will keep GPUs waiting"
        )
    if not any(fact.gpus for fact in facts) and not all(fact.native_bf16 for fact in facts):
        reasons.append("these CPUs have no bf16: graders train in fp32, about 1.6 times slower")
    busy = [fact for fact in facts if fact.load > 1.5 * fact.cpus]
    if busy:
        reasons.append(
            f"{_hosts(busy)} is busy with other work (load {busy[0].load:.1f} on {_count(busy[0].cpus, 'CPU')})"
        )
    for item in cluster.storage:
        seconds = max(item.write_seconds, item.read_seconds)
        if not item.problem and seconds > 2.0:
            host = next(fact.host for fact in facts if fact.node == item.node)
            reasons.append(f"storage moves {STORAGE_BYTES / 1e6 / seconds:.1f} MB/s on {host}: shards will wait for it")
            break
    return [warn("speed", reason) for reason in reasons] or [ok("speed", "nothing known to be slow")]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _hosts(facts: Sequence[Facts]) -> str:
    return facts[0].host + (f" and {len(facts) - 1} more" if len(facts) > 1 else "")


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 1e6:.0f} MB"
