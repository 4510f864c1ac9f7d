"""The ranking benchmark from training to its tables, and resumed."""

from pathlib import Path

import pytest

from helpers.scripts import Call, one_line


def test_an_unknown_variant_is_named(call: Call, tmp_path: Path) -> None:
    one_line(call("benchmarks.ranking", "variants", "unifrom", "--out", tmp_path / "out"), "'unifrom'", "'uniform'")
    nasbench = ("--recipe", "nasbench201-cifar10", "--out", tmp_path / "out")
    one_line(call("benchmarks.ranking", "variants", "even", *nasbench), "no table of 'nasbench201-cifar10'", "--truth")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_variants_train_and_picks_are_ranked(call: Call, images: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", ("uniform", "sandwich-distil", "largest-first", "cost-bins", "even")
    flags = (
        "--source",
        images,
        "--size",
        8,
        "--epochs",
        4,
        "--batch",
        16,
        "--n",
        12,
        "--images",
        16,
        "--seeds",
        0,
        1,
        "--out",
        out,
    )
    code, table, err = call("benchmarks.ranking", "variants", *names, *flags)
    assert code == 0, err
    for name in names:
        assert name in table
        assert (out / f"{name}-0" / "supernet.safetensors").exists()
    assert table.count("averaged") == 2 * len(names) + 1  # a row each, and the title of the means
    assert "τ of the loss over 2 seeds, averaged weights" in table
    code, again, err = call("benchmarks.ranking", "variants", *names, *flags)
    assert (code, again) == (0, table), err
    picks = ("picks", out / "uniform-0", "--evaluations", 30, "--seeds", 2, "--bn-batches", 1, "--tuned-epochs", 1)
    code, said, err = call("benchmarks.ranking", *picks)
    assert code == 0, err
    for words in ("35%", "no limit: 3,969 networks", "depth, then MACs", "corrected by 20 trainings", "fine-tuned"):
        assert words in said, said
