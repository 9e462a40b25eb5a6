"""The shipped TOML files are found by name, in a clone too."""

from pathlib import Path

import pytest

from torchtitan_lighthouse import configs
from torchtitan_lighthouse.experiments.experiment import read_experiment
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.tools.configs import main

FOLDER = Path(__file__).parents[1] / "train_configs"


def test_names_are_those_of_the_files():
    files = {str(f.relative_to(FOLDER).with_suffix("")) for f in FOLDER.rglob("*.toml")}
    assert set(configs.names()) == files
    assert {"quickstart", "experiments/splits"} <= files


@pytest.mark.parametrize("name", configs.names())
def test_a_summary_is_the_begin_of_a_sentence(name):
    summary = configs.summary(name)
    assert 3 < len(summary) < 200
    assert summary in " ".join(line.lstrip("# ") for line in configs.text(name).splitlines())


def test_one_is_printed_as_it_is(capsys):
    main(["lighthouse_530m_98k.toml"])
    assert capsys.readouterr().out == (FOLDER / "lighthouse_530m_98k.toml").read_text()


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(RefusalError, match=r"'quikstart'.*quickstart"):
        configs.text("quikstart")


def test_a_file_goes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find("quickstart") == FOLDER / "quickstart.toml"
    (tmp_path / "folder").mkdir()
    for place in ("quickstart", "folder/quickstart"):
        (tmp_path / place).touch()
        assert configs.find("quickstart", Path("folder"), Path()) == Path(place)


def test_a_file_that_is_not_there_does_not_become_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusalError, match=r"no .*a/quickstart.toml nor .*names .*quickstart"):
        configs.find("quickstart.toml", Path("a"), Path())


@pytest.mark.parametrize("name", [n for n in configs.names() if n.startswith("experiments/")])
def test_a_printed_experiment_is_read_wherever_it_lies(name, tmp_path):
    """As ``configs NAME > my.toml`` leaves it."""
    (file := tmp_path / "my.toml").write_text(configs.text(name))
    assert read_experiment(file).config == read_experiment(configs.path(name)).config
