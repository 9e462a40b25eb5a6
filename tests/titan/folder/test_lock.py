"""One launch at a time in a dump folder."""

import errno
import fcntl
import subprocess
import sys

import pytest

from torchtitan_lighthouse.titan.folder.lock import LOCK_FILE, lock_folder

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on node3\\n")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_launch(tmp_path):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_launch_is_refused_and_told_of_the_first(tmp_path, other_launch):
    with pytest.raises(ValueError, match=r"in use by process 7 on node3: wait .* another folder"):
        lock_folder(tmp_path)


def test_the_lock_of_a_killed_launch_does_not_block(tmp_path, other_launch):
    other_launch.kill()
    other_launch.wait()
    lock_folder(tmp_path).close()


def test_a_folder_is_made_and_can_be_locked_again_later(tmp_path):
    lock_folder(tmp_path / "new" / "run").close()
    lock_folder(tmp_path / "new" / "run").close()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    lock_folder(tmp_path).close()
    assert "cannot be locked" in caplog.text
