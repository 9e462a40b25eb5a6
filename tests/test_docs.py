"""The README and the guide against the code: fields, commands, links."""

import argparse
import ast
import importlib
import inspect
import re
import shlex
import tomllib
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from torchtitan_lighthouse.titan.config import Lighthouse, LighthouseConfigManager

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
TOOL, TRAINER = "-m torchtitan_lighthouse ", "-m torchtitan_lighthouse.train"


def commands(start):
    """(page, arguments) of every indented command that holds ``start``, its lines joined."""
    for page in PAGES:
        lines = page.read_text().replace("\\\n", " ").splitlines()
        for line in lines:
            if line.startswith("    ") and start in line and "…" not in line:
                arguments = shlex.split(line.split(start)[1].split(" > ")[0], comments=True)
                if arguments:
                    yield page.name, arguments


def ids(found):
    return [f"{page}: {' '.join(arguments)[:60]}" for page, arguments in found]


TOOL_COMMANDS = list(commands(TOOL))
TRAINER_COMMANDS = list(commands(TRAINER))


def docstrings():
    """What stands below each field of the section, by its name."""
    body = ast.parse(inspect.getsource(Lighthouse)).body[0].body
    return {
        field.target.id: " ".join(ast.literal_eval(below.value).split()).removesuffix(".")
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
    }


def test_the_table_of_fields_is_that_of_the_section():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+) \|$", (ROOT / "README.md").read_text(), re.M)
    assert {name: text for name, _, text in rows} == docstrings()
    defaults = {name: tomllib.loads(f"value = {shown}")["value"] for name, shown, _ in rows}
    assert defaults == asdict(Lighthouse())


@pytest.mark.parametrize(("page", "arguments"), TOOL_COMMANDS, ids=ids(TOOL_COMMANDS))
def test_a_tool_takes_the_options_of_its_command(page, arguments, monkeypatch):
    class Parsed(Exception):  # noqa: N818
        """The options are right; the tool is not run."""

    original = argparse.ArgumentParser.parse_known_args

    def parse_args(self, args=None, namespace=None):
        _options, unknown = original(self, args, namespace)
        assert not unknown
        raise Parsed

    def parse_known_args(self, args=None, namespace=None):
        options, unknown = original(self, args, namespace)
        config = getattr(options, "config", None)
        LighthouseConfigManager().parse_args(["--job.config_file", str(config), *unknown])
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.chdir(ROOT)
    name, *options = arguments
    tool = importlib.import_module(f"torchtitan_lighthouse.tools.{name}")
    with pytest.raises(Parsed):
        tool.main(options)


@pytest.mark.parametrize(("page", "arguments"), TRAINER_COMMANDS, ids=ids(TRAINER_COMMANDS))
def test_the_trainer_takes_the_options_of_its_command(page, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = LighthouseConfigManager().parse_args(arguments)
    assert job.model.name == "llama3_lighthouse"


def test_there_are_commands_to_try():
    assert len(TOOL_COMMANDS) > 8
    assert len(TRAINER_COMMANDS) > 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_in_the_repository(page):
    rooms = "tests|scripts|docs|train_configs|torchtitan_lighthouse"
    named = re.findall(rf"(?<![\w/])(?:{rooms})/[\w/.-]+\.(?:py|md|toml|sh)\b", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_short_and_its_tree_is_the_tree():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    tree = text[text.index("## Where things are") :]
    rooms = re.findall(r"^      (\w+)/ ", tree, re.M)
    package = ROOT / "torchtitan_lighthouse"
    assert sorted(rooms) == sorted(p.parent.name for p in package.glob("*/__init__.py"))
