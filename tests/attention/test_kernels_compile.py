"""The kernels compile for the GPUs they are meant for, at the sizes they are meant for."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

KERNELS = {
    "_merge_kernel",
    "_norm_scores_kernel",
    "_select_kernel",
    "_windows_to_slots_kernel",
    "_slots_to_windows_kernel",
}


@pytest.mark.parametrize("compute_capability", [90, 100], ids=["H100", "B200"])
def test_kernels_compile_and_fit_in_registers(compute_capability):
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.compile_kernels", str(compute_capability)]
    output = subprocess.check_output(command, text=True, env=environment, timeout=300)
    stack_bytes = [line.split() for line in output.splitlines()]
    assert {name for name, _ in stack_bytes} == KERNELS
    assert all(size == "0" for _, size in stack_bytes), output
