"""One launch at a time in a dump folder."""

import errno
import fcntl

import pytest

from tests.support.locks import holding
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.folder.lock import holder_of, lock_folder


@pytest.fixture
def other_launch(tmp_path):
    """A process that holds the folder."""
    with holding(tmp_path) as process:
        yield process


def test_a_second_launch_is_refused_and_told_of_the_first(tmp_path, other_launch):
    with pytest.raises(ValueError, match=r"in use by process 7 on node3: wait .* another folder"):
        lock_folder(tmp_path)


def test_a_holder_is_named_while_it_holds(tmp_path, other_launch):
    assert holder_of(tmp_path / "elsewhere") is None
    assert holder_of(tmp_path) == "process 7 on node3"
    other_launch.kill()
    other_launch.wait()
    assert holder_of(tmp_path) is None


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "outputs").touch()
    with pytest.raises(RefusalError, match=r"job\.dump_folder = '.*outputs/run' cannot be used \("):
        lock_folder(tmp_path / "outputs" / "run")


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
