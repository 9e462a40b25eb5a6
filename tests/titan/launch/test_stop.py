"""Signals that ask a run to stop."""

import os
import signal

import pytest
from torch import distributed as dist

from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.launch import stop
from torchtitan_lighthouse.titan.launch.stop import StopRequest


def stop_after_the_second_step(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    request = StopRequest()
    with request.listening():
        assert request.agreed() is None
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.agreed() is signal.SIGTERM
    dist.destroy_process_group()


def test_all_ranks_stop_after_the_same_step_for_a_signal_to_one(tmp_path):
    run_ranks(stop_after_the_second_step, 2, tmp_path / "store", timeout=60)


@pytest.fixture
def request_of_one_rank(monkeypatch):
    monkeypatch.setattr(stop.dist, "get_world_size", lambda: 1)
    return StopRequest()


def test_a_signal_that_torchrun_has_passed_on_as_well_counts_once(request_of_one_rank):
    with request_of_one_rank.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request_of_one_rank.agreed() is signal.SIGINT


def test_a_second_signal_ends_the_process_by_that_signal(request_of_one_rank, tmp_path):
    child = os.fork()
    if not child:
        stop._ECHO_SECONDS = 0.0
        with request_of_one_rank.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_signals_are_the_processs_own_again_afterwards(request_of_one_rank):
    before = signal.getsignal(signal.SIGTERM)
    with request_of_one_rank.listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
