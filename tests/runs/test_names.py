"""Names of files by what is in them."""

from torchtitan_lighthouse.runs.names import file_name, path_name


def test_names_are_of_the_subjects():
    assert file_name("loss", [], ".png") == "loss.png"
    assert file_name("loss", ["ours", "team/run abc"], ".png") == "loss_ours_team-run-abc.png"


def test_very_many_subjects_make_a_name_that_a_file_system_takes():
    names = [file_name("loss", [f"run-{n}" for n in range(first, 90)], ".png") for first in (0, 1)]
    assert all(len(name) < 150 for name in names)
    endings = [file_name("loss", [f"run-{n}" for n in range(last)], ".png") for last in (80, 81)]
    assert len({*names, *endings}) == 4


def test_runs_of_one_name_in_two_folders_have_two_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_name("a/run") == path_name(tmp_path / "a/run/") == "a/run"
    assert path_name("b/run") == "b/run"
    assert path_name("/elsewhere/run") == "elsewhere/run"
