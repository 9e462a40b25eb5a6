"""``scripts/bench_attention.py`` without a GPU: what it times is only called, by a faked clock."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests.support.scripts import load_script

SMALL = ["--tile", "8", "--pooling-factor", "2", "--head-dim", "8", "--shapes", "256:16"]
# Answers with what a file of the tree that PYTHONPATH names says.
TIMER = """
import json, os, pathlib, sys
tree = pathlib.Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
layers = json.loads(sys.argv[1])["layers"]
times = json.loads((tree / "times.json").read_text())
package = times.pop("package", str(tree / "torchtitan_lighthouse"))
print("a warning of some library")
print(json.dumps({"package": package, "times": [times["ms"]] * len(layers)}))
"""
ROW = {
    **{"device": "some GPU", "backend": "cudnn", "N": 98_304, "k": 1536, "S": 18_432},
    **{"dense_fwd": 40.0, "dense_fwd_bwd": 120.0, "dense_peak_gib": 1.125},
    **{"lighthouse_fwd": 2.0, "lighthouse_fwd_bwd": 5.0, "lighthouse_peak_gib": 0.75},
    **{"floor_fwd": 1.0, "floor_fwd_bwd": 4.0, "floor_peak_gib": 0.25},
    "parts": {"scores": 0.139, "select": 0.037},
}
COMMITS = {"commit": "a1b2c3d", "base_fwd": 3.0, "base_fwd_bwd": 5.0}
COMMITS |= {"this_fwd": 2.0, "this_fwd_bwd": 5.0}


@pytest.fixture
def bench(monkeypatch):
    """The script, with its folder on the path, as Python puts it there for a script."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return load_script("bench_attention")


@pytest.fixture
def git(tmp_path):
    """git in a repository of two commits, of which the first takes longer."""
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def run(*arguments):
        user = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *user, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("init", "-q")
    for ms in ([6, 8], [2, 4]):
        (tmp_path / "times.json").write_text(json.dumps({"ms": ms}))
        run("add", "times.json")
        run("commit", "-q", "-m", str(ms))
    return run


@pytest.fixture
def commits(bench, git, tmp_path, monkeypatch):
    """``commit_times`` of that repository, its timer a stub."""
    import commit_times

    (tmp_path / "timer.py").write_text(TIMER)
    monkeypatch.setattr(commit_times, "ROOT", tmp_path)
    monkeypatch.setattr(commit_times, "TIMER", tmp_path / "timer.py")
    return commit_times


def layers(bench, *lengths):
    shape = bench.Shape(heads=2, kv_heads=1, head_dim=8, dtype="float32", length=0)
    fields = {"levels": 3, "pooling_factor": 2, "topk": 16, "tile": 8}
    return [bench.Layer(bench.replace(shape, length=n), fields) for n in lengths]


def refused(bench, capsys, *args):
    with pytest.raises(SystemExit) as exit_:
        bench.main(list(args))
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_without_a_gpu_one_line(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(bench, capsys, *SMALL, "--out", str(tmp_path / "out"))
    assert said.startswith("bench_attention.py: needs a CUDA device")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shapes", "8192"], "'8192' must be pairs N:topk"),
        (["--shapes", "8192:128,16K:256"], "must be pairs N:topk"),
        ([*SMALL, "--tile", "7"], "tile=7 must be even"),
        ([*SMALL, "--shapes", "250:16"], "250"),
        ([*SMALL, "--levels", "1"], "--levels=1 is dense attention; use 2"),
        ([*SMALL, "--heads", "6", "--kv-heads", "4"], "--heads=6 must be a multiple of 4"),
    ],
)
def test_options_are_refused_before_a_gpu_is_asked_for(bench, capsys, args, message):
    assert message in refused(bench, capsys, *args)


def test_shapes(bench):
    assert bench.lengths("8192:128,16384:256") == [(8192, 128), (16384, 256)]
    options = bench.parser_of_options().parse_args([*SMALL, "--kv-heads", "4", "--scorer", "gla"])
    (layer,) = bench.layers_of(options)
    assert layer.shape == bench.Shape(8, 4, 8, "bfloat16", 256)
    assert layer.fields == {
        **{"levels": 3, "pooling_factor": 2, "topk": 16, "tile": 8, "scorer": "gla"},
        "dilation": 4,  # and nothing that older commits do not know
    }


def test_the_default_shapes_are_accepted(bench):
    assert len(bench.layers_of(bench.parser_of_options().parse_args([]))) == 8


def test_nothing_is_timed_where_the_tests_fail(bench, monkeypatch, capsys):
    commands = []

    def run(command, cwd):
        commands.append(command)
        assert (cwd / command[-1]).is_file()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(bench, "bench_layer", None)
    assert "tests/attention/test_kernels.py did not pass" in refused(bench, capsys, *SMALL)
    assert [command[1:3] for command in commands] == [["-m", "pytest"]]


def test_a_missing_package_is_told_before_the_timing(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "fla" else object())
    said = refused(bench, capsys, *SMALL, "--peers")
    assert "fla is not installed: pip install -e '.[gla]'" in said


@pytest.fixture
def clock(bench, monkeypatch):
    """The CPU in a GPU's place; every time is 1 ms. Returns what was called."""
    import layer_times

    called = []

    def median_ms(function, sets, repeats):
        called.append([function(*inputs) for inputs in sets])
        return 1.0

    monkeypatch.setattr(layer_times, "DEVICE", "cpu")
    for module in (bench, layer_times):
        monkeypatch.setattr(module, "median_ms", median_ms)
        monkeypatch.setattr(module, "BACKENDS", {"cudnn": SDPBackend.MATH})
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    return called


@pytest.mark.parametrize("options", [[], ["--rope-aligned"]], ids=["published", "rope_aligned"])
def test_each_part_is_called_and_the_files_are_written(bench, clock, tmp_path, options):
    pytest.importorskip("matplotlib")
    bench.main([*SMALL, *options, "--kv-heads", "4", "--no-tests", "--out", str(tmp_path)])
    (row,) = map(json.loads, (tmp_path / "bench.jsonl").read_text().splitlines())
    assert list(row["parts"])[:5] == ["scores", "select", "gather", "sdpa", "scatter"]
    assert len(clock) == 6 + len(row["parts"]) == 14
    assert "sdpa_bwd" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size


def test_the_timer_answers_its_request(bench, clock, capsys):
    import layer_times

    pairs = [(vars(layer.shape), layer.fields) for layer in layers(bench, 64, 128)]
    layer_times.main(json.dumps({"layers": pairs, "backend": "cudnn", "repeats": 1}))
    answer = json.loads(capsys.readouterr().out)
    assert answer["times"] == [[1.0, 1.0]] * 2
    assert Path(answer["package"]).name == "torchtitan_lighthouse"
    (output, *_), gradients = clock[0], clock[1][0]
    assert output.shape == (1, 2, 64, 8)
    assert [g.shape[1] for g in gradients] == [2, 1, 1]


def test_two_commits_are_timed_and_the_worktree_is_removed(bench, commits, git):
    (first, second) = commits.compare("HEAD~", layers(bench, 64, 128), "cudnn", 1)
    assert (
        first
        == second
        == {
            **{
                "commit": "HEAD~",
                "base_fwd": 6,
                "base_fwd_bwd": 8,
                "this_fwd": 2,
                "this_fwd_bwd": 4,
            }
        }
    )
    assert git("worktree", "list").count("\n") == 1


def test_a_base_that_fails_leaves_no_worktree(bench, commits, git):
    git("rm", "-q", "--cached", "times.json")
    git("commit", "-q", "-m", "what the stub cannot time")
    with pytest.raises(ValueError, match="the layer of HEAD cannot be timed: FileNotFoundError"):
        commits.compare("HEAD", layers(bench, 64), "cudnn", 1)
    assert git("worktree", "list").count("\n") == 1


def test_a_package_from_elsewhere_is_refused(bench, commits, tmp_path):
    elsewhere = {"ms": [2, 4], "package": "/elsewhere/torchtitan_lighthouse"}
    (tmp_path / "times.json").write_text(json.dumps(elsewhere))
    with pytest.raises(ValueError, match="was that of /elsewhere/torchtitan_lighthouse, not of"):
        commits.compare("HEAD", layers(bench, 64), "cudnn", 1)


def test_a_base_that_is_no_commit(bench, commits, capsys):
    assert "--base=nothing must name a commit" in refused(bench, capsys, *SMALL, "--base=nothing")


def test_a_base_has_its_table(bench, clock, commits, git, tmp_path):
    pytest.importorskip("matplotlib")
    bench.main([*SMALL, "--base", "HEAD~", "--no-tests", "--out", str(tmp_path / "out")])
    *_, heading, _, times = (tmp_path / "out/bench.md").read_text().splitlines()
    assert f"fwd {git('rev-parse', '--short', 'HEAD~').strip()}" in heading
    cells = ["256", "6.000", "2.000", "3.00", "8.000", "4.000", "2.00"]
    assert [cell.strip() for cell in times.strip("|").split("|")] == cells


def test_tables(bench):
    times, parts, memory = bench.tables([ROW, {**ROW, "N": 8192}]).split("\n\n")
    assert "| 98,304 | 1,536 | 18,432 | 40.00     | 2.00   | 20.0 | 1.00 (40.0×) |" in times
    assert "| 98,304 | 0.139  | 0.037  |" in parts
    assert "| 98,304 | 1.12      | 0.75       | 0.25  | -" in memory
    assert "| 8,192 " in memory


def test_tables_with_peers_and_a_base(bench):
    row = {**ROW, "peers": {"gla": [1.5, 4.25]}, "commits": COMMITS}
    *_, memory, commits = bench.tables([row]).split("\n\n")
    assert "gla 1.50 / 4.25" in memory
    assert commits.splitlines() == [
        "| N      | fwd a1b2c3d | this  | ×    | fwd+bwd a1b2c3d | this  | ×    |",
        "|--------|-------------|-------|------|-----------------|-------|------|",
        "| 98,304 | 3.000       | 2.000 | 1.50 | 5.000           | 5.000 | 1.00 |",
    ]
