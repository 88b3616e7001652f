"""What the machines of a run look like: chosen anew at every start, and never part of an identity."""

from dataclasses import dataclass, replace

from raydr.errors import UserError, require


@dataclass(frozen=True)
class Shape:
    """What the machines look like; never part of an identity."""

    # laptop, workstation or cluster: what --shape names.
    name: str = "laptop"
    # Ray address; null attaches to the session that a job runs in, else starts Ray on this machine.
    address: str | None = None
    # CPUs that Ray gives away on this machine; null gives all. Without effect on a cluster.
    num_cpus: int | None = None
    # Ray's dashboard on http://127.0.0.1:8265 while a stage runs.
    dashboard: bool = True
    # Concurrent generator actors.
    generators: int = 2
    # CPUs of a generator.
    generator_cpus: float = 0.5
    # GPUs of a generator.
    generator_gpus: float = 0.0
    # Actors of a pool that scores what generators made; 0 = in the generators' own.
    scorers: int = 0
    # CPUs of a scorer.
    scorer_cpus: float = 0.5
    # GPUs of a scorer.
    scorer_gpus: float = 0.0
    # CPUs of a grader's training, of an ensemble member or a trial: as many run at once as fit.
    trial_cpus: float = 1.0
    # Its GPUs.
    trial_gpus: float = 0.0
    # Seconds of a grader trial that --dry-run counts with until one has been measured; 0 = says "unmeasured".
    trial_seconds: float = 0.0
    # Ranks of a fine-tuning.
    train_workers: int = 1
    # GPUs of a rank.
    train_gpus: float = 0.0
    # Ray Train takes up to so many workers as the cluster grows, and goes on with train_workers; 0 = never more.
    max_train_workers: int = 0
    # Fine-tuning fits at once, each with its own train_workers, that share out the generators (a plain one and the ECC
    # ones that branch from it stay together); 0 = as many as the cluster holds when the stage starts. A fit takes
    # 20 s to start, so on one machine one after the other is quicker.
    train_side_by_side: int = 1
    # Losses of a rank that a fit outlives; taken nodes do not count.
    max_failures: int = 3
    # Device type of everything that takes a GPU, by Ray's name ("L4", "A10G", "H100"); empty takes any.
    accelerator: str = ""
    # Nodes that get no work: IP addresses, host names, or starts of Ray's node ids.
    exclude_nodes: tuple[str, ...] = ()
    # Fewest generator actors: with less than `generators` their pool grows and shrinks in between; 0 = fixed.
    min_generators: int = 0
    # Price table (TOML) that costs are counted by; empty takes RAYDR_PRICES, else the examples that ship.
    prices: str = ""

    def __post_init__(self) -> None:
        for name in ("generators", "train_workers"):
            require(getattr(self, name) >= 1, f"shape.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("generator_cpus", "scorer_cpus", "trial_cpus"):
            require(getattr(self, name) > 0, f"shape.{name} must be more than 0, not {getattr(self, name)}")
        for name in ("generator_gpus", "scorer_gpus", "trial_gpus", "train_gpus"):
            gpus = getattr(self, name)
            # Ray refuses 1.5 GPUs, late and from inside a stage.
            require(gpus >= 0 and (gpus < 1 or gpus == int(gpus)), f"shape.{name} is a share of one GPU or whole GPUs")
        require(
            not 0 < self.train_gpus < 1 or max(self.train_workers, self.max_train_workers) == 1,
            f"shape.train_gpus {self.train_gpus:g} is a share of a GPU, which takes one rank: NCCL refuses two on one; "
            "set train_workers and max_train_workers to 1 and let generators train side by side",
        )
        require(
            0 <= self.min_generators <= self.generators,
            f"shape.min_generators must lie in 0..generators {self.generators}, not {self.min_generators}",
        )
        require(self.scorers >= 0, "shape.scorers must not be negative")
        require(self.num_cpus is None or self.num_cpus >= 1, "shape.num_cpus must be at least 1")
        require(self.train_side_by_side >= 0, "shape.train_side_by_side must be at least 1, or 0 for all that fit")
        require(self.trial_seconds >= 0, "shape.trial_seconds must not be negative")
        require(self.max_failures >= 0, "shape.max_failures must be at least 0")


@dataclass(frozen=True)
class Machines:
    """The shape under its name, for the command line's `--shape.FIELD`."""

    shape: Shape


SHAPES = {
    "laptop": Shape(),
    "workstation": Shape(
        name="workstation",
        generators=1,
        generator_cpus=1,
        generator_gpus=1,
        trial_cpus=2,
        trial_gpus=0.25,
        train_gpus=1,
    ),
    "cluster": Shape(
        name="cluster",
        address="auto",
        generators=8,
        generator_cpus=1,
        generator_gpus=1,
        trial_cpus=4,
        trial_gpus=0.5,
        train_workers=4,
        train_gpus=1,
        train_side_by_side=0,
    ),
}


def named(name: str) -> Shape:
    """The preset called `name`; UserError lists the known ones."""
    if name not in SHAPES:
        raise UserError(f"There is no shape {name!r}: choose one of {', '.join(SHAPES)}")
    return SHAPES[name]


def with_options(shape: Shape, address: str | None, accelerator: str | None, exclude_nodes: list[str] | None) -> Shape:
    """`shape` with what was typed; None leaves the preset's value."""
    if address:
        shape = replace(shape, address=address)
    if accelerator:
        shape = replace(shape, accelerator=accelerator)
    return replace(shape, exclude_nodes=(*shape.exclude_nodes, *exclude_nodes)) if exclude_nodes else shape
