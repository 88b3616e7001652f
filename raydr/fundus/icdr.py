"""Grade a photograph from its lesion ledger by the ICDR rules, knowing nothing of how it was drawn.

0 no lesion; 1 microaneurysms only; 2 more than microaneurysms, less than 3; 3 by the 4-2-1 rule (more
than 20 intraretinal haemorrhages in each of 4 quadrants, or definite venous beading in >= 2, or
prominent IRMA in >= 1) without a proliferative sign; 4 neovascularisation or vitreous/preretinal
haemorrhage (Wilkinson et al., Ophthalmology 110, 2003).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

PROLIFERATIVE = ("neovascularisation_disc", "neovascularisation_elsewhere", "preretinal", "vitreous")
HAEMORRHAGES = ("dot", "blot", "flame")
QUADRANTS = ("superior_temporal", "superior_nasal", "inferior_temporal", "inferior_nasal")


def rule_grade(ledger: Iterable[dict[str, Any]]) -> int:
    """ICDR grade 0-4 of a ledger: dicts with at least `kind` and `quadrant`."""
    by_kind: dict[str, Counter[str]] = {}
    for lesion in ledger:
        by_kind.setdefault(lesion["kind"], Counter())[lesion["quadrant"]] += 1
    if not by_kind:
        return 0
    if any(kind in by_kind for kind in PROLIFERATIVE):
        return 4
    haemorrhages: Counter[str] = Counter()
    for kind in HAEMORRHAGES:
        haemorrhages.update(by_kind.get(kind, {}))
    if all(haemorrhages[quadrant] > 20 for quadrant in QUADRANTS):
        return 3
    if len(by_kind.get("venous_beading", ())) >= 2 or "irma" in by_kind:
        return 3
    return 1 if set(by_kind) == {"microaneurysm"} else 2
