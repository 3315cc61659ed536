"""README.md and docs/: links lead somewhere, recipes are valid, commands exist, Python compiles."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from components.miniature.demo import prepare
from pipelines.cli import app
from pipelines.pages.parts import ROOT, pages
from pipelines.pages.reference import slug
from tests.pages import OURS, Block, blocks, blocks_of, commands, objects, recipes
from tests.pipelines.operator.corpus import said

LINK = re.compile(r"!?\[[^\]]*\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#{1,6} +(.+?)$", re.MULTILINE)
CODE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"^\| `(.+?)` ", re.MULTILINE)  # a row of a table that begins with code
CHEAP = ("validate", "plan", "stages", "--version", "compile")  # commands that tests run, beside parsing them
OWN = ROOT / "docs" / "how-to" / "your-own-shards.md"


def names(items: list[Path]) -> list[str]:
    return [str(item.relative_to(ROOT)) for item in items]


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_a_page_has_one_heading_of_the_first_level(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", CODE.sub("", page.read_text(encoding="utf-8")))
    for path, anchor in LINK.findall(text):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {path} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {path}#{anchor}: no such heading"


def anchors(page: Path) -> set[str]:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return {slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in HEADING.findall(text)}


def test_every_page_can_be_reached_from_the_index() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / path).resolve() for path, _ in LINK.findall(text)}
    assert {page for page in pages() if page.parent != ROOT} - linked == {ROOT / "docs" / "index.md"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 125


@pytest.mark.parametrize("block", [block for block, value in objects() if value["kind"] not in OURS], ids=str)
def test_other_objects_are_named_whole(block: Block) -> None:
    assert {"apiVersion", "kind"} <= yaml.safe_load(block.text).keys()


RECIPES = list(recipes())


@pytest.mark.parametrize(("block", "value"), RECIPES, ids=[str(block) for block, _ in RECIPES])
def test_every_recipe_is_valid(block: Block, value: dict[str, object]) -> None:
    assert said(value) == ""


def test_error_lines_of_troubleshooting_are_in_the_code() -> None:
    sources = [path.read_text(encoding="utf-8") for room in ("components", "pipelines") for path in walk(room)]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    said = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    lines = [line for table in page.split("| line |")[1:] for line in LINE.findall(table.split("\n\n")[0])]
    fragments = {part for line in lines for part in re.split(r"…|NAME|[()=';:]", line) if len(part.strip(" :;,.")) > 5}
    assert len(fragments) > 15
    assert [part for part in fragments if not any(part.strip() in text for text in said)] == []


def walk(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


SHELL = [(block, words) for block in blocks("sh", "console") for words in commands(block)]


@pytest.mark.parametrize(("block", "words"), SHELL, ids=[f"{block} {words[0]}" for block, words in SHELL])
def test_every_command_exists(block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for other in commands(block):
        if other[0] == "export":
            monkeypatch.setenv(*other[1].split("=", 1))
    program, *arguments = words
    if program == "recaption":
        parse(arguments)
    elif program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert all(re.search(rf"^(\S+ )*{target}( \S+)*:", MAKEFILE, re.MULTILINE) for target in targets)
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    elif program == "pip":
        wanted = {extra for word in arguments for extra in re.findall(r"(?<=\[)[\w,]+", word)}
        assert {name for extra in wanted for name in extra.split(",")} <= EXTRAS
    for word in arguments:
        if word.startswith(("manifests/", "tests/", "components/", "images/")) and "*" not in word:
            assert (ROOT / word).exists(), f"{block}: {word}"


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()


USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # typer has a click of its own, and doesn't export this one


def parse(arguments: list[str]) -> None:
    """Parse as the command line would, without running anything. Raises USAGE: an unknown command, option or value."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("recaption", list(arguments))
    while hasattr(command, "resolve_command") and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("wrong", ["plan recipe.yaml --nothing", "planning recipe.yaml", "plan", "demo --samples many"])
def test_a_wrong_command_is_seen(wrong: str) -> None:
    with pytest.raises(USAGE):
        parse(wrong.split())


def test_cheap_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all pages, each once; recipe.yaml is the miniature's, schedule.yaml is the sample."""
    monkeypatch.chdir(tmp_path)
    miniature(tmp_path)
    shutil.copy(ROOT / "manifests" / "samples" / "common-crawl.yaml", "schedule.yaml")
    found = {shlex.join(words[1:]) for _, words in SHELL if words[0] == "recaption" and {*words} & {*CHEAP}}
    assert len(found) >= 4
    for command in sorted(found):
        ran = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
        assert ran.exit_code == 0, f"{command}: {ran.output}"


@pytest.mark.slow
def test_your_own_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The how-to's commands in its order, up to a training set and a report."""
    monkeypatch.chdir(tmp_path)
    miniature(tmp_path)
    for block in blocks_of(OWN):
        for words in commands(block) if block.language == "sh" else ():
            if words[0] == "recaption":
                ran = CliRunner().invoke(app, words[1:], catch_exceptions=False)
                assert ran.exit_code == 0, f"{words}: {ran.output}"
    assert list(tmp_path.glob("runs/*/report.html"))
    assert list(tmp_path.glob("datasets/*/*.tar"))


def miniature(folder: Path) -> None:
    """Write recipe.yaml: the demo's with few samples, without a training."""
    value = yaml.safe_load(prepare(folder, samples=60).read_text())
    value["spec"] = {key: part for key, part in value["spec"].items() if key not in ("train", "evaluate")}
    value["spec"]["mixtures"] = value["spec"]["mixtures"][-1:]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(value))
