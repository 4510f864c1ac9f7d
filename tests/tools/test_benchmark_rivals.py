"""The benchmark of a front against other ways to a smaller network: what the rivals are, and its table."""

from pathlib import Path

import pytest

from helpers.scripts import Call, one_line, run_script
from supernet.chain import largest
from supernet.cost import CostTable
from supernet.spaces import create_supernet
from supernet_tools.benchmarks.rivals import difference, shallower, smaller


@pytest.mark.slow
def test_rivals_keep_to_the_limit_and_cut_one_thing_alone() -> None:
    settings = {"kernels": (), "expansions": (), "drop": 100, "resolutions": (32, 40)}
    chain = create_supernet("elastic", model="lcnet_035", input_size=48, **settings)
    full = largest(chain.space)
    macs = CostTable(chain)(full)["macs"]
    arch, what = smaller(chain, 0.9 * macs)
    assert arch == chain.space.canonical({**full, "input.resolution": 32})
    assert what == "32 pixels"
    arch, what = shallower(chain, 0.8 * macs)
    assert arch is not None
    dropped = int(what.removeprefix("depth -"))
    depths = {c.name: c.options[max(-dropped, -len(c.options))] for c in chain.space.choices if "depth" in c.name}
    one_more = chain.space.canonical({**full, **depths})  # with a block less dropped per stage
    assert CostTable(chain)(arch)["macs"] <= 0.8 * macs < CostTable(chain)(one_more)["macs"]
    assert arch["input.resolution"] == 48
    assert shallower(chain, 0.7 * macs)[1] == "fewest blocks at 32 pixels"
    assert smaller(chain, 0.6 * macs) == shallower(chain, 0.6 * macs) == (None, "")


def test_differences_are_paired() -> None:
    """Nine images that only the first gets right against one: McNemar's exact p is 22 / 1024."""
    first, second = {"correct": "1" * 9 + "0" + "1" * 10}, {"correct": "0" * 9 + "1" + "1" * 10}
    mean, interval, p = difference(first, second)
    assert (mean, p) == ("+0.400", "0.021")
    assert interval.startswith("+0.")
    assert difference(first, first)[2] == "1.000"


def test_runs_that_do_not_belong_together_are_refused(call: Call, tiny_run: Path) -> None:
    one_line(call("benchmarks.rivals", tiny_run, tiny_run), "give at least one of --limits")
    one_line(
        call("benchmarks.rivals", tiny_run, tiny_run, "--limits", "1M"), "is not the run of a classifier over the space"
    )


@pytest.mark.slow
def test_a_front_is_compared_with_its_rivals(call: Call, tmp_path: Path) -> None:
    """On digits; a second call reads what the first has trained."""
    space = ("quickstart", "--space", "elastic", "--space-settings", "model=lcnet_035", "drop=1", "resolutions=[32]")
    space = (*space, "--data.size", 40, "--data.calibration", 128, "--train.batch", 128, "--train.lr", 0.01)
    space = (*space, "--train.epochs", 1, "--train.warmup-epochs", 0)
    full, shared = tmp_path / "full", tmp_path / "shared"
    assert run_script("train_supernet", *space, "--out", full) == 0
    more = ("--pretrained", full, "--teacher", "start", "--sampler", "sandwich", "--random-paths", 1)
    assert run_script("train_supernet", *space, *more, "--out", shared) == 0
    assert run_script("search", shared, "--searcher", "random", "--trials", 6, "--force") == 0
    flags = (full, shared, "--search", "random", "--limits", "1.6M", "--rivals", "depth", "resolution", "scratch")
    code, out, err = call("benchmarks.rivals", *flags)
    assert code == 0, err
    for rival in ("front", "depth", "resolution", "scratch"):
        assert rival in out
    results = sorted((shared / "rivals").glob("*/result.json"))
    assert len(results) == 3
    before = [file.stat().st_mtime_ns for file in results]
    assert call("benchmarks.rivals", *flags)[0] == 0
    assert [file.stat().st_mtime_ns for file in results] == before
