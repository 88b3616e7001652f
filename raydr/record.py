"""recipe.json back into a Recipe."""

import dataclasses
import types
import typing
from typing import Any

from raydr.config import Recipe
from raydr.errors import DamagedData, UserError
from raydr.storage import Run


def stored_recipe(target: Run) -> Recipe | None:
    """The recipe that a run was begun with, or None."""
    if not target.exists("recipe.json"):
        return None
    record = target.read_json("recipe.json")
    try:
        return restore(Recipe, record.get("recipe") if isinstance(record, dict) else record)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise DamagedData(
            f"recipe.json in {target.url} is no recipe of raydr ({error}): restore it, or use another --out"
        ) from None


def restore(kind: Any, value: Any) -> Any:
    """A frozen dataclass of this package from its JSON form.

    Raises UserError where the fields do not fit, TypeError or ValueError where a value is of another type.
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict):
            raise TypeError(f"{typing.cast(type, kind).__name__} is stored as {type(value).__name__}")
        unknown = set(value) - set(hints)
        if unknown:
            raise UserError(
                f"recipe.json holds fields of another version of raydr ({', '.join(map(repr, sorted(unknown)))})"
            )
        return kind(**{name: restore(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"a list is stored as {type(value).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(restore(arguments[0], item) for item in value)
        return tuple(restore(one, item) for one, item in zip(arguments, value, strict=True))
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        (kind,) = (one for one in arguments if one is not types.NoneType)
        return restore(kind, value)
    # JSON has one number for 2 and 2.0, and Python's True is an int.
    allowed = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}.get(kind)
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool)):
        raise TypeError(f"a {kind.__name__} is stored as {str(value)[:40]!r}")
    return value


def replicates(recipe: Recipe, target: Run) -> list[tuple[Recipe, Run]]:
    """(recipe, run) of every replicate: OUT itself for one, OUT/replicate-N for several."""
    if recipe.num_replicates == 1:
        return [(recipe, target)]
    return [(recipe.replicate_of(k), target.child(f"replicate-{k}")) for k in range(recipe.num_replicates)]
