"""What pyproject.toml cannot say: train_configs/ is a part of the package, from beside it."""

from pathlib import Path

from setuptools import find_packages, setup

folders = [Path("train_configs"), *(p for p in Path("train_configs").rglob("*") if p.is_dir())]
configs = {f"torchtitan_lighthouse.{'.'.join(f.parts)}": str(f) for f in folders}

setup(
    packages=[*find_packages(include=["torchtitan_lighthouse*"]), *configs],
    package_dir=configs,
    package_data={"": ["*.toml", "*.md", "py.typed"]},
)
