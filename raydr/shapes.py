"""What the machines of a run look like: chosen anew at every start, and never part of an identity."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What the machines look like; never part of an identity."""

    name: str = "laptop"
    # Ray address; null attaches to the session that a job runs in, else starts Ray on this machine.
    address: str | None = None
    num_cpus: int | None = None
    # Ray's dashboard on http://127.0.0.1:8265 while a stage runs.
    dashboard: bool = True
    # Concurrent generator actors, and the threads and GPUs of each.
    generators: int = 2
    generator_cpus: float = 0.5
    generator_gpus: float = 0.0
    # Concurrent grader trials and the GPUs of each.
    trial_cpus: float = 1.0
    trial_gpus: float = 0.0
    # Workers of Ray Train and the GPUs of each.
    train_workers: int = 1
    train_gpus: float = 0.0
    max_failures: int = 3


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
    ),
}
