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


def gc(options: Any, recipe: Recipe, target: Run) -> int:
    """Say what the run no longer needs and how much that is; delete it with `--yes`."""
    from raydr import garbage
    from raydr.record import replicates

    places = [place for _, place in replicates(recipe, target)]
    with Run.locks("gc", target, *places):
        found = [(place, garbage.find(place, recipe, options.caches)) for place in places]
        sums: dict[str, tuple[int, int]] = {}
        for _, waste in found:
            for item in waste:
                count, size = sums.get(item.what, (0, 0))
                sums[item.what] = (count + 1, size + item.bytes)
        if not sums:
            terminal.line("gc", "nothing to delete")
            return 0
        rows = [[what, str(count), _megabytes(size)] for what, (count, size) in sorted(sums.items())]
        terminal.table("What this run no longer needs", ["what", "count", "MB"], rows)
        total = _megabytes(sum(size for _, size in sums.values()))
        if not options.yes:
            for _, waste in found:
                for item in waste if options.verbose else []:
                    terminal.note(f"{item.key}  {item.bytes} bytes")
            terminal.note(f"nothing deleted: add --yes to free {total} MB, --verbose to see each name")
            return 0
        for place, waste in found:
            with terminal.bar("gc", len(waste), "deleted") as bar:
                garbage.remove(place, waste, bar.to)
    terminal.line("gc", f"{sum(count for count, _ in sums.values())} deleted, {total} MB freed")
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"


def rescore(options: Any, recipe: Recipe, target: Run) -> int:
    """Let another ensemble judge the images that are there."""
    from raydr import shapes
    from raydr.cluster import rescore as stage

    _one_replicate(recipe, target)
    shape = shapes.with_options(options.shape, options.address, None, None)
    clock = terminal.Clock()
    with target.lock("rescore"):
        result = stage.run(recipe, target, options.ensemble, options.role, shape, options.paper_mode)
    told = f"{result['images']} images by {len(result['members'])} members, {result['scored']} of them now"
    terminal.line("rescore", f"scores/{result['ensemble_id']}: {told}", clock.seconds)
    terminal.note(f"raydr select {options.out} --ensemble {result['ensemble_id']}   takes these scores")
    return 0


def quality(options: Any, recipe: Recipe, target: Run) -> int:
    """Compare images with photographs, per generator and grade."""
    from raydr.cluster import quality as stage
    from raydr.record import replicates

    for each, place in replicates(recipe, target):
        clock = terminal.Clock()
        stage.show(stage.run(each, place, options.inception))
        terminal.line("quality", f"{place.url}/{stage.RESULT}; `raydr report {options.out}` shows it", clock.seconds)
    return 0
