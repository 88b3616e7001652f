"""raydr.kinds: controls of ECC differ from it in what they are named after, and in nothing else."""

import dataclasses

import pytest

from raydr import kinds, lineage, recipes
from raydr.config import Finetune
from raydr.errors import UserError

RECIPE = recipes.named("demo")
ALL = dataclasses.replace(RECIPE, finetune=dataclasses.replace(RECIPE.finetune, kinds=tuple(kinds.CHANGES)))


def test_controls_leave_the_ids_of_plain_and_ecc_and_share_seed_and_branch():
    before = [generator.generator_id for generator in lineage.generators(RECIPE, "d", "b", "e")]
    found = lineage.generators(ALL, "d", "b", "e")
    assert [g.generator_id for g in found if g.kind in ("plain", "ecc")] == before
    assert len({g.generator_id for g in found}) == len(found) == 2 * len(kinds.CHANGES)
    for grade in (1, 3):
        of_grade = [g for g in found if g.grades == (grade,)]
        assert len({g.seed for g in of_grade}) == 1
        assert len({g.branch_id for g in of_grade}) == 1
    # The rows of `synthetic` read the kind off the id.
    assert all(g.generator_id.split("-")[0] == g.kind for g in found)


@pytest.mark.parametrize(
    ("kind", "differing"),
    [("plain", {}), ("ecc", {}), ("ecc_w0", {"w_ecc": 0.0}), ("ecc_w0.1", {"w_ecc": 0.1}),
     ("ecc_unselected", {"ecc_select": False})],
)  # fmt: skip
def test_what_a_kind_changes(kind, differing):
    before, after = Finetune(), kinds.changed(Finetune(), kind)
    found = {f.name: getattr(after, f.name) for f in dataclasses.fields(after)}
    assert {name: value for name, value in found.items() if value != getattr(before, name)} == differing
    assert kinds.is_ecc(kind) == (kind != "plain")


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match=r"'plain', 'ecc', 'ecc_w0', 'ecc_unselected'.*not \('ecc_w2',\)"):
        Finetune(kinds=("ecc_w2",))
