"""The arms of a sweep by name: what each adds to the photographs (paper 9)."""

from dataclasses import dataclass

from raydr.errors import UserError
from raydr.kinds import CHANGES, ECC, PLAIN


@dataclass(frozen=True)
class Arm:
    """What an arm adds to the photographs, and by which rule its number of images is set."""

    # none; a kind of generator (raydr/kinds.py); prior or fresh (real photographs); roundtrip (the training
    # photographs after encode and decode); scorers (nothing is trained: the ensemble's own verdicts).
    source: str
    # Score band between low and high; "recipe" takes the sweep's.
    band: tuple[float, float] | str | None = None
    # Which ends belong to the band: "[]" both, "[)" the lower one, "(]" the upper one.
    ends: str = "[]"
    # Random draw from all scored samples instead of the lowest indices.
    random: bool = False
    # None = the sweep's sampler; real_only trains on the data as it is.
    sampler: str | None = None
    # "recipe" = the sweep's grades get images, "all" = every grade does.
    grades: str = "recipe"
    # Arms of the family "main" share one number a grade, set by the poorest of them; the score "bin"s share another;
    # a "control" gets main's number as far as it reaches and holds nobody back; a "probe" is no grader.
    family: str = "main"


ARMS: dict[str, Arm] = {
    "real_only": Arm("none", sampler="instance"),
    "oversampling": Arm("none"),
    "naive": Arm(PLAIN),
    "random_subset": Arm(PLAIN, random=True),
    "band": Arm(PLAIN, band="recipe"),
    "ecc": Arm(ECC),
    "ecc_band": Arm(ECC, band="recipe"),
    "bin_low": Arm(PLAIN, band=(0.0, 0.5), ends="[)", family="bin"),
    "bin_mid": Arm(PLAIN, band=(0.5, 0.7), ends="[)", family="bin"),
    "bin_paper": Arm(PLAIN, band=(0.7, 0.9), family="bin"),
    "bin_top": Arm(PLAIN, band=(0.9, 1.0), ends="(]", family="bin"),
    **{kind: Arm(kind, family="control") for kind in CHANGES if kind not in (PLAIN, ECC)},
    "all_grades": Arm(PLAIN, band="recipe", grades="all", family="control"),
    "vae_roundtrip": Arm("roundtrip", family="control"),
    # A control: the prior sets' few labelled photographs would cap every synthetic arm and the ceiling.
    "external_real": Arm("prior", family="control"),
    "ensemble": Arm("scorers"),
    "ceiling": Arm("fresh"),
    "probe": Arm(PLAIN, family="probe"),
    "probe_ecc": Arm(ECC, family="probe"),
    "probe_roundtrip": Arm("roundtrip", family="probe"),
}
# Sources that add nothing to the photographs, and those that are real photographs.
ADDING_NOTHING = ("none", "scorers")
REAL_SOURCES = ("prior", "fresh")


def arm_named(name: str) -> Arm:
    if name not in ARMS:
        raise UserError(f"There is no arm {name!r}: choose from {', '.join(ARMS)}")
    return ARMS[name]
