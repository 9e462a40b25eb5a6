"""Who may import whom, and what is light enough to be loaded without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchtitan_lighthouse
from torchtitan_lighthouse.__main__ import TOOLS

NAME = "torchtitan_lighthouse"
PACKAGE = Path(torchtitan_lighthouse.__file__).parent

NO_TORCH = ("runs", "data", "configs", "hf")

# What each part of the package may import beside itself.
_METHOD = {"refusal", "attention"}
_FIGURES = {*_METHOD, "estimate"}
_ADAPTER = {*_FIGURES, *NO_TORCH, "titan"}
MAY_IMPORT = {
    "refusal": set(),
    "runs": {"refusal"},
    "data": {"refusal"},
    "configs": {"refusal"},
    "hf": {"refusal", "data"},
    "attention": _METHOD,
    "estimate": _FIGURES,
    "titan": _ADAPTER,
    "evaluate": _ADAPTER,
    "experiments": _ADAPTER,
    "train": _ADAPTER,
    "tools": {*_ADAPTER, "evaluate", "experiments"},
    "__init__": {"attention"},  # the public names
    "__main__": {"refusal"},  # the tools are imported by name
}


def imported(file: Path) -> Iterator[str]:
    """The modules that a file names in imports, those for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module
            yield node.module
            if node.module == NAME:
                yield from (f"{NAME}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part_of(module: str) -> str:
    """The part of the package that a module, by its dotted name, is in."""
    return module.split(".")[1] if "." in module else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_a_module_imports_what_its_part_may(file):
    part = file.relative_to(PACKAGE).with_suffix("").parts[0]
    own = {name for name in imported(file) if name.split(".")[0] == NAME and name != NAME}
    assert {part_of(name) for name in own} <= MAY_IMPORT[part] | {part}


@pytest.mark.parametrize("part", ["attention", "estimate", *NO_TORCH])
def test_torchtitan_is_for_the_adapter_and_what_is_above_it(part):
    files = [f for f in FILES if f.relative_to(PACKAGE).with_suffix("").parts[0] == part]
    assert files
    assert "torchtitan" not in {name.split(".")[0] for f in files for name in imported(f)}


def modules_of(part: str) -> list[str]:
    files = (PACKAGE / part).rglob("*.py") if (PACKAGE / part).is_dir() else [PACKAGE / part]
    names = [".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(*statements: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after a program."""
    show = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    program = "\n".join([*statements, show])
    process = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(process.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("part", NO_TORCH)
def test_no_torch_is_loaded_by(part):
    loaded = loaded_by(*(f"import {name}" for name in modules_of(part)))
    assert NAME in loaded
    assert not loaded & {"torch", "torchtitan", "triton"}


HELP = """
import sys
from torchtitan_lighthouse.__main__ import main
sys.argv = ["", "{tool}", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_shown_before_anything_heavy_is_loaded(tool):
    heavy = {"torch", "torchtitan", "datasets", "transformers", "matplotlib", "wandb"}
    assert not loaded_by(HELP.format(tool=tool)) & heavy


def test_public_names_are_loaded_on_first_use():
    assert "torch" not in loaded_by(f"import {NAME}")
    assert "torch" in loaded_by(f"from {NAME} import lighthouse_attention")
    for name in torchtitan_lighthouse.__all__:
        assert getattr(torchtitan_lighthouse, name) is not None
        assert name in dir(torchtitan_lighthouse)
    with pytest.raises(AttributeError, match="lighthouse_atention"):
        _ = torchtitan_lighthouse.lighthouse_atention
