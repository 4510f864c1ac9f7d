"""Correcting a biased score by a few probes."""

import math
import random

import numpy as np
import pytest
from scipy.stats import kendalltau

from supernet import Arch, Choice, SearchSpace
from supernet.errors import InputError
from supernet.ranking.probes import FEWEST, fit_correction, option_features

OPS = ("conv", "skip", "pool")
SPACE = SearchSpace("cells", [*(Choice(f"edge{i}", OPS) for i in range(6)), Choice("width", (8, 16))])
TRUTH = {"conv": 1.0, "skip": 0.1, "pool": -0.5}


def archs(count: int, seed: int = 0) -> list[Arch]:
    rng, drawn = random.Random(seed), dict[Arch, None]()
    while len(drawn) < count:
        drawn.setdefault(SPACE.sample(rng))
    return list(drawn)


def truth(arch: Arch) -> float:
    return sum(TRUTH[str(arch[f"edge{i}"])] for i in range(6)) + float(arch["width"]) / 16


def biased(arch: Arch, noise: random.Random) -> float:
    """The shared score: skips look good, and there is noise."""
    skips = sum(arch[f"edge{i}"] == "skip" for i in range(6))
    return truth(arch) + 1.5 * skips + noise.gauss(0, 0.5)


def test_equal_choices_share_columns_and_others_do_not() -> None:
    arch = SPACE.from_indices([0, 0, 1, 2, 0, 1, 1])
    row = option_features(SPACE, [arch])[0]
    assert row[:5].tolist() == [3, 2, 1, 0, 1]
    assert sorted(set(np.round(row[5:], 3))) == [0, 0.3]
    assert len(row) == 5 + 6 * 3 + 2


@pytest.mark.parametrize("seed", range(3))
def test_a_bias_for_an_option_is_removed_by_a_few_probes(seed: int) -> None:
    networks, noise = archs(300, seed), random.Random(seed)
    shared = {arch: biased(arch, noise) for arch in networks}
    probes = {arch: truth(arch) + noise.gauss(0, 0.3) for arch in networks[:16]}
    corrected = fit_correction(SPACE, probes, shared)(shared)
    rest = networks[16:]
    taus = [kendalltau([s[a] for a in rest], [truth(a) for a in rest])[0] for s in (shared, corrected)]
    assert taus[0] < 0.5
    assert taus[1] > 0.8


def test_an_unbiased_score_keeps_its_ranking() -> None:
    networks, noise = archs(300), random.Random(1)
    shared = {arch: truth(arch) + noise.gauss(0, 0.1) for arch in networks}
    probes = {arch: 3 * truth(arch) + 7 + noise.gauss(0, 0.3) for arch in networks[:16]}
    corrected = fit_correction(SPACE, probes, shared)(shared)
    assert kendalltau([shared[a] for a in networks], [corrected[a] for a in networks])[0] > 0.9
    assert corrected[networks[20]] == pytest.approx(3 * truth(networks[20]) + 7, abs=1.0)  # on the scale of the probes


def test_too_few_probes_and_missing_scores_are_refused() -> None:
    networks = archs(FEWEST)
    probes = dict.fromkeys(networks, 0.5)
    with pytest.raises(InputError, match=f"{FEWEST - 1} probes are too few"):
        fit_correction(SPACE, dict(list(probes.items())[1:]), probes)
    with pytest.raises(InputError, match=f"{networks[2].key} has the scores"):
        fit_correction(SPACE, probes, {**probes, networks[2]: math.nan})
