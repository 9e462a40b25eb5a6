"""``scripts/linux_corpus.py`` on a package like Debian's."""

import io
import json
import os
import shutil
import tarfile

import pytest

from tests.support.scripts import load_script

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


@pytest.mark.parametrize(("limit", "files"), [(20, 3), (19, 2)])
def test_a_part_of_it_by_its_bytes(corpus, tmp_path, limit, files, monkeypatch):
    # 20 bytes and 17 characters in all. The order is the archive's.
    monkeypatch.setattr(corpus.random.Random, "shuffle", lambda *_: None)
    corpus.main([str(tmp_path / "linux.jsonl"), "--max-mib", str(limit / 2**20)])
    assert len((tmp_path / "linux.jsonl").read_text().splitlines()) == files


def test_a_part_is_the_first_files_of_the_whole(corpus, tmp_path):
    for name, options in {"whole": [], "part": ["--max-mib", str(13 / 2**20)]}.items():
        corpus.main([str(tmp_path / name), *options])
    whole, part = ((tmp_path / name).read_text() for name in ("whole", "part"))
    assert 0 < len(part) < len(whole)
    assert whole.startswith(part)


def test_an_interrupted_writing_leaves_the_old_file(corpus, tmp_path, monkeypatch):
    (out := tmp_path / "linux.jsonl").write_text("old")
    written = []

    def dumps(row):
        written.append(row)
        if len(written) == 2:
            raise KeyboardInterrupt
        return "{}"

    monkeypatch.setattr(corpus.json, "dumps", dumps)
    with pytest.raises(KeyboardInterrupt):
        corpus.main([str(out)])
    assert out.read_text() == "old"


def test_a_release_without_the_package_is_told_of_the_option(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        corpus.main([str(tmp_path / "linux.jsonl"), "--package", "linux-source-9"])
    assert "no linux-source-9: run apt-get update" in capsys.readouterr().err
    assert not (tmp_path / "linux.jsonl").exists()
