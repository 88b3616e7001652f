"""Every setting of a run, as frozen dataclasses: one line above each field gives its consequence.

A `Recipe` is complete: nothing is read from the environment later. `--FIELD VALUE` overrides become
`dataclasses.replace`; each class validates itself in `__post_init__` with a sentence for the user.
What belongs to a machine rather than to a result (actors, GPUs, addresses) is `raydr.shapes.Shape`,
outside every fingerprint.
"""

import dataclasses
from dataclasses import dataclass, field

from raydr.errors import require
from raydr.graders import Ensemble, Sweep
from raydr.graders import Grader as Grader
from raydr.graders import Member as Member
from raydr.grades import GRADES
from raydr.identity import added
from raydr.kinds import CHANGES
from raydr.sources import Ingest


@dataclass(frozen=True)
class Finetune:
    """LoRA fine-tuning (paper 2, 3)."""

    # Folder or hub id of a diffusers Stable Diffusion pipeline; "phantom" = the built-in small base.
    base: str = "phantom"
    # Commit or tag of a hub id; null takes the newest.
    revision: str | None = None
    # Grades that get a generator.
    grades: tuple[int, ...] = (1, 3)
    # True trains one generator for all grades instead of one each.
    joint: bool = False
    # "plain" (instance + prior), "ecc" (branches from plain at ecc_start), and controls of it: see raydr/kinds.py.
    kinds: tuple[str, ...] = ("plain", "ecc")
    # Side of the training images, px.
    px: int = 64
    # Optimizer steps of each generator.
    steps: int = 80
    # Instance/prior pairs of one forward pass ...
    batch_pairs: int = 4
    # ... and passes a step, over all ranks: the number of ranks never changes what is learnt.
    accumulation: int = 1
    # Of AdamW, constant (the paper: 1e-5).
    learning_rate: float = 1e-3
    # Of AdamW, decoupled.
    weight_decay: float = 1e-2
    # Longer gradients are cut to this norm.
    max_grad_norm: float = 1.0
    # Rank of the LoRA: more can learn more, in a larger file.
    rank: int = 8
    # The LoRA acts with weight alpha / rank.
    alpha: int = 8
    # Modules of the UNet that get a LoRA, by the ends of their names.
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    # True updates every UNet weight; no LoRA is saved, but a UNet.
    full: bool = False
    # True adapts the text encoder's attention too (same rank and alpha); prompt embeddings are then never cached.
    train_text_encoder: bool = added(False)
    # Decay of the running mean of the weights that is validated, drawn in grids and saved; 0 = the last weights.
    ema: float = added(0.0)
    # Weight of the prior term: L = instance + w_prior prior + w_ecc ecc.
    w_prior: float = 0.1
    # Weight of the ECC term (the paper: 1e-3).
    w_ecc: float = 1e-3
    # Optimizer steps before the ECC term begins: its generator branches from the plain one here.
    ecc_start: int = 40
    # Steps between two refreshes of its pool.
    ecc_every: int = 10
    # A refresh makes ecc_calls batches of ecc_batch candidates ...
    ecc_calls: int = 2
    # ... of so many images each ...
    ecc_batch: int = 16
    # ... looks at the ecc_keep of each with the highest intended-grade probability ...
    ecc_keep: int = 12
    # ... and keeps those whose ensemble mean reaches this.
    ecc_threshold: float = 0.7
    # False admits candidates unseen by the ensemble (control: self-training without semantics).
    ecc_select: bool = True
    # Solver of the candidates and the grids: "dpm++", "ddim", or "base" = the scheduler shipped with the base (PNDM for
    # a stochastic one).
    ecc_sampler: str = added("dpm++")
    # Its steps.
    ecc_steps: int = 10
    # Its classifier-free guidance weight; 1 turns guidance off.
    ecc_guidance: float = 2.0
    # As Sampler.signal_leak, for the candidates and the grids.
    ecc_signal_leak: bool = added(False)
    # Calls made in one compute batch: fills a GPU that ecc_batch images do not; selection stays within each call.
    ecc_merge: int = added(1)
    # A refresh ends with the call that brings the pool to this many, whatever the number of ranks; 0 = all ecc_calls.
    ecc_pool: int = added(0)
    # Steps between checkpoints; 0 = only at the ECC branch and the end.
    checkpoint_every: int = 0
    # Steps between validation losses and TensorBoard grids; 0 = only at the end.
    validate_every: int = 20
    # fp32, bf16 or fp16 (with dynamic loss scaling) compute of the frozen weights; the adapter is always fp32.
    precision: str = "fp32"
    # Trades a second forward pass for the memory of the activations: the first thing to try where a batch does not fit.
    gradient_checkpointing: bool = False
    # True compiles the UNet (torch.compile, static shapes): other kernels, so other last bits. Takes minutes at
    # first, for a GPU that small batches leave waiting for launches.
    compiled: bool = added(False)
    # Minimum signal-to-noise weighting gamma (Hang et al. 2023); 0 = off, as in the paper.
    min_snr: float = 0.0
    # Noise offset (0 = off, as in the paper).
    noise_offset: float = 0.0

    def __post_init__(self) -> None:
        require(set(self.grades) <= set(GRADES), f"finetune.grades {self.grades} are not within 0-4")
        require(
            len(self.kinds) > 0 and set(self.kinds) <= set(CHANGES),
            f"finetune.kinds holds {', '.join(map(repr, CHANGES))}, not {self.kinds}",
        )
        require(self.steps >= 1, "finetune.steps must be at least 1")
        require(self.ecc_start > 0, "finetune.ecc_start must be at least 1")
        require(
            set(self.kinds) == {"plain"} or self.ecc_start < self.steps,
            f"finetune.ecc_start {self.ecc_start} must lie before the last step {self.steps}",
        )
        require(0 < self.ecc_keep <= self.ecc_batch, "finetune.ecc_keep must lie in 1..ecc_batch")
        require(
            self.precision in ("fp32", "bf16", "fp16"),
            f"finetune.precision is fp32, bf16 or fp16, not {self.precision!r}",
        )
        # AdamW steps of 1e-5 vanish in bf16 weights; an adapter is kept in fp32 of its own.
        require(not self.full or self.precision == "fp32", "finetune.full updates fp32 weights: set precision fp32")
        require(
            not (self.full and self.train_text_encoder),
            "finetune.train_text_encoder adds a LoRA, and finetune.full saves a UNet: choose one of them",
        )
        require(0 <= self.ema < 1, f"finetune.ema must lie in 0 <= ema < 1, not {self.ema}")
        require(self.ecc_pool >= 0, "finetune.ecc_pool must not be negative")
        require(
            self.ecc_sampler in ("dpm++", "ddim", "base"), f"unknown sampler finetune.ecc_sampler {self.ecc_sampler!r}"
        )
        counted = ("batch_pairs", "accumulation", "rank", "ecc_every", "ecc_calls", "ecc_steps", "ecc_merge")
        for name in counted:
            require(getattr(self, name) >= 1, f"finetune.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Sampler:
    """How noise becomes an image; every field changes pixels, so all are identity."""

    # "dpm++" (DPM-Solver++ 2M), "ddim", or "base" = the scheduler shipped with the base (PNDM for a stochastic one).
    name: str = "dpm++"
    # Denoising steps: the time of an image is proportional to them.
    steps: int = 10
    # Classifier-free guidance weight; 1 turns guidance off (and halves the cost).
    guidance: float = 2.0
    # Images of one compute batch; short batches are padded, so this is part of the identity.
    batch: int = 16
    # fp32, bf16 or fp16 compute.
    precision: str = "fp32"
    # Guidance acts only where the noise level sigma lies in (low, high] (Kynkaanniemi et al. 2024); outside, half the
    # work is saved. (SD 1.x starts at sigma 14.6: the default guides every step.)
    guidance_interval: tuple[float, float] = added((0.0, 1000.0))
    # True compiles UNet and decoder (torch.compile, static shapes): other kernels, so other last bits.
    compiled: bool = added(False)
    # True starts from noise that holds the photographs' low frequencies, as the noisiest training latents do
    # (Everaert et al. 2024); from noise alone tints are few. False = as stock pipelines do.
    signal_leak: bool = added(False)

    def __post_init__(self) -> None:
        require(self.name in ("dpm++", "ddim", "base"), f"unknown sampler {self.name!r}")
        require(self.steps >= 1 and self.batch >= 1, "sampler.steps and sampler.batch must be at least 1")
        require(
            0 <= self.guidance_interval[0] < self.guidance_interval[1],
            f"sampler.guidance_interval must satisfy 0 <= low < high, not {self.guidance_interval}",
        )


@dataclass(frozen=True)
class Synthesize:
    """Generators -> `synthetic`."""

    # How noise becomes an image.
    sampler: Sampler = field(default_factory=Sampler)
    # Images per generator and grade; with `accepted` the least that is made.
    count: int = 96
    # Wanted images inside `band` per generator and grade; 0 = exactly `count`, no quota.
    accepted: int = 0
    # Most images per generator and grade that a quota may cost.
    max_images: int = 100_000
    # Semantic score band [low, high] that the quota counts.
    band: tuple[float, float] = (0.7, 0.9)
    # Images a shard: one Ray block, one Parquet row group; a whole number of compute batches.
    shard_size: int = 64
    # Crashes of a shard (its process died or hung) after which it is quarantined.
    max_starts: int = 3
    # GPU-seconds that the stage may take over all its starts, idle and lost ones included; 0 = no limit.
    max_gpu_seconds: float = added(0.0)
    # What the stage may cost in the currency of the price table: hours of every node while it runs; 0 = no limit.
    max_cost: float = added(0.0)
    # A shard without a finished denoising step for so long hangs: its process is ended, which counts as a crash.
    hang_seconds: float = added(300.0)
    # Ids of imported generators (`raydr finetune import`) that make images too; own ones that are not trained yet are
    # left out then. Their images enter no arm of a sweep: what they saw is not known.
    imported: tuple[str, ...] = added(())
    # Share of the images that may be quarantined before the stage fails, 0-1.
    max_quarantine: float = added(0.01)

    def __post_init__(self) -> None:
        low, high = self.band
        require(0 <= low < high <= 1, f"synthesize.band must satisfy 0 <= low < high <= 1, not {self.band}")
        require(
            self.shard_size % self.sampler.batch == 0,
            f"synthesize.shard_size {self.shard_size} is no whole number of compute batches of {self.sampler.batch}",
        )
        require(self.count >= 1, "synthesize.count must be at least 1")
        require(self.max_starts >= 1, "synthesize.max_starts must be at least 1")
        require(self.max_gpu_seconds >= 0 and self.max_cost >= 0, "synthesize's budgets must not be negative")
        require(self.hang_seconds > 0, "synthesize.hang_seconds must be positive")
        require(0 <= self.max_quarantine <= 1, "synthesize.max_quarantine is a share between 0 and 1")


@dataclass(frozen=True)
class Report:
    """Presentation only; outside every fingerprint."""

    # Bootstrap draws of every interval.
    bootstrap_draws: int = 10_000
    # Of all intervals.
    confidence: float = 0.95
    # Thumbnails in the gallery per generator and grade.
    gallery: int = 60


@dataclass(frozen=True)
class Recipe:
    """A complete run."""

    # The recipe's name, as given to --recipe.
    name: str
    # Root of every seed below; another seed is another cohort (phantoms) and other noise.
    seed: int = 1
    # Repetitions of the whole chain (ensemble, generators, trials): of phantoms each on a cohort of its own, of
    # photographs on the same ones, with other seeds and, where there is a fold, the next fold each.
    num_replicates: int = 1
    # Which of them this is; set for the runs OUT/replicate-N, never by hand.
    replicate: int = 0
    # Evaluated fold of a pooled train + validation set (of replicates the first one); null uses the official splits.
    fold: int | None = None
    # Photographs.
    ingest: Ingest = field(default_factory=Ingest)
    # Graders that score.
    ensemble: Ensemble = field(default_factory=Ensemble)
    # Generators.
    finetune: Finetune = field(default_factory=Finetune)
    # Images.
    synthesize: Synthesize = field(default_factory=Synthesize)
    # Arms.
    sweep: Sweep = field(default_factory=Sweep)
    # The page.
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        # Each replicate has 20 cohort seeds of its own, one a phantom set, and each recipe's seed 1,000.
        require(1 <= self.num_replicates <= 50, f"num_replicates must lie in 1..50, not {self.num_replicates}")
        require(len(self.ingest.phantoms) <= 20, "ingest.phantoms holds more than 20 sets")
        # Cohort seeds are seed * 1000 + ...; from 900,000 on they belong to the built-in base.
        require(
            0 <= self.seed < 900, f"seed must lie in 0..899, not {self.seed}: higher ones belong to the base's phantoms"
        )

    def replicate_of(self, index: int) -> "Recipe":
        """The recipe of replicate `index`: the same experiment on another cohort, or evaluating a later fold."""
        fold = None if self.fold is None else self.fold + index
        return dataclasses.replace(self, num_replicates=1, replicate=index, fold=fold)
