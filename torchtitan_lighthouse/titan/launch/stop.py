"""SIGTERM and Ctrl-C as a request: the step is finished, and all ranks stop after the same one."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import distributed as dist

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes a signal on, so one that was sent to all processes comes twice.
_ECHO_SECONDS = 1.0


class StopRequest:
    """Whether the ranks are to stop, as signals say that reach any of them.

    A second signal ends a rank at once.
    """

    def __init__(self) -> None:
        """Make the gloo group through which the ranks agree. A collective.

        They do so after each step, in some tenths of a millisecond, while a GPU still works on
        the step: asking the GPU would wait for it.
        """
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._received = 0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the context."""
        before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> signal.Signals | None:
        """Return the signal to stop for, the same on every rank. A collective."""
        received = torch.tensor(self._received)
        if self._group:
            dist.all_reduce(received, dist.ReduceOp.MAX, self._group)
        return signal.Signals(int(received)) if received else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._since = number, now
        elif now - self._since > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
