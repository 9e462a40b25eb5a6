"""Profilers that torchtitan could not start are refused."""

import pytest

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import profiling


@pytest.mark.parametrize("field", ["enable_profiling", "enable_memory_snapshot"])
def test_profiling_needs_a_gpu(tmp_path, monkeypatch, field):
    job_config = parse(tmp_path, **{f"profiling__{field}": True})
    monkeypatch.setattr(profiling, "runs_on_cpu", lambda: False)
    profiling.check_profiling(job_config)
    monkeypatch.setattr(profiling, "runs_on_cpu", lambda: True)
    with pytest.raises(RefusalError, match=rf"profiling\.{field} = true needs a GPU"):
        profiling.check_profiling(job_config)


def test_a_cycle_takes_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "runs_on_cpu", lambda: False)
    job_config = parse(tmp_path, profiling__enable_profiling=True, profiling__profile_freq=3)
    with pytest.raises(RefusalError, match=r"profile_freq=3 .* use 4"):
        profiling.check_profiling(job_config)
