"""Imbalance treatments by name: losses, their parameters, and which of them may meet which sampler. Without torch."""

import math
from dataclasses import replace

from raydr import config
from raydr.errors import UserError

# Losses that know the class counts. Balanced draws already remove the prior these correct for.
PRIOR_BASED = (
    "inverse_frequency",
    "class_balanced",
    "ldam",
    "ldam_drw",
    "balanced_softmax",
    "logit_adjustment",
    "logit_adjustment_post",
)
LOSSES = ("ce", "focal", *PRIOR_BASED)
DEFAULT_PARAMETER = {
    "focal": 2.0,
    "class_balanced": 0.999,
    "ldam_drw": 0.9999,
    "logit_adjustment": 1.0,
    "logit_adjustment_post": 1.0,
}


def parameter(grader: config.Grader) -> float:
    """The loss's own parameter: what the configuration says, 0 meaning the published default."""
    return grader.loss_parameter or DEFAULT_PARAMETER.get(grader.loss, 0.0)


def check_combination(grader: config.Grader) -> None:
    """Raise UserError for an unknown loss, a parameter out of range or a pair that corrects twice."""
    if grader.loss not in LOSSES:
        raise UserError(f"unknown grader.loss {grader.loss!r}: use one of {', '.join(LOSSES)}")
    if grader.loss in PRIOR_BASED and grader.sampler != "instance":
        raise UserError(
            f"loss {grader.loss!r} corrects for the class counts and sampler {grader.sampler!r} already does: "
            f"use sampler 'instance' with it, or loss 'ce' or 'focal' with sampler {grader.sampler!r}"
        )
    value = parameter(grader)
    if grader.loss in ("class_balanced", "ldam_drw") and not 0 < value < 1:
        raise UserError(f"loss {grader.loss!r} takes a beta between 0 and 1, not {value}")
    if grader.loss in ("focal", "logit_adjustment", "logit_adjustment_post") and not value > 0:
        raise UserError(f"loss {grader.loss!r} takes a positive parameter, not {value}")
    if not math.isclose(grader.loss_parameter, 0.0) and grader.loss not in DEFAULT_PARAMETER:
        raise UserError(f"loss {grader.loss!r} has no parameter, but grader.loss_parameter is {grader.loss_parameter}")
    if grader.mixup < 0:
        raise UserError(f"grader.mixup is the alpha of a Beta distribution and must not be negative: {grader.mixup}")
    if not 0 <= grader.soft_labels <= 1:
        raise UserError(f"grader.soft_labels is a share between 0 and 1, not {grader.soft_labels}")


def treated(grader: config.Grader, text: str) -> config.Grader:
    """`grader` with the treatment "loss", "loss=parameter", "loss@sampler" or "loss=parameter@sampler"."""
    rest, _, sampler = text.partition("@")
    loss, _, number = rest.partition("=")
    try:
        value = float(number) if number else 0.0
    except ValueError:
        raise UserError(f"{text!r} is no treatment: write loss, loss=parameter or loss=parameter@sampler") from None
    return replace(grader, loss=loss, loss_parameter=value, sampler=sampler or grader.sampler)
