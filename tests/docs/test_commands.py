"""Every command line in the guide parses, and every command, option and variable of the environment is in it."""

import ast
import shlex
from itertools import pairwise

import click
import pytest
from guide_pages import PAGES, ROOT, blocks, inline_code

from analyzer.cli.main import cli

REFERENCE = ROOT / "docs" / "cli.md"
SHELL = ("|", ">", "&&", ";", "2>&1")
READ = ("--text", "--prompts")  # options whose files must be there


def command_lines(text):
    """Return the arguments of each `superweight …` in a text, a command of the shell a line."""
    found = []
    for line in text.splitlines():
        line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if line.startswith("superweight "):
            words = shlex.split(line, comments=True)
            end = next((place for place, word in enumerate(words) if word in SHELL), len(words))
            found.append(tuple(words[1:end]))
    return found


SHOWN = sorted({
    (page.name, arguments, spoken)
    for page in PAGES
    for spoken, texts in ((False, [block.text for block in blocks(page)]), (True, inline_code(page)))
    for text in texts
    for arguments in command_lines(text)
})  # fmt: skip


def commands(group=cli, names=()):
    for name, command in group.commands.items():
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))


def named(arguments):
    """Return the name of the command that a command line names, the command itself, and its own arguments."""
    names, command, rest = ["superweight"], cli, list(arguments)
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
    return " ".join(names), command, rest


def parse(arguments, *, spoken=False):
    """Parse a command line as the command that it names does, without running it; one `spoken` of may have no more."""
    name, command, rest = named(arguments)
    if isinstance(command, click.Group) and rest:
        command.resolve_command(click.Context(command, info_name=name), rest)  # raises: there is no such command
    elif rest or not spoken:
        command.make_context(name, rest)


@pytest.mark.parametrize(("page", "arguments", "spoken"), SHOWN, ids=lambda value: str(value)[:80])
def test_every_command_line_parses(tmp_path, monkeypatch, page, arguments, spoken):
    monkeypatch.chdir(tmp_path)
    for option, file in pairwise(arguments):
        if option in READ:
            (tmp_path / file).write_text("A line.")
    parse(arguments, spoken=spoken)


@pytest.mark.parametrize(
    "wrong", ["scan x --tpo 3", "scan x --top 0", "scan", "scna x", "catalog site a b", "catalog x"]
)
def test_a_command_line_that_is_wrong_does_not_parse(wrong):
    with pytest.raises(click.UsageError):
        parse(wrong.split())


def test_every_command_is_shown_in_use():
    """Not in the reference alone, which is written from the code."""
    used = {named(arguments)[0] for page, arguments, _ in SHOWN if page != REFERENCE.name}
    assert {" ".join(["superweight", *names]) for names, _ in commands()} <= used


@pytest.mark.parametrize(("names", "command"), list(commands()), ids=lambda value: str(value))
def test_every_option_is_in_the_reference(names, command):
    path = f"superweight {' '.join(names)}"
    chapter = REFERENCE.read_text("utf-8").split(f"### {path}\n")[1].split("\n### ")[0]
    for option in command.params:
        if isinstance(option, click.Option):
            assert all(name in chapter for name in option.opts)


HUB = {"ENDPOINT": "HF_ENDPOINT"}  # what the Hub's client calls otherwise than the variable it comes from


def variables_of(path):
    """Return the environment's variables that a file reads or sets: of os.environ, or the Hub client's constants."""
    tree = ast.parse(path.read_text("utf-8"))
    named = {
        target.id: [node.value.value]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.comprehension) and isinstance(node.iter, ast.Tuple):
            named[ast.unparse(node.target)] = [ast.unparse(each).strip("'\"") for each in node.iter.elts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "constants":
            yield HUB.get(node.attr, node.attr)
        key = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            key = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            key = node.args[0]
        if key is not None:
            yield from named[key.id] if isinstance(key, ast.Name) else [ast.literal_eval(key)]


def test_every_variable_of_the_environment_is_documented():
    read = {name for path in (ROOT / "analyzer").rglob("*.py") for name in variables_of(path)}
    assert {"SUPERWEIGHT_CACHE", "SUPERWEIGHT_DEBUG", "HF_ENDPOINT", "HF_HUB_OFFLINE"} <= read
    documented = set(inline_code(REFERENCE))
    assert read <= documented
    assert {name for name in documented if name.startswith("SUPERWEIGHT_")} <= read
