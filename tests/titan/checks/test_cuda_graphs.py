"""CUDA graphs where a block cannot be replayed are refused."""

import pytest

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks.cuda_graphs import check_cuda_graphs

ASKED = {"compile__enable": True, "compile__cuda_graphs": True}


@pytest.fixture
def check(tmp_path, monkeypatch):
    def check(ranks=1, **fields):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        check_cuda_graphs(parse(tmp_path, **{**ASKED, **fields}))

    return check


def test_one_compiled_gpu_has_them(check):
    check()
    check(ranks=2, compile__enable=False, compile__cuda_graphs=False)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"ranks": 2}, "is for a run on one GPU, not on 2 ranks"),
        ({"compile__enable": False}, "needs compile.enable = true"),
        ({"compile__components": ["loss"]}, "needs .* with the model in compile.components"),
        ({"compile__backend": "aot_eager"}, 'needs compile.backend = "inductor"'),
    ],
)
def test_elsewhere_is_refused(check, where, message):
    with pytest.raises(RefusalError, match=rf"compile\.cuda_graphs=true {message}"):
        check(**where)
