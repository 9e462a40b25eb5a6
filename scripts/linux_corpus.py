"""Make a text corpus of the Linux kernel's sources: ``linux_corpus.py OUT.jsonl``.

Downloads Debian's package of them with apt-get (run ``apt-get update`` first), and writes a row for
each C, assembly and documentation file, in random order: 777 MiB of text for
``training.dataset = "local"``, which no small model memorises within an experiment. The default
package is Debian 12's; other releases have another, for --package: ``apt-cache search
linux-source``.
"""

import argparse
import io
import json
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "linux-source-6.1"
SUFFIXES = {".c", ".h", ".S", ".rst"}
GENERATED = "drivers/gpu/drm/amd/include/"  # tables of registers, a third of the bytes


def main(args: list[str] | None = None) -> None:
    """Parse the command line, download and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--package", default=PACKAGE, help=f"[{PACKAGE}, Debian 12's]")
    parser.add_argument(
        "--max-mib",
        type=float,
        help="the files, in an order that is always the same, up to the first that would make more "
        "than so much UTF-8 [all]",
    )
    options = parser.parse_args(args)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        download = ["apt-get", "download", options.package]
        if subprocess.run(download, cwd=folder).returncode:
            parser.error(
                f"no {options.package}: run apt-get update, or give this release's --package "
                "(apt-cache search linux-source)"
            )
        (package,) = Path(folder).glob("*.deb")
        texts = list(sources(package))
    random.Random(0).shuffle(texts)
    size = 0  # bytes of UTF-8
    unfinished = options.out.with_name(f"{options.out.name}.tmp")
    with unfinished.open("w") as file:
        for text in texts:
            length = len(text.encode())
            if options.max_mib is not None and size + length > options.max_mib * 2**20:
                break
            file.write(json.dumps({"text": text}) + "\n")
            size += length
    unfinished.replace(options.out)
    print(f"{options.out}: {size / 2**20:.0f} MiB of text")


def sources(package: Path) -> Iterator[str]:
    """The texts in the .tar.xz that the package holds."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with tarfile.open(fileobj=io.BytesIO(subprocess.check_output(command))) as outer:
        (archive,) = (member for member in outer if member.name.endswith(".tar.xz"))
        with tarfile.open(fileobj=outer.extractfile(archive), mode="r|xz") as inner:
            for member in inner:
                _, _, path = member.name.partition("/")
                wanted = Path(path).suffix in SUFFIXES and not path.startswith(GENERATED)
                if member.isfile() and wanted:
                    yield inner.extractfile(member).read().decode("utf-8", "replace")


if __name__ == "__main__":
    main()
