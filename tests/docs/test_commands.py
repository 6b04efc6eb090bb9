"""Every command line in the guide parses, and every command, option and variable of the environment is in it."""

import ast
import re
import shlex
from itertools import dropwhile, groupby, pairwise
from pathlib import PurePath

import click
import pytest
from guide_pages import PAGES, ROOT, blocks, inline_code

from analyzer.cli.main import cli

REFERENCE = ROOT / "docs" / "cli.md"
READ = ("--text", "--prompts")  # options whose files must be there


def commands_in(text):
    """Yield the words of each command in a text of the shell's that may be this tool's or `hf`'s."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.search(r"superweight|-m analyzer|\bhf\b", line):
            words = shlex.shlex(re.sub(r"\b[012](?=>)", "", line), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            for is_operator, part in groupby(words, key=lambda word: not word.strip("();<>|&")):
                if not is_operator:
                    yield list(dropwhile(lambda word: word == "$" or re.match(r"\w+=", word), part))


def command_lines(text):
    """Return the arguments of each `superweight …`, `hf superweight …` or `python -m analyzer …` in such a text."""
    found = []
    for words in commands_in(text):
        length = 3 if words[1:3] == ["-m", "analyzer"] else 2 if words[:2] == ["hf", "superweight"] else 1
        if length > 1 or PurePath(*words[:1]).name == "superweight":
            found.append(tuple(words[length:]))
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("superweight scan x --top 3  # a remark", [("scan", "x", "--top", "3")]),
        ("$ .venv/bin/superweight scan 'a b' > out.txt 2>&1", [("scan", "a b")]),
        ("HF_HUB_OFFLINE=1 superweight scan x", [("scan", "x")]),
        ("true && superweight scan x; superweight list | jq .a", [("scan", "x"), ("list",)]),
        ("python -m analyzer scan x", [("scan", "x")]),
        ("superweight scan x \\\n    --top 3\nsuperweight cache", [("scan", "x", "--top", "3"), ("cache",)]),
        ("hf superweight scan x && hf download me/superweight", [("scan", "x")]),
        ("cat superweight.txt; echo superweight scan; superweighty scan", []),
    ],
)
def test_command_lines_are_found_as_the_shell_finds_them(text, found):
    assert command_lines(text) == found


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


OF_HF = sorted({
    (page.name, tuple(words[1:]))
    for page in PAGES
    for block in blocks(page)
    for words in commands_in(block.text)
    if words[:1] == ["hf"] and words[1] != "superweight"
})  # fmt: skip


def parse_hf(arguments):
    """Parse the arguments of `hf` as the installed one does, without running it."""
    from huggingface_hub.cli.hf import app

    command, rest = app, list(arguments)
    while isinstance(command, click.Group):
        _, command, rest = command.resolve_command(click.Context(command, info_name="hf"), rest)
    parsed = command.make_context("hf", rest).params
    if "script" in parsed:  # before it, hf takes any option for its own
        assert (ROOT / parsed["script"]).is_file()


@pytest.mark.parametrize(("page", "arguments"), OF_HF, ids=lambda value: str(value)[:80])
def test_every_command_line_of_hf_parses(page, arguments):
    parse_hf(arguments)


@pytest.mark.parametrize("wrong", ["jobs uv rnu x", "jobs uv run --datach x.py", "webhooks create --job x", "downlaod"])
def test_a_command_line_of_hf_that_is_wrong_does_not_parse(wrong):
    with pytest.raises((click.UsageError, AssertionError)):
        parse_hf(wrong.split())


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
            assert set(option.opts) <= set(re.findall(r"(?<![\w-])--?\w[\w-]*", chapter))


HUB = {"ENDPOINT": "HF_ENDPOINT"}  # what the Hub's client calls otherwise than the variable it comes from


def variables_of(text):
    """Return the environment's variables that Python code names: what looks like one, where it has the environment.

    Also what it reads of the Hub client's constants.
    """
    tree = ast.parse(text)
    has_environment = re.search(r"environ|getenv|putenv|envvar", text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("constants"):
            yield HUB.get(node.attr, node.attr)
        elif has_environment and isinstance(node, ast.Constant) and re.fullmatch(r"[A-Z][A-Z0-9_]+", str(node.value)):
            yield node.value


@pytest.mark.parametrize(
    "text",
    [
        "'AN_X' in os.environ",
        "from os import environ, getenv\ngetenv('AN_X')",
        "os.environ.setdefault('AN_X', '')",
        "NAME = 'AN_X'\nos.environ.pop(NAME)",
        "any(os.environ.get(name) for name in ('AN_X',))",
        "click.option('--x', envvar='AN_X')",
        "huggingface_hub.constants.AN_X",
    ],
)
def test_a_variable_is_seen_in_any_form(text):
    assert list(variables_of(text)) == ["AN_X"]


def test_every_variable_of_the_environment_is_documented():
    read = {name for path in (ROOT / "analyzer").rglob("*.py") for name in variables_of(path.read_text("utf-8"))}
    assert {"SUPERWEIGHT_CACHE", "SUPERWEIGHT_DEBUG", "HF_ENDPOINT", "HF_HUB_OFFLINE"} <= read
    documented = set(inline_code(REFERENCE))
    assert read <= documented
    assert {name for name in documented if name.startswith("SUPERWEIGHT_")} <= read
