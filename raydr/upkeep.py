"""What `raydr select`, `gc`, `rescore` and `quality` do: each gets the options, the run's recipe and its place."""

from typing import Any

from raydr import terminal
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.storage import Run


def select(options: Any, recipe: Recipe, target: Run) -> int:
    """Choose, say what was found and what is short, and export where `--to` says."""
    from raydr.trainset import card, choose, write

    _one_replicate(recipe, target)
    sweep = recipe.sweep
    low, high = options.band or sweep.band
    request = choose.Request(
        (low, high),
        sweep.ratio if options.ratio is None else options.ratio,
        tuple(sorted(set(options.grades or sweep.grades))),
        options.kind,
        tuple(options.generator or ()),
        options.ensemble,
    )
    to = Run(options.to) if options.to else None
    if to is not None:
        write.check_empty(to)
    clock = terminal.Clock()
    choice = choose.choose(target, request, recipe.fold)
    head = ["grade", "photographs", "wanted", "scored", "in band", "memorised", "not usable", "added", "short"]
    fields = ("num_real", "num_wanted", "num_scored", "num_in_band", "num_memorised", "num_unusable", "num_added")
    rows = [[str(c.grade), *(str(getattr(c, field)) for field in fields), str(c.shortage)] for c in choice.counts]
    terminal.table(f"Training set with scores in [{low:g}, {high:g}], ratio {request.ratio:g}", head, rows)
    total = choice.real.num_rows + choice.synthetic.num_rows
    terminal.line("select", f"{total} rows, {choice.synthetic.num_rows} of them synthetic", clock.seconds)
    for sentence in card.shortages(card.counts(choice)):
        terminal.note(sentence)
    if to is None:
        terminal.note("nothing written: name a folder or bucket with --to")
        return 0
    if not target.exists("report/dataset-card.json"):
        from raydr.cluster.audit import write_card

        write_card(target)
    made_by = card.generators(target, choice)
    datasets = {each["generator_id"]: each["dataset"] for each in made_by}
    with terminal.bar("export", total, "images") as bar:
        written = write.write(target, choice, to, options.format, datasets, lambda done, _: bar.to(done))
    made = card.card(target, choice, made_by, written)
    write.finish(to, made, card.markdown(made))
    terminal.line("export", f"{len(written.files)} files and {write.CARD_TEXT} in {to.url}", clock.seconds)
    return 0


def _one_replicate(recipe: Recipe, target: Run) -> None:
    if recipe.num_replicates > 1:
        raise UserError(
            f"{target.url} holds {recipe.num_replicates} replicates, each with photographs and images of its own: "
            f"name one, for example {target.url}/replicate-0"
        )
