import dataclasses
import json

import pytest

from raydr import recipes
from raydr.config import Recipe
from raydr.errors import DamagedData, UserError
from raydr.record import replicates, restore, stored_recipe
from raydr.storage import Run


@pytest.fixture
def target(tmp_path):
    return Run(tmp_path)


def write(target, value):
    target.replace("recipe.json", value if isinstance(value, bytes) else json.dumps(value).encode())


def test_a_folder_without_a_recipe_holds_no_run(target):
    assert stored_recipe(target) is None


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_what_the_pipeline_writes_is_read_back(target, name):
    from raydr.cluster import pipeline

    recipe = recipes.named(name)
    pipeline.open_run(recipe, target)
    assert stored_recipe(target) == recipe
    record = target.read_json("recipe.json")
    assert set(record) == {"recipe", "versions", "revision", "fingerprints", "begun"}
    assert record["begun"] == []
    pipeline.open_run(stored_recipe(target), target)  # its own recipe is no change
    assert target.read_json("recipe.json") == record


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        ({}, "no recipe of raydr"),
        ([], "no recipe of raydr"),
        ({"recipe": 3}, "no recipe of raydr"),
        ({"recipe": {"name": "x", "ingest": []}}, "no recipe of raydr"),
        ({"recipe": {"name": "x", "ensemble": {"members": [{}]}}}, "no recipe of raydr"),
        ({"recipe": {"seed": 1}}, "no recipe of raydr"),
        ({"recipe": {"name": "x", "ingest": {"phantoms": [{"counts": [1, 2]}]}}}, "no recipe of raydr"),
    ],
)
def test_a_damaged_recipe_is_one_sentence(target, value, words):
    write(target, value)
    with pytest.raises(DamagedData, match=words) as caught:
        stored_recipe(target)
    assert "recipe.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_of_another_version_are_named(target):
    recipe = dataclasses.asdict(recipes.named("debug"))
    recipe["finetune"]["w_edge"] = 1
    write(target, {"recipe": recipe})
    with pytest.raises(UserError, match=r"another version of raydr \('w_edge'\)"):
        stored_recipe(target)


def test_values_are_validated_on_the_way_back(target):
    recipe = dataclasses.asdict(recipes.named("debug"))
    recipe["seed"] = 900
    write(target, {"recipe": recipe})
    with pytest.raises(UserError, match=r"seed must lie in 0\.\.899"):
        stored_recipe(target)


def test_a_field_that_is_new_gets_its_default():
    recipe = json.loads(json.dumps(dataclasses.asdict(recipes.named("debug"))))
    del recipe["finetune"]["noise_offset"]
    assert restore(Recipe, recipe) == recipes.named("debug")


def test_replicates_lie_beside_each_other(target):
    one, three = Recipe("x"), Recipe("x", num_replicates=3)
    assert replicates(one, target) == [(one, target)]
    parts = replicates(three, target)
    assert [place.url for _, place in parts] == [f"{target.url}/replicate-{k}" for k in range(3)]
    assert [(part.replicate, part.num_replicates) for part, _ in parts] == [(0, 1), (1, 1), (2, 1)]
