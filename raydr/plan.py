"""What each stage of a recipe will do, and how much of it is done: for --dry-run and status, without Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raydr import prices, schema, shards, spending, trials
from raydr.arms import arm_named
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.grades import GRADES
from raydr.kinds import CHANGES, is_ecc
from raydr.record import replicates
from raydr.selection import grades_of
from raydr.shapes import Shape
from raydr.storage import Run


@dataclass(frozen=True)
class Row:
    stage: str
    work: str
    done: str
    cost: str  # measured seconds and money, what is left to pay at the rate so far, or "unmeasured"


def check(recipe: Recipe) -> None:
    """UserError where the sweep asks for images that no stage before it makes: said at once, not hours later."""
    finetune, sweep = recipe.finetune, recipe.sweep
    trained = set(GRADES) if finetune.joint else set(finetune.grades)
    trials.check(recipe)
    for name in (*sweep.arms, *((sweep.search.arm,) if sweep.search.arm else ())):
        source, grades = arm_named(name).source, grades_of(arm_named(name), sweep.grades)
        if source in CHANGES:
            if source not in finetune.kinds:
                raise UserError(f"sweep.arms: {name} takes {source} images, and finetune.kinds is {finetune.kinds}")
            if not set(grades) <= trained:
                raise UserError(
                    f"sweep.grades {grades} are to get images of {name}, and finetune.grades trains "
                    f"{finetune.grades} alone"
                )
        elif source in ("prior", "fresh") and recipe.ingest.source == "phantom":
            there = [sum(part.counts[g] for part in recipe.ingest.phantoms if part.split == source) for g in GRADES]
            short = [grade for grade in sweep.grades if not there[grade]]
            if short:
                raise UserError(
                    f"sweep.arms: {name} takes {source} photographs, of which ingest has no grade {short[0]}"
                )


@dataclass(frozen=True)
class Left:
    """What a sweep still has to do: trials, and the seconds that these train, None while none has been measured."""

    num_done: int
    num_left: int
    seconds: float | None
    # The seconds are `--shape.trial-seconds`, and nothing was measured.
    assumed: bool = False

    def words(self, shape: Shape) -> str:
        """Hours of training, and GPU-hours where a trial has (a share of) a GPU."""
        assert self.seconds is not None
        hours = self.seconds / 3600
        gpus = f", {hours * shape.trial_gpus:.2f} GPU-hours" if shape.trial_gpus else ""
        told = f"about {hours:.2f} h of training for {self.num_left} more{gpus}"
        if not self.assumed:
            return told
        table = prices.load(shape.prices)
        hourly = table.hourly({prices.GROUPS[0]: "sweep"}) if shape.trial_gpus else None
        if hourly is not None:
            examples = "" if table.checked else ", example prices"
            told += f", {hourly * hours * shape.trial_gpus:.2f} {table.currency} with one GPU a node{examples}"
        return f"{told}, assuming {shape.trial_seconds:g} s a trial"


def sweep_left(recipe: Recipe, parts: Sequence[Run], shape: Shape) -> Left:
    """`parts` are the replicates' runs. Seconds by the mean of a step of committed trials of the sweep's backbones.

    Before there is such a trial by `shape.trial_seconds`, where that is given.
    """
    columns = ["backbone", "steps", "seconds"]
    rows = [
        row
        for place in parts
        for row in shards.read(place, "trials/results", schema.TRIALS, columns, required=False).to_pylist()
    ]
    wanted = [grader for name in recipe.sweep.arms for grader in trials.graders_of(recipe, name)]
    backbones = {grader.backbone for grader in wanted}
    measured = [row for row in rows if row["backbone"] in backbones and row["seconds"]]
    left = max(0, trials.count(recipe) * len(parts) - len(rows))
    if not measured:
        return Left(len(rows), left, shape.trial_seconds * left or None, assumed=True)
    each = sum(row["seconds"] for row in measured) / sum(row["steps"] for row in measured)
    return Left(len(rows), left, each * recipe.sweep.grader.steps * left)


def describe(recipe: Recipe, target: Run, shape: Shape | None = None) -> list[Row]:
    """One row a stage, over all replicates; GPU-hours are those of `shape` (default: the laptop, without a GPU)."""
    shape = shape or Shape()
    parts = [place for _, place in replicates(recipe, target)]
    num = len(parts)
    times = f" x {num} replicates" if num > 1 else ""

    def rows_of(prefix: str) -> int:
        return sum(record.rows for place in parts for record in shards.commits(place, prefix).values())

    def uploads(prefix: str) -> int:
        return sum(key.endswith("_done.json") for place in parts for key, _ in place.list(prefix))

    def cost(stage: str) -> str:
        spent = [place.read_json("logs/stages.json").get(stage) for place in parts if place.exists("logs/stages.json")]
        seconds = sum(item["seconds"] for item in spent if item)
        money = spending.Spend(checked=True)
        for place in parts:
            part = spending.total(place, stage)
            if part.seconds:
                spending.add(money, part)
        # A stage that was killed has left no time of its own, but what its drivers spent.
        told = [f"{max(seconds, money.seconds):.0f} s"] if seconds or money.seconds else ["unmeasured"]
        if money.known is not None:
            told.append(money.words())
            left = max(0, images * num - rows_of("synthetic")) if stage == "synthesize" and money.images else 0
            if left:
                told.append(f"about {money.known / money.images * left:.2f} {money.currency} more")
            if stage == "sweep" and rest.num_done and rest.num_left:
                told.append(f"about {money.known / rest.num_done * rest.num_left:.2f} {money.currency} more")
        if stage == "sweep" and rest.num_left and rest.seconds is not None:
            told.append(rest.words(shape))
        return ", ".join(told)

    finetune, synthesize, sweep = recipe.finetune, recipe.synthesize, recipe.sweep
    rest = sweep_left(recipe, parts, shape)
    groups = 1 if finetune.joint else len(finetune.grades)
    grades = 5 if finetune.joint else 1
    num_generators = groups * len(finetune.kinds)
    steps = groups * sum(
        finetune.steps - (finetune.ecc_start if is_ecc(kind) and "plain" in finetune.kinds else 0)
        for kind in finetune.kinds
    )
    images = num_generators * grades * math.ceil(synthesize.count / synthesize.shard_size) * synthesize.shard_size
    quota = f"{images} images" + (f", then to {synthesize.accepted} in band each" if synthesize.accepted else "")
    if recipe.ingest.source == "phantom":
        photographs = f"{sum(sum(part.counts) for part in recipe.ingest.phantoms)} phantoms"
    else:
        photographs = f"{recipe.ingest.source} from a path"
    return [
        Row("ingest", photographs + times, f"{rows_of('real')}", cost("ingest")),
        Row("ensemble", f"{len(recipe.ensemble.members)} graders{times}", f"{uploads('graders')}", cost("ensemble")),
        Row(
            "finetune",
            f"{num_generators} generators, {steps} steps{times}",
            f"{uploads('generators')}",
            cost("finetune"),
        ),
        Row("synthesize", quota + times, f"{rows_of('synthetic')}", cost("synthesize")),
        Row(
            "sweep",
            f"{trials.count(recipe)} trials of {sweep.grader.steps} steps{times}",
            f"{rows_of('trials/results')}",
            cost("sweep"),
        ),
    ]
