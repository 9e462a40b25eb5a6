"""Another launch that holds a dump folder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchtitan_lighthouse.titan.folder.lock import LOCK_FILE

_HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on node3\\n")
file.flush()
print("held", flush=True)
time.sleep(60)
"""
_PYTHON = sys.executable  # tests replace it


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen]:
    """A process, "process 7 on node3", that holds the folder until it is killed."""
    command = [_PYTHON, "-c", _HOLD, str(folder / LOCK_FILE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()
