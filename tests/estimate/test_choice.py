"""The fastest activation checkpointing that fits is named, and the job can be set to it."""

import pytest

from tests.estimate.test_memory import GIB, PAPER, SHORT, paper_job, peak
from torchtitan_lighthouse.estimate.choice import FORMS, fastest, peaks
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.layout import layouts_of
from torchtitan_lighthouse.tools.memory import main


def peaks_of(job_config):
    return peaks(layouts_of(job_config).values(), job_config.training.seq_len)


@pytest.fixture(scope="module")
def of_forms():
    return peaks_of(paper_job())


def test_peaks_are_those_of_jobs_that_are_set_to_each_form(of_forms):
    for form, fields in FORMS.items():
        job_config = paper_job(**{f"activation_checkpoint__{k}": v for k, v in fields.items()})
        check_job(job_config)
        assert peak(job_config).total == of_forms[form]


def test_what_is_faster_keeps_more(of_forms):
    sizes = [of_forms[form] for form in ("none", "op", "attention", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert of_forms["attention"] < 1.2 * of_forms["full"]


@pytest.mark.parametrize(
    ("gib", "form"), [(139, "none"), (64, "op"), (24, "attention"), (20.5, "full"), (15, None)]
)
def test_fastest_that_fits_with_what_the_allocator_reserves(of_forms, gib, form):
    assert fastest(of_forms, gib * GIB) == form


def test_the_largest_stage_decides():
    one, two = paper_job(**SHORT), paper_job(**SHORT, lighthouse__steps=10_000)
    assert peaks_of(one)["attention"] < peaks_of(two)["attention"]


@pytest.mark.parametrize(
    ("gib", "words"),
    [
        ("64", "is op: --activation_checkpoint.mode selective"),
        ("15", "none fits"),
        # With what the allocator reserves: the length that is asked about does not fit.
        ("20", "largest seq_len is 9"),
    ],
)
def test_the_tool_prints_every_form_and_the_options_of_one(capsys, gib, words):
    options = ["--lighthouse.steps", "-1", "--training.global_batch_size", "1"]
    main([str(PAPER), "--gpu-gib", gib, "--model.flavor", "530M_byte", *options])
    printed = capsys.readouterr().out
    assert words in printed
    for form in FORMS:
        assert f"  {form}\n" in printed


def test_validation_of_more_tokens_than_training_is_said_to_be_left_out(capsys):
    for batch, is_said in (("1", False), ("2", True)):
        size = ["--validation.local_batch_size", batch, "--validation.seq_len", "98304"]
        main([str(PAPER), "--validation.enable", *size])
        assert ("Not counted: validation, of 196,608" in capsys.readouterr().out) == is_said
