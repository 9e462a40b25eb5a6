"""A metrics.jsonl that survives crashes."""

import errno
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.runs import write_metrics
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import (
    METRICS_FILE,
    MetricsLog,
    continue_metrics,
    read_metrics,
    training_seconds,
)


def test_a_relaunch_appends_and_mends_a_line_that_a_kill_cut(tmp_path):
    log_file = MetricsLog(tmp_path)
    log_file.append(1, "lighthouse", {"loss": 1.0})
    log_file.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 2, "lo')
    log_file = MetricsLog(tmp_path)
    log_file.append(2, "dense", {"loss": 2.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_repeated_steps_count_once_and_steps_gone_back_behind_not_at_all(tmp_path):
    write_metrics(tmp_path, *((step, {"loss": 0}) for step in range(1, 10)))
    write_metrics(tmp_path, *((step, {"loss": 1}) for step in range(5, 8)), started=100.0)
    records = read_metrics(tmp_path)
    assert [(r["step"], r["loss"]) for r in records] == [
        *((step, 0) for step in range(1, 5)),
        *((step, 1) for step in range(5, 8)),
    ]


def test_seconds_leave_out_the_time_between_launches(tmp_path):
    write_metrics(tmp_path, (1, {}), (2, {}), (3, {}), started=1000.0)
    write_metrics(tmp_path, (3, {}), (4, {}), started=5000.0)
    assert training_seconds(read_metrics(tmp_path)) == [1.0, 2.0, 5.0, 6.0]


def test_what_a_crash_of_the_machine_left_in_the_place_of_lines_is_left_out(tmp_path):
    write_metrics(tmp_path, (1, {}))
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(b"\0\0\xc7\xff\n")
    write_metrics(tmp_path, (2, {}))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_run_that_continues_another_begins_with_its_metrics(tmp_path):
    write_metrics(tmp_path / "one", (10, {"loss": 1}), (20, {"loss": 2}), (30, {"loss": 3}))
    checkpoint = tmp_path / "one" / "checkpoint" / "step-20"
    continue_metrics(tmp_path / "two", checkpoint)
    write_metrics(tmp_path / "two", (30, {"loss": 4}), started=50.0)
    continue_metrics(tmp_path / "two", checkpoint)
    assert [r["loss"] for r in read_metrics(tmp_path / "two")] == [1, 2, 4]


def test_a_history_that_a_full_disk_cut_short_is_copied_again(tmp_path, monkeypatch):
    write_metrics(tmp_path / "one", *((step, {}) for step in range(1, 5)))
    write_text = Path.write_text

    def fills(path, text):
        write_text(path, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (fills, write_text):
        monkeypatch.setattr(Path, "write_text", write)
        with suppress(OSError):
            continue_metrics(tmp_path / "two", tmp_path / "one/checkpoint/step-4")
    assert [r["step"] for r in read_metrics(tmp_path / "two")] == [1, 2, 3, 4]


def test_a_line_of_which_the_disk_took_a_part_is_an_error(tmp_path):
    """A limit on the file's size in the place of the disk's."""
    code = f"""
import resource, signal, sys
sys.path[:] = {sys.path!r}
from torchtitan_lighthouse.runs.metrics import MetricsLog
log = MetricsLog(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    log.append(1, "dense", {{"x": "y" * 400}})
except OSError:
    print("refused")
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "refused\n"


@pytest.mark.parametrize("checkpoint", ["moved/step-20", "one/checkpoint/best"])
def test_a_checkpoint_without_a_history_begins_an_empty_one(checkpoint, tmp_path):
    write_metrics(tmp_path / "one", (10, {}))
    continue_metrics(tmp_path / "two", tmp_path / checkpoint)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"step": 3, "loss": 1.0}'])
def test_a_file_of_another_program_is_refused(tmp_path, line):
    (tmp_path / METRICS_FILE).write_text(f"{line}\n")
    with pytest.raises(RefusalError, match=r"metrics\.jsonl is of no run of this package"):
        read_metrics(tmp_path)
