"""The evaluation cache scores nothing twice, confuses nothing and survives kills; and ties with the best."""

import multiprocessing
import random
import signal
import sqlite3
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import supernet
from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain
from supernet.data.images import Images
from supernet.errors import InputError
from supernet.ranking.paired import tied
from supernet.scoring.batch_norm import Inherit, Recalibrate
from supernet.scoring.cache import Bits, Score, ScoreCache, tied_with_best
from supernet.scoring.metrics import accuracy, classification
from supernet.scoring.shared_weights import SharedWeights
from supernet.sqlite import PAGE

ROOT = Path(supernet.__path__[0]).parent
CONTEXT = {"supernet": "0", "images": "1"}


def images(n: int, seed: int) -> Images:
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 5, (n,), generator=draws)
    return Images(pixels, labels, torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))


CALIBRATION, VALIDATION = images(64, 1), images(45, 2)


@pytest.fixture
def net() -> Chain:
    torch.manual_seed(0)
    return TOY_SPACES["chain"]()


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "scores.db")


def evaluator(net: Chain, cache: ScoreCache | None, **settings: object) -> SharedWeights:
    options = {"bn": Recalibrate(2, 32), **settings}
    return SharedWeights(net, CALIBRATION, VALIDATION, cache=cache, **options)  # type: ignore[arg-type]


# -- hits and misses -------------------------------------------------------------------------------------------------


def test_a_second_evaluation_runs_no_step(net: Chain, cache: ScoreCache) -> None:
    archs = list(net.space.enumerate())
    first = evaluator(net, cache)
    expected = evaluator(net, None)(archs)
    assert first(archs[:7]) == expected[:7]
    assert first.hits == 0
    assert first(archs[:7]) == expected[:7]
    assert first.hits == 7
    cache.close()
    with ScoreCache(cache.path) as again:
        second = evaluator(net, again, cost=lambda arch: {"letters": len(str(arch["a.op"]))})
        called: list[nn.Module] = []
        for part in net.modules():
            part.register_forward_pre_hook(lambda module, _: called.append(module))
        rows = second(archs[:7])
        assert (second.steps_run, second.steps_asked, second.hits, called) == (0, 0, 7, [])
        assert rows == [{**e, "letters": len(str(a["a.op"]))} for e, a in zip(expected[:7], archs, strict=False)]
        assert second(archs) == [{**e, "letters": len(str(a["a.op"]))} for e, a in zip(expected, archs, strict=True)]
        assert (second.hits, len(again)) == (14, len(archs))
        assert set(again.get(second.context, archs[0].key).metrics) == {"accuracy", "loss"}  # type: ignore[union-attr]


def test_different_weights_policies_images_and_metrics_miss(net: Chain, cache: ScoreCache) -> None:
    arch = net.space.sample(random.Random(0))
    evaluator(net, cache)([arch])
    torch.manual_seed(1)
    other = TOY_SPACES["chain"]()

    def my_metric(network: nn.Module, of: Images, batch: int) -> dict[str, float]:
        return classification(network, of, batch)

    my_metric.name = "mine"  # type: ignore[attr-defined]
    brighter = Images(VALIDATION.pixels, VALIDATION.labels, VALIDATION.mean - 0.2, VALIDATION.std)
    variants = [
        evaluator(other, cache),
        evaluator(net, cache, bn=Inherit()),
        evaluator(net, cache, bn=Recalibrate(1, 32)),
        evaluator(net, cache, batch=16),
        evaluator(net, cache, channels_last=False),
        evaluator(net, cache, metric=my_metric),
        SharedWeights(net, VALIDATION, VALIDATION, bn=Recalibrate(2, 32), cache=cache),
        SharedWeights(net, CALIBRATION, CALIBRATION, bn=Recalibrate(2, 32), cache=cache),
        SharedWeights(net, CALIBRATION, brighter, bn=Recalibrate(2, 32), cache=cache),
    ]
    for count, variant in enumerate(variants, start=2):
        variant([arch])
        assert (variant.hits, len(cache)) == (0, count)
    renamed = evaluator(Chain("renamed", net.steps, input_shape=net.input_shape), cache)
    assert renamed.settings == evaluator(net, cache).settings
    renamed([arch])
    assert renamed.hits == 0
    trained = evaluator(net, cache)
    trained([arch])
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    trained([arch])
    assert (trained.hits, len(cache)) == (1, len(variants) + 3)


def test_a_nameless_metric_is_not_cached(net: Chain, cache: ScoreCache) -> None:
    with pytest.raises(InputError, match="attribute `name`"):
        evaluator(net, cache, metric=lambda network, of, batch: {"accuracy": 0.0})


@pytest.mark.parametrize("share", [True, False])
def test_correct_images_are_those_of_the_network(net: Chain, cache: ScoreCache, share: bool) -> None:
    archs = list(net.space.enumerate())[:5]
    evaluate = evaluator(net, cache, batch=16, share=share)
    rows = evaluate(archs)
    bits = cache.correct(evaluate.context, archs)
    assert cache.correct(evaluate.context).keys() == bits.keys() == set(archs)
    for arch, row in zip(archs, rows, strict=True):
        assert bits[arch].shape == (45,)
        assert bits[arch].mean() == pytest.approx(row["accuracy"])
        network = evaluate.subnet(arch)
        with torch.no_grad():
            right = torch.cat([network(x).argmax(1) == y for x, y in VALIDATION.batches(16)])
        assert bits[arch].tolist() == right.tolist()
        assert accuracy(network, VALIDATION, 16) == row["accuracy"]


# -- kills and several writers ----------------------------------------------------------------------------------------

FORKING = multiprocessing.get_context("fork")  # the libraries are loaded already


def score_slowly(path: Path, scored: Connection) -> None:
    """Scores every architecture, and sends each one as soon as its score is in the cache."""

    class Slow(ScoreCache):
        def put(self, context: Mapping[str, str], arch: Arch, score: Score) -> None:
            super().put(context, arch, score)
            scored.send(arch)
            time.sleep(0.05)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = TOY_SPACES["chain"]()
    evaluator(net, Slow(path))(list(net.space.enumerate()))


def test_the_scores_of_a_killed_writer_are_kept(net: Chain, tmp_path: Path) -> None:
    archs = list(net.space.enumerate())
    receiving, sending = FORKING.Pipe(duplex=False)
    process = FORKING.Process(target=score_slowly, args=(tmp_path / "scores.db", sending))
    process.start()
    sending.close()
    scored = [receiving.recv() for _ in range(4)]
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with ScoreCache(tmp_path / "scores.db") as cache:
        assert 4 <= len(cache) < len(archs)
        evaluate = evaluator(net, cache)
        evaluate(scored)
        assert (evaluate.hits, evaluate.steps_run) == (4, 0)
        assert evaluate(archs) == evaluator(net, None)(archs)


def write(path: Path, own: int) -> None:
    with ScoreCache(path) as cache:
        for number in range(100):
            cache.put({"writer": "any"}, Arch({"own": own, "n": number}), Score({"n": float(number)}))
            cache.put({"writer": "any"}, Arch({"n": number}), Score({"n": float(number)}))


def test_several_processes_write_one_new_file(tmp_path: Path) -> None:
    processes = [FORKING.Process(target=write, args=(tmp_path / "scores.db", number)) for number in range(3)]
    for process in processes:
        process.start()
    with ScoreCache(tmp_path / "scores.db") as cache:
        while any(process.is_alive() for process in processes):
            cache.get({"writer": "any"}, Arch({"n": 3}).key)  # a reader does not block them
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert len(cache) == 400
        assert sqlite3.connect(cache.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert cache.get({"writer": "any"}, Arch({"own": 2, "n": 99}).key) == Score({"n": 99.0})


# -- bad files --------------------------------------------------------------------------------------------------------


def filled(path: Path) -> bytes:
    with ScoreCache(path) as cache:
        for number in range(400):
            cache.put(CONTEXT, Arch({"n": number}), Score({"accuracy": 0.5}, np.zeros(100, bool)))
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A cache of several pages."""
    return filled(tmp_path_factory.mktemp("whole") / "scores.db")


@pytest.mark.parametrize("damage", ["half", "within a page", "in the last page", "a page overwritten"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, damage: str, whole: bytes) -> None:
    path = tmp_path / "scores.db"
    middle = len(whole) // 2 // PAGE * PAGE
    damaged = {
        "half": whole[:middle],
        "within a page": whole[: middle + 100],
        "in the last page": whole[:-100],
        "a page overwritten": whole[:middle] + b"\xff" * PAGE + whole[middle + PAGE :],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=r"scores\.db cannot be read as an evaluation cache .* delete it"):
        ScoreCache(path)


def test_foreign_files_and_other_versions_are_refused(tmp_path: Path, whole: bytes) -> None:
    text, study, newer = (tmp_path / name for name in ("notes.txt", "study.db", "newer.db"))
    text.write_text("no database\n" * 1000)
    with pytest.raises(InputError, match=r"notes\.txt cannot be read as an evaluation cache"):
        ScoreCache(text)
    with sqlite3.connect(study) as db:
        db.execute("CREATE TABLE trials (number INTEGER)")
    with pytest.raises(InputError, match=r"study\.db is not an evaluation cache.* choose another"):
        ScoreCache(study)
    newer.write_bytes(whole)
    text.write_bytes(whole[:1])  # which SQLite takes for an empty database
    with pytest.raises(InputError, match=r"notes\.txt is not an evaluation cache, or was only partly written"):
        ScoreCache(text)
    assert text.stat().st_size == 1
    with sqlite3.connect(newer) as db:
        db.execute("UPDATE meta SET value = '9' WHERE name = 'version'")
    with pytest.raises(InputError, match="schema version 9, but this release reads version 1; delete it"):
        ScoreCache(newer)
    with pytest.raises(InputError, match="is a folder, not a file; give a name within it"):
        ScoreCache(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*none for the evaluation cache scores\.db; create it"):
        ScoreCache(tmp_path / "none" / "scores.db")


# -- ties with the best -----------------------------------------------------------------------------------------------


def flipped(bits: Bits, gained: int, lost: int) -> Bits:
    """Returns a copy in which `gained` more images are right and `lost` images are wrong instead of right."""
    changed = bits.copy()
    changed[np.flatnonzero(~bits)[:gained]] = True
    changed[np.flatnonzero(bits)[:lost]] = False
    return changed


def test_ties_are_the_architectures_that_a_paired_exact_test_does_not_separate() -> None:
    best = np.arange(1000) < 800
    changes = [(0, 0), (0, 5), (0, 9), (40, 60), (10, 40), (100, 101), (0, 200)]
    bits = {Arch({"n": n}): flipped(best, *change) for n, change in enumerate(changes)}
    p = [binomtest(lost, gained + lost).pvalue for gained, lost in changes[1:]]
    assert p[0] == pytest.approx(0.0625)
    assert p[1] == pytest.approx(0.0039, rel=0.01)
    for level in (0.05, 0.02, 0.005):
        order = sorted(range(len(p)), key=lambda i: p[i])
        worse = set()
        for place, number in enumerate(order):
            if p[number] > level / (len(p) - place):
                break
            worse.add(number + 1)
        assert {arch["n"] for arch in tied(bits, level)} == set(range(len(changes))) - worse
    ranked = tied(bits)
    assert [arch["n"] for arch in ranked] == [0, 5, 1, 3]
    assert [arch["n"] for arch in tied(bits, 0.005)] == [0, 5, 1, 2, 3]
    assert tied({Arch({"n": 0}): best}) == [Arch({"n": 0})]
    with pytest.raises(InputError, match="same images"):
        tied({**bits, Arch({"n": 9}): best[:10]})
    with pytest.raises(InputError, match="at least one"):
        tied({})


def test_the_cheapest_of_the_tied_comes_first(cache: ScoreCache) -> None:
    best = np.arange(1000) < 800
    archs = [Arch({"n": n}) for n in range(4)]
    for arch, lost in zip(archs, (0, 2, 4, 300), strict=True):
        cache.put(CONTEXT, arch, Score({"accuracy": 0.8 - lost / 1000}, flipped(best, 0, lost)))
    assert tied_with_best(cache, CONTEXT) == archs[:3]
    assert tied_with_best(cache, CONTEXT, cost=lambda arch: -float(arch["n"])) == archs[2::-1]
    assert tied_with_best(cache, CONTEXT, cost=lambda arch: 1.0) == archs[:3]
    assert tied_with_best(cache, CONTEXT, archs=[archs[3], archs[2], Arch({"n": 77})]) == [archs[2]]
    with pytest.raises(InputError, match=r"scores\.db has no scores"):
        tied_with_best(cache, {"supernet": "another"})
