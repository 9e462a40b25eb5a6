"""What pip installs is usable away from the clone: tools, configs, licence."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from torchtitan_lighthouse import __version__, configs

ROOT = Path(__file__).parents[1]
SHIPPED = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a console script of an environment that has the wheel, and this one's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    # Copied, for a clone's build/ may hold modules that are no more.
    source = folder / "source"
    for name in ("torchtitan_lighthouse", "train_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHIPPED:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    # Without the clone on the path, which would count as the package installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(build, check=True, env=environment, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = [*pip, "--python", python, "install", "--no-deps", wheel]
    subprocess.run(install, check=True, env=environment, cwd=folder)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(program, *args):
        command = [folder / "venv" / "bin" / program, *args]
        return subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True)

    run.site = site
    return run


def test_the_configs_are_those_of_the_clone(installed):
    listed = installed("torchtitan-lighthouse", "configs")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == configs.names()
    printed = installed("torchtitan-lighthouse", "configs", "quickstart")
    assert printed.stdout == (ROOT / "train_configs" / "quickstart.toml").read_text()


def test_the_tools_are_the_wheel_s_own(installed):
    where = "import torchtitan_lighthouse as t; print(t.__file__, t.__version__)"
    file, version = installed("python", "-c", where).stdout.split()
    assert Path(file).parents[1] == installed.site
    assert version == __version__
    shown = installed("python", "-m", "torchtitan_lighthouse", "plot", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "RUN" in shown.stdout


def test_it_comes_with_its_licence_and_its_types(installed):
    (info,) = installed.site.glob("torchtitan_lighthouse-*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "License-Expression: BSD-3-Clause" in (info / "METADATA").read_text()
    assert (installed.site / "torchtitan_lighthouse" / "py.typed").exists()
