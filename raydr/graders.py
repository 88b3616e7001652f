"""Settings of graders: one grader, the ensemble that scores, the sweep, its axes and its search."""

from dataclasses import dataclass, field

from raydr.errors import require
from raydr.identity import added


@dataclass(frozen=True)
class Grader:
    """How one grader is built and trained; used by ensemble members and by sweep trials."""

    # timm model name, or torchvision's vgg16_bn, densenet121, inception_v3, resnet50 for LANet.
    backbone: str = "resnet10t"
    # "plain" = 5-way head; "lanet" = lesion-aware attention with an auxiliary binary head.
    head: str = "plain"
    # LANet on a timm backbone: module whose output is attended; empty = the last feature stage but one.
    lanet_stage: str = ""
    # True takes the backbone's published weights from the hub (needs network once).
    pretrained: bool = False
    # A local .safetensors or .pth file of backbone weights, instead of the hub's; empty = none.
    weights: str = ""
    # Side of the input, px; images are resized when they differ.
    px: int = 64
    # Optimisation steps, equal for every arm.
    steps: int = 200
    # Images a step.
    batch: int = 64
    # "adamw" with a cosine schedule, or "sgd" with the paper's polynomial one.
    optimizer: str = "adamw"
    # The schedule's highest.
    learning_rate: float = 2e-3
    # Of the optimizer.
    weight_decay: float = 0.02
    # ce, inverse_frequency, class_balanced, focal, ldam, ldam_drw, balanced_softmax, logit_adjustment,
    # logit_adjustment_post (plain ce, logits corrected when predicting); all but ce and focal need sampler "instance".
    loss: str = "ce"
    # The loss's own parameter: focal gamma, class-balanced beta, logit-adjustment tau; 0 = its default.
    loss_parameter: float = 0.0
    # instance (as the data is), sqrt, balanced (each grade 20 % of the draws), or paper (weights from
    # the real counts even where synthetic images are added: the published flaw).
    sampler: str = "balanced"
    # Beta(alpha, alpha) MixUp; 0 turns it off.
    mixup: float = 0.0
    # rho: targets of synthetic images become (1 - rho) one-hot + rho ensemble mean.
    soft_labels: float = 0.0
    # "light" = flips, quarter turns, shifts and colour jitter; "paper" = LANet's; "none" for tests.
    augmentation: str = "light"
    # "auto" trains in bf16 where the device computes it natively (1.6x on AVX512-BF16 CPUs), else fp32.
    precision: str = "auto"
    # Evaluate on validation every so many steps and keep the best; 0 = last step only.
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        require(self.head in ("plain", "lanet"), f"head is 'plain' or 'lanet', not {self.head!r}")
        require(self.optimizer in ("adamw", "sgd"), f"optimizer is 'adamw' or 'sgd', not {self.optimizer!r}")
        require(self.sampler in ("instance", "sqrt", "balanced", "paper"), f"unknown sampler {self.sampler!r}")
        require(self.augmentation in ("none", "light", "paper"), f"unknown augmentation {self.augmentation!r}")
        require(self.precision in ("auto", "fp32", "bf16"), f"unknown precision {self.precision!r}")
        require(self.steps >= 1 and self.batch >= 2, "a grader needs at least 1 step and a batch of 2")


@dataclass(frozen=True)
class Member:
    """One ensemble member: a grader on the training rows outside one inner fold."""

    # How it is built and trained.
    grader: Grader
    # Inner fold left out of training and used to calibrate, 0 <= fold < Ensemble.inner_folds.
    inner_fold: int = 0
    # "score" members judge samples in the loop (A); "audit" members never do (B).
    role: str = "score"
    # Of its initial weights and its order of images.
    seed: int = 0


@dataclass(frozen=True)
class Ensemble:
    """Graders that judge samples."""

    # The graders, each on its own inner fold.
    members: tuple[Member, ...] = ()
    # Folds of the training photographs from which members are held out.
    inner_folds: int = 5

    def __post_init__(self) -> None:
        for member in self.members:
            require(member.role in ("score", "audit"), f"member role is 'score' or 'audit', not {member.role!r}")
            require(
                0 <= member.inner_fold < self.inner_folds,
                f"inner_fold {member.inner_fold} is outside 0..{self.inner_folds - 1}",
            )


@dataclass(frozen=True)
class Axes:
    """Graders that every arm is trained with, beside the sweep's own: the grid of what is named here.

    An empty axis keeps the sweep's value. Illegal cells are refused by name before anything starts.
    """

    # timm or torchvision names, as sweep.grader.backbone.
    backbones: tuple[str, ...] = ()
    # Imbalance treatments: "loss", "loss=parameter", "loss@sampler" or "loss=parameter@sampler", as "focal=2" or
    # "ldam@instance"; a sampler given here outweighs the axis `samplers`.
    losses: tuple[str, ...] = ()
    # Samplers, as sweep.grader.sampler: instance, sqrt, balanced, paper.
    samplers: tuple[str, ...] = ()
    # Alphas of MixUp, as sweep.grader.mixup.
    mixups: tuple[float, ...] = ()
    # rho of the soft labels of synthetic images.
    soft_labels: tuple[float, ...] = ()
    # Arms that are trained with all of it; empty = all of the sweep's. Others keep the sweep's own grader.
    arms: tuple[str, ...] = ()
    # Cells drawn at random from the grid; 0 = the whole grid. More cells of the same seed keep the earlier ones.
    num_random: int = 0

    def __post_init__(self) -> None:
        require(self.num_random >= 0, f"sweep.axes.num_random must not be negative: {self.num_random}")


@dataclass(frozen=True)
class Search:
    """A search for grader settings inside one arm, scored on validation alone and never reported as an arm."""

    # The arm; empty = no search.
    arm: str = ""
    # Settings that are tried.
    num_trials: int = 16
    # "random", one of Ray Tune's own (optuna, hyperopt, bayesopt, nevergrad, ...) or "module:Class" of a Searcher.
    searcher: str = "random"
    # True stops the worse trials of this search early (asynchronous successive halving).
    asha: bool = False
    # Range [low, high], drawn uniformly in the logarithm; equal ends keep one value.
    learning_rate: tuple[float, float] = (1e-3, 1e-2)
    # The same of the weight decay.
    weight_decay: tuple[float, float] = (0.005, 0.05)
    # Choices as in Axes.losses; empty = the sweep's own.
    losses: tuple[str, ...] = ()
    # Choices of MixUp's alpha; empty = the sweep's own.
    mixups: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(self.num_trials >= 1, "sweep.search.num_trials must be at least 1")
        for name in ("learning_rate", "weight_decay"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"sweep.search.{name} is a range 0 < low <= high, not {(low, high)}")


NO_AXES, NO_SEARCH = Axes(), Search()


@dataclass(frozen=True)
class Sweep:
    """Which arms, over which seeds; `real` + `synthetic` -> `trials`."""

    # What the grader is trained on, one table row each (README, "Arms").
    arms: tuple[str, ...] = ("real_only", "oversampling", "naive", "band", "ecc", "ceiling")
    # Trainings of each arm, with other initial weights and draws.
    num_seeds: int = 3
    # How every arm's grader is built and trained.
    grader: Grader = field(default_factory=Grader)
    # Grades that receive synthetic images.
    grades: tuple[int, ...] = (1, 3)
    # Share of the gap to the most frequent grade that is filled: 1 adds images until the grade is as frequent.
    ratio: float = 1.0
    # Images that every synthesised grade is to get (the paper: 5,000); 0 = by ratio, as the map always.
    count: int = added(0)
    # Scores [low, high] of the images that `band` and `ecc_band` add.
    band: tuple[float, float] = (0.7, 0.9)
    # Bands of the band x ratio map, scored on validation only; empty = no map.
    map_bands: tuple[tuple[float, float], ...] = ()
    # Its ratios.
    map_ratios: tuple[float, ...] = ()
    # Trainings of each cell.
    map_seeds: int = 1
    # Further graders that the arms are trained with: backbones, losses, samplers, MixUp, soft labels.
    axes: Axes = field(default=NO_AXES, metadata={"added": True})
    # Search for grader settings inside one arm, on validation.
    search: Search = field(default=NO_SEARCH, metadata={"added": True})
    # Arms whose trained graders are kept (OUT/trials/graders), for `raydr evaluate` and `raydr export`; "all" = all.
    keep_weights: tuple[str, ...] = added(())

    def __post_init__(self) -> None:
        require(self.num_seeds >= 1, "sweep.num_seeds must be at least 1")
        require(self.ratio >= 0, "sweep.ratio must not be negative")
        require(self.count >= 0, "sweep.count must not be negative")
