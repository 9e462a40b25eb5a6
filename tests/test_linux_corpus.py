"""``scripts/linux_corpus.py`` on a package like Debian's."""

import io
import json
import os
import shutil
import tarfile

import pytest

from tests.scripts import load_script

FILES = {
    "README": "no source",
    "mm/slab.c": "int a;\n",
    "mm/slab.h": "é\n",
    "drivers/gpu/drm/amd/include/registers.h": "generated",
    "Documentation/index.rst": "Kernel\n",
}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The script, with a download that builds the package."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/src").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: sources\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    with tarfile.open(root / "usr/src/linux.tar.xz", "w:xz") as archive:
        for name, text in FILES.items():
            content = text.encode() + b"\xff" * (name == "mm/slab.c")
            member = tarfile.TarInfo(f"linux-6.1/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    apt_get = tmp_path / "bin" / "apt-get"
    apt_get.parent.mkdir()
    apt_get.write_text(
        f'#!/bin/sh\n[ "$*" = "download linux-source-6.1" ] && dpkg-deb --build {root} linux.deb\n'
    )
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt_get.parent}:{os.environ['PATH']}")
    return load_script("linux_corpus")


def test_a_row_for_each_source_file(corpus, tmp_path):
    out = tmp_path / "data/linux.jsonl"
    corpus.main([str(out)])
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert sorted(texts) == ["Kernel\n", "int a;\n\ufffd", "é\n"]


def test_a_part_of_it(corpus, tmp_path):
    corpus.main([str(tmp_path / "linux.jsonl"), "--max-mib", str(10 / 2**20)])
    (text,) = (tmp_path / "linux.jsonl").read_text().splitlines()
    assert len(json.loads(text)["text"]) <= 10
