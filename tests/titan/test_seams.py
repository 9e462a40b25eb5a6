"""SEAMS.md names what there is, and all that is replaced or private."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import torchtitan_lighthouse.titan

FOLDER = Path(torchtitan_lighthouse.titan.__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (FOLDER / "SEAMS.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| file")
]
SEAMS = {(row[0], row[1]) for row in ROWS}
THEIRS = ("super()", "titan", "manager")  # what a private name is taken from, as it is written
FILES = [*FOLDER.rglob("*.py"), FOLDER.parent / "train.py"]


def leaves_of(file: Path) -> set[str]:
    """The last names of a file's seams."""
    name = f"../{file.name}" if file.parent != FOLDER and FOLDER not in file.parents else ""
    name = name or str(file.relative_to(FOLDER))
    return {seam.split(":")[1].split(".")[-1] for where, seam in SEAMS if where == name}


@pytest.mark.parametrize(
    ("file", "seam"), sorted(SEAMS), ids=[f"{f}-{s}" for f, s in sorted(SEAMS)]
)
def test_a_seam_is_there_on_both_sides(file, seam):
    module, name = seam.split(":")
    owner, *attribute = name.split(".")
    found = getattr(importlib.import_module(module), owner)
    if attribute:
        # A field of instances is in the class's source only.
        assert hasattr(found, attribute[0]) or f"self.{attribute[0]} " in inspect.getsource(found)
    assert name.split(".")[-1] in (FOLDER / file).resolve().read_text()


def test_every_row_says_why():
    assert len(ROWS) > 30
    assert all(len(row) == 5 and row[2] and row[3] for row in ROWS)
    # What is only called may stay.
    assert all(row[4] for row in ROWS if row[2] != "called")


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(FOLDER.parent)) for f in FILES])
def test_what_is_patched_or_private_is_named(file):
    used = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "mock.patch.object":
            target, name = ast.unparse(node.args[0]), ast.literal_eval(node.args[1])
            used.add("logger" if target.endswith("logger") else name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchtitan."):
            used |= {a.name for a in node.names if a.name.startswith("_")}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in THEIRS:
            used |= {node.attr} if node.attr.startswith("_") else set()
    used -= {"__init__", "__iter__"}
    assert used <= leaves_of(file)
