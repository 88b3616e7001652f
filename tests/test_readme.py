"""Every command in a code block of the documents is one that raydr or Ray takes: parsed as typed, not run."""

import re
import shlex
from pathlib import Path

import pytest

from raydr import cli, recipes
from raydr.arguments import import_parser, parser

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", ".github/CONTRIBUTING.md")
# What stands above the first line of YAML of these is for a reader to type.
HEADERS = ("cluster.yaml", "jobs/kuberay/raycluster.yaml", "jobs/kuberay/rayjob.yaml", "jobs/aws/access.yaml")
STAGES = ("run", "demo", "ingest", "ensemble", "finetune", "synthesize", "sweep")


def commands(text):
    """[words] of every `raydr` and `ray` command of a shell text, without comments and optional parts."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for part in re.split(r"\s(?:&&|;|&)(?:\s|$)", re.sub(r"(^|\s)#(\s.*|$)", " ", line) + " "):
            command = re.match(r"\s*(?:[A-Z_]+=\S*\s+)*(?:\S*/)?(raydr|ray)\s+(.*)", part)
            if command:
                found.append([command[1], *shlex.split(re.sub(r"\[.*?\]", "", command[2]))])
    return found


def typed():
    """(where, words) of every command of the documents."""
    for name in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S):
            yield from ((name, words) for words in commands(block))
    for name in HEADERS:
        lines = (ROOT / name).read_text().splitlines()
        header = lines[: next(k for k, line in enumerate(lines) if not line.startswith("#"))]
        # Commands are indented by three; the rest is prose.
        wanted = "\n".join(line[4:] for line in header if line.startswith("#   "))
        yield from ((name, words) for words in commands(wanted))


TYPED = list(typed())


def takes(words):
    """Parse one command; SystemExit or UserError where it is none."""
    if words[0] == "ray":
        from ray.scripts.scripts import cli as group

        name, *rest = words[1:]
        command = group.commands[name]
        while hasattr(command, "commands"):
            name, *rest = rest
            command = command.commands[name]
        command.make_context(name, list(rest))
        if "python" in rest:  # what a job runs
            script = rest[rest.index("python") + 1]
            assert (ROOT / script).is_file(), script
            takes(["raydr", Path(script).stem, *rest[rest.index("python") + 2 :]])
        return
    if words[1:3] == ["ensemble", "import"]:
        import_parser().parse_args(words[3:])
        return
    options, fields = parser().parse_known_args(words[1:])
    if options.command == "submit":
        takes(["raydr", options.job, *fields])
        return
    if options.command not in STAGES:
        assert fields == []
        return
    recipe = recipes.named(options.recipe or "demo")
    _, fields = cli.shape_of(options.shape, fields)
    while options.command == "ingest" and fields and fields[0][:1] != "-":  # SOURCE PATH
        fields.pop(0)
    cli.override(recipe, options.command, fields)


@pytest.mark.parametrize(("where", "words"), TYPED, ids=lambda item: " ".join(item) if isinstance(item, list) else item)
def test_a_documented_command_is_taken(where, words):
    if {"--help", "-h"} & set(words):
        with pytest.raises(SystemExit) as ended:
            takes(words)
        assert ended.value.code == 0
        return
    takes(words)


def test_commands_are_found():
    """The extraction itself: comments, optional parts, variables, several on a line, lines that go on."""
    text = "# no\nA=1 raydr gc OUT [--yes]   # why\n.venv/bin/raydr stop a ; raydr verify b && ls\n"
    text += "ray up \\\n  c.yaml -y &\nA='a b' awk '/raydr x/' raydr.txt\n"
    assert commands(text) == [
        ["raydr", "gc", "OUT"], ["raydr", "stop", "a"], ["raydr", "verify", "b"], ["ray", "up", "c.yaml", "-y"],
    ]  # fmt: skip
    assert {where for where, _ in TYPED} >= {"README.md", "cluster.yaml", "jobs/kuberay/raycluster.yaml"}
    for wrong in (["raydr", "stauts", "OUT"], ["raydr", "synthesize", "--acepted", "5"], ["raydr", "gc", "OUT", "--y"]):
        with pytest.raises((SystemExit, AssertionError)):
            takes(wrong)
