"""Arguments of Python calls that no network, limit or search can have: one line that names argument and value."""

import math
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detection import create_detector, load_backbone, pyramid_space
from detection.config import DetectionData, DetectorPreprocess
from detection.cost import DetectorCosts
from detection.coverage import best_overlaps
from detection.data import load as load_boxes
from detection.data.crops import digit_crops
from detection.data.digits import compose as compose_digits
from detection.detector import backbone_of
from detection.figures import confusion, detector_figures
from detection.metric import coco_figures
from detection.nasfpn import read_out
from detection.nasfpn.published import published_nasfpn
from detection.predictions import draw_detections, set_thresholds
from detection.resnet import resnet_18
from detection.task import Detection
from detection.timm_backbone import timm_backbone
from detection.video import turned
from searchers import NSGA2, RandomSearch, Reinforce, Study, Trial, hypervolume, pareto_front, search
from searchers.catalog import budget_settings, searcher_class
from searchers.morphnet.resources import equal_widths, largest_multiplier, random_widths
from searchers.pareto import crowding_distance, nondominated_sort
from searchers.study import best_of
from searchers.testing import check_searcher
from supernet import Arch, Chain, Choice, SearchSpace, compose, create_network, create_supernet, list_spaces
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead
from supernet.blocks.resolution import ElasticResolution
from supernet.chain.start import initialize_alike, initialize_copying
from supernet.config import Augment, Data, Train
from supernet.cost import CostTable, CostWindow, Feasible, LatencyTable, count
from supernet.cost.latency import Correction
from supernet.data import Images, load, training_batches
from supernet.data.batches import Batches
from supernet.data.cache import _read
from supernet.drawing import draw_cell, draw_cells, draw_chain, draw_widths
from supernet.errors import InputError, nearest
from supernet.export import export, load_exported
from supernet.export.latency import artefact_latencies
from supernet.ranking.calibrate import calibrated_ranking, fit_ridge
from supernet.ranking.growth import Growth, extrapolated, growth, slope
from supernet.ranking.paired import tied
from supernet.ranking.race import race
from supernet.ranking.report import fidelity
from supernet.ranking.rivals import differing, evenly_spaced, finalists
from supernet.ranking.statistics import kendall, mean_interval, paired, resamples, spearman, top, welch
from supernet.ranking.truth import distinct, read_truth
from supernet.scoring.batch_norm import Recalibrate, recalibrate_bn
from supernet.scoring.cache import Score, ScoreCache
from supernet.scoring.metrics import accuracy, check_finite
from supernet.scoring.racing import Race
from supernet.scoring.shared_weights import SharedWeights
from supernet.spaces import SPACES
from supernet.spaces.elastic import elastic
from supernet.spaces.pretrained import load_pretrained
from supernet.testing import check_space
from supernet.train import check_training, compare_rates, plan_training, train_standalone, train_supernet
from supernet.training.check import check_network
from supernet.training.checkpoint import load_weights
from supernet.training.monitor import Monitor
from supernet.training.opening import Opening, parse_openings
from supernet.training.sampling import even, uniform, weighted


def macro(**arguments: Any) -> Any:
    with torch.device("meta"):
        return create_supernet("nasbench-macro", **arguments)


@cache
def sound() -> Any:
    """A supernet that a call may be given and that none changes."""
    return macro()


def first() -> Arch:
    """The architecture of first options."""
    arch: Arch = sound().space.from_indices([0] * len(sound().space))
    return arch


@cache
def table() -> CostTable:
    return CostTable(sound())


def detector(**arguments: Any) -> Any:
    with torch.device("meta"):
        return create_detector("retinanet", backbone="shufflenet-small", **arguments)


def searched(evaluate: Any, **arguments: Any) -> Any:
    space = sound().space
    evaluate = evaluate or (lambda archs: [{"accuracy": 0.5} for _ in archs])
    usual = {"searcher": RandomSearch(space), "evaluate": evaluate, "study": Study(None, space), "trials": 2}
    return search(**{**usual, **arguments})


DIGITS = load(Data("digits", size=8, calibration=64))


def trained(**arguments: Any) -> Any:
    sizes = {"num_classes": 10, "input_size": 8, "in_channels": 1}
    sizes = {name: arguments.pop(name, value) for name, value in sizes.items()}
    network = create_supernet("nasbench-macro", widths=(8, 16, 24), stem=8, head=16, **sizes)
    return train_supernet(network, DIGITS, Train(epochs=1, batch=512), verbose=False, **arguments)


SMALL = load(Data("digits", size=4, calibration=64))


def small_strided() -> Any:
    return create_supernet("shufflenet-small", num_classes=10, input_size=16, in_channels=1)


def trained_on_small(*, alone: bool) -> Any:
    network, config = small_strided(), Train(epochs=1, batch=512)
    if not alone:
        return train_supernet(network, SMALL, config, verbose=False)
    return train_standalone(network.subnet(network.space.sample(Random(0))), SMALL, config, verbose=False)


def sound_on_cpu(**arguments: Any) -> Any:
    sizes = {"num_classes": 10, "input_size": 8, "in_channels": 1, **arguments}
    return create_network("nasbench-macro", arch=first(), **sizes)


def scored(archs: Any, num_classes: int = 10) -> Any:
    supernet = create_supernet("nasbench-macro", num_classes=num_classes, input_size=8, in_channels=1)
    return SharedWeights(supernet, DIGITS.calibration, DIGITS.validation)(archs)


def some_arch() -> Arch:
    space = sound().space
    arch: Arch = space.from_indices([0] * len(space))
    return arch


def raced(**arguments: Any) -> Any:
    usual = {"train": lambda jobs: [0.5 for _ in jobs], "simple": {"first": first()}, "cost": lambda _: 1.0}
    return race(sound().space, [first()], **{**usual, **arguments})


def elastic_network() -> Any:
    with torch.device("meta"):
        return create_supernet("elastic", model="lcnet_035")


def boxes_of_digits() -> Any:
    return next(Detection().batches(DIGITS, Train(batch=4), start=0, rank=0, world=1))  # type: ignore[arg-type]


def detection_trained(classes: int) -> Any:
    data = load_boxes(DetectionData(size=64, compose=(4, 2, 2), calibration=4))
    return train_supernet(detector(num_classes=classes), data, Train(epochs=1, batch=2), task=Detection())


def pixels_of(**parts: Any) -> Any:
    usual = {"pixels": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.int64)}
    return Images(**{**usual, **parts}, mean=torch.zeros(1, 1, 1), std=torch.ones(1, 1, 1))


def found(**parts: Any) -> Any:
    """A target or detection in one image."""
    usual = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    return {**usual, **parts}


TOY = SearchSpace("toy", [Choice("a", (1, 2))])
TRUTH = {arch: 0.5 for arch in TOY.enumerate()}

CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "no steps": (lambda: Chain("x", []), "'x' has no steps"),
    "an input of other channels": (
        lambda: sound()(torch.zeros(1, 5, 8, 8, device="meta"), first()),
        r"shape \(1, 5, 8, 8\) does not fit 'nasbench-macro'; it takes \(N, C, H, W\) with C=3",
    ),
    "an image without batch": (lambda: sound()(torch.zeros(8, 8, device="meta"), first()), r"shape \(8, 8\) does not"),
    "an index among others": (lambda: sound().space.from_indices([0, 0.5, *[0] * 6]), "integer, and item 1 is 0.5"),
    "a supernet to count": (lambda: count(sound(), (3, 16, 16)), "'nasbench-macro' is a supernet; .* CostTable"),
    "the first choice depends": (
        lambda: SearchSpace("s", [Choice("a", (1, 2), when=("b", (1,)))]),
        "'b', which is not listed before it; .* it is the first",
    ),
    "channels to count": (lambda: count(nn.Conv2d(1, 2, 3), (3, 8, 8)), "a convolution of 1 channels got 3"),
    "an opening": (lambda: parse_openings(["kernel@2"], 10), "the opening 'kernel@2' should be NAME=EPOCH"),
    "a negative seed": (lambda: uniform(sound().space, -1), "seed=-1 should be greater than or equal to 0"),
    "a negative budget": (lambda: Reinforce.for_budget(sound().space, -3), "evaluations=-3 should be greater"),
    "a score that is not a number": (
        lambda: Trial.of(sound().space, first(), {"accuracy": math.nan}),
        "'accuracy' is NaN; give failed=REASON",
    ),
    "a front of nothing": (lambda: pareto_front([], []), r"objectives=\[\] is not a sequence of names"),
    "pixels without channels": (
        lambda: Images(torch.zeros(2, 8, 8), torch.zeros(2), torch.zeros(1), torch.ones(1)),
        r"pixels of shape \(2, 8, 8\) and labels of \(2,\) should be",
    ),
    "complex images": (
        lambda: load((np.zeros((4, 8, 8), complex), [0, 1] * 2)),
        "complex128, .* give real numbers",
    ),
    "scores without value": (lambda: kendall([1, math.nan], [1, 2]), "scores=.* should be numbers, not NaN"),
    "scores in words": (lambda: spearman([1, 2], ["a", "b"]), "truth=.* should be numbers"),  # type: ignore[list-item]
    "a value without partner": (lambda: paired([1.0], [1.0, 2.0]), "are not pairs"),
    "no pairs": (lambda: paired([], []), "are not pairs"),
    "simple networks without names": (lambda: raced(simple=[first()]), "simple=.* should be a mapping"),
    "scores in a list": (lambda: raced(scores=[0.5]), r"scores=\[0.5\] should be a mapping"),
    "a truth of no space": (lambda: read_truth(Path("x.csv"), "x"), "space='x' should be a SearchSpace"),  # type: ignore[arg-type]
    "digits without boxes": (boxes_of_digits, "data.train is a Images, without boxes"),
    "options": (lambda: Choice("a", [[1]]), "has options that are no plain values"),  # type: ignore[arg-type,list-item]
    "a condition": (lambda: Choice("a", (1, 2), when=5), r"takes when=\(parent, values\), not 5"),  # type: ignore[arg-type]
    "a form": (lambda: SearchSpace("x", (), 5), "a normal form must be a function"),  # type: ignore[arg-type]
    "parts": (lambda: compose("x", {"a": 5}), "should be a SearchSpace"),  # type: ignore[dict-item]
    "an architecture of another space": (
        lambda: sound().space.mutate(Arch({"x": 1}), Random(0), 0.5),
        "has no choice 'x'",
    ),
    "decisions that are missing": (lambda: sound().space.neighbors({}), "the architecture lacks 'stage1.block0.op'"),
    "no generator": (lambda: sound().space.mutate_one(some_arch(), None), "rng=None should be a Random"),
    "a probability": (lambda: sound().space.mutate(some_arch(), Random(0), 2), "prob=2 should be a probability"),
    "indices": (lambda: sound().space.from_indices(["0"] * 8), r"indices=\['0', .* should be a valid integer"),
    "a cost of another space": (lambda: table()(Arch({"x": 1})), "has no choice 'x'"),
    "steps": (lambda: Chain("x", [nn.ReLU()]), "a step of 'x' is a pair of a name and a module"),  # type: ignore[list-item]
    "a forward pass": (lambda: sound()(torch.zeros(1), {}), "arch={} should be an Arch"),
    "a shape to count": (lambda: count(nn.Conv2d(1, 2, 3), (1, -8, 8)), "input_shape=.* greater than or equal to 1"),
    "no architectures asked for": (lambda: RandomSearch(sound().space).ask(-1), "n=-1 should be greater"),
    "trials to learn from": (lambda: RandomSearch(sound().space).tell([5]), r"trials=\[5\] should be a Trial"),  # type: ignore[list-item]
    "trials to record": (lambda: Study(None, sound().space).append([5]), r"batch=\[5\] should be a Trial"),  # type: ignore[list-item]
    "a score that is a truth value": (
        lambda: searched(lambda archs: [{"accuracy": True} for _ in archs]),
        "metrics must be numbers",
    ),
    "an evaluation without argument": (lambda: searched(lambda: []), "evaluate=.* should take one argument"),
    "no batches": (lambda: recalibrate_bn(nn.BatchNorm2d(1), []), "there are no batches to recalibrate"),
    "the working folder": (
        lambda: export(nn.Conv2d(1, 2, 3), "", arch={}, space="x", preprocess=DIGITS.preprocess()),
        "is or holds the working folder",
    ),
    "labels that are missing": (lambda: load((torch.zeros(4, 1, 8, 8), [None] * 4)), "the label None is neither"),
    "equal classes": (lambda: load((torch.zeros(4, 1, 8, 8), [0, 1] * 2), classes=["a", "a"]), "different names"),
    "a wiring": (lambda: pyramid_space(levels="x"), "levels='x' should be a valid integer"),  # type: ignore[arg-type]
    "no network to make elastic": (lambda: elastic(None), "model=None should be a Module"),  # type: ignore[arg-type]
    "pixels of an elastic network": (lambda: elastic(nn.Identity(), input_size=0), "input_size=0 should be greater"),
    "dropout of an elastic network": (
        lambda: create_supernet("elastic", model="lcnet_035", dropout=math.nan),
        "dropout=nan should be a finite number",
    ),
    "a file of weights": (lambda: load_pretrained(macro(), 5), "file=5 should be"),  # type: ignore[arg-type]
    "calibration batches": (lambda: Recalibrate("x"), "batches='x' should be a valid integer"),  # type: ignore[arg-type]
    "rates": (lambda: compare_rates(macro(), DIGITS, Train(), rates="x"), "rates='x' should be"),  # type: ignore[arg-type]
    "a plan": (lambda: plan_training(macro(), None, Train()), "data=None should be a TrainingData"),  # type: ignore[arg-type]
    "a check": (lambda: check_training(None, DIGITS), "config=None should be a Train"),  # type: ignore[arg-type]
    "trials of a front": (lambda: pareto_front([5], ("accuracy",)), r"trials=\[5\] should be a sequence of Trial"),  # type: ignore[list-item]
    "points": (lambda: hypervolume([("a", "b")], (0, 0)), "something other than numbers"),  # type: ignore[list-item]
    "labels": (lambda: calibrated_ranking({}, 5, space=macro().space), "label a function"),  # type: ignore[arg-type]
    "a searcher to check": (lambda: check_searcher(5, macro().space), "make=5 should be"),  # type: ignore[arg-type]
    "a pattern": (lambda: list_spaces(None), "pattern=None should be a valid string"),  # type: ignore[arg-type]
    "no name": (lambda: create_supernet(None), "a space is a name, such as .* not None"),  # type: ignore[arg-type]
    "negative classes": (lambda: macro(num_classes=-1), r"num_classes=-1 should be an integer from 1 to 1,000,000"),
    "classes in quotes": (lambda: macro(num_classes="x"), "num_classes='x' should be an integer"),
    "classes true": (lambda: macro(num_classes=True), "num_classes=True should be an integer"),
    "too many classes": (lambda: macro(num_classes=10**12), "num_classes=1000000000000 should be"),
    "size": (lambda: macro(input_size=-1), "input_size=-1 should be an integer from 1"),
    "channels": (lambda: macro(in_channels=0), "in_channels=0 should be an integer from 1"),
    "network": (lambda: create_network("nasnet-a-large", num_classes=1.5), "num_classes=1.5 should"),  # type: ignore[arg-type]
    "phase": (lambda: macro(phase="x"), "phase='x' is none of 'supernet', 'standalone'"),
    "a builder's setting": (
        lambda: create_supernet("shufflenet-small", stem=-1),
        "stem=-1 should be from 1 to 65,536",
    ),
    "less than a stride": (lambda: create_supernet("spos", input_size=8), "input_size=8 .* one pixel per 32 pixels"),
    "no hidden units": (
        lambda: create_supernet("shufflenet-small", head=0),
        "head=0 should be from 1 to 65,536",
    ),
    "a chain that is no detector": (lambda: backbone_of(sound()), "should be a Detector or a network of one"),
    "a trial without names": (lambda: Trial.of(sound().space, first(), 0.5), "metrics=0.5 should be values by name"),  # type: ignore[arg-type]
    "a trial with a word for a score": (
        lambda: Trial.of(sound().space, first(), {"accuracy": "x"}),  # type: ignore[dict-item]
        "metrics=.*'accuracy' should be a number",
    ),
    "a trial with a number for a reason": (
        lambda: Trial.of(sound().space, first(), {}, failed=3),  # type: ignore[arg-type]
        "failed=3 should be the reason",
    ),
    "an architecture for a published network": (
        lambda: create_network("nasnet-a-large", arch={"a": 1}),
        "'nasnet-a-large' is a published network, which has its architecture; leave arch out",
    ),
    "a pyramid without repeats": (lambda: read_out(sound(), 1), "which has no repeats"),
    "weights for no detector": (lambda: load_backbone(sound(), sound()), "is no detector"),
    "a trial at no place": (
        lambda: Trial.of(sound().space, first(), {}, number="x"),
        "number='x' should be a place in a study",
    ),  # type: ignore[arg-type]
    "options without order": (lambda: Choice("a", {1, 2}), "has options {1, 2}; give a sequence"),  # type: ignore[arg-type]
    "options in bytes": (lambda: Choice("a", b"ab"), "has options b'ab'; give a sequence"),  # type: ignore[arg-type]
    "labels in a tensor": (
        lambda: calibrated_ranking({first(): 0.5}, lambda archs: [0.5], space=sound().space, labels=torch.zeros(2)),  # type: ignore[arg-type]
        r"labels=tensor.* give at least 3 labels",
    ),
    "an objective without a list": (lambda: NSGA2(sound().space, objectives=1.5), "objectives=1.5"),  # type: ignore[arg-type]
    "objectives of a front": (lambda: pareto_front([], 1.5), "objectives=1.5 is not a sequence of names"),  # type: ignore[arg-type]
    "finalists without a number": (
        lambda: finalists(sound().space, {first(): 1.0}, None, cost=lambda _: 1.0),  # type: ignore[arg-type]
        "n=None should be a number of networks",
    ),
    "numbers as trials": (lambda: best_of([5], "accuracy"), r"trials=\[5\]: each should be a Trial"),  # type: ignore[list-item]
    "a window of no table": (lambda: CostWindow(None, "macs"), "table=None should be a CostTable"),  # type: ignore[arg-type]
    "a text as step": (lambda: uniform(sound().space)("x"), "step='x' should be the number of a training step"),  # type: ignore[arg-type]
    "a negative step": (lambda: even(sound().space)(-1), "step=-1 should be the number of a training step"),
    "weightless numbers": (
        lambda: weighted(sound().space, weightless={"a": 5}),  # type: ignore[dict-item]
        "weightless=.* should be a collection of str or int",
    ),
    "a large table": (
        lambda: create_supernet("mobilenetv2-widths", table=[(1, 16, 10**6, 1)]),
        r"table=.* should be from 1 to 65,536",
    ),
    "a wide kernel": (
        lambda: elastic(nn.Sequential(), kernels=[10**6 + 1]),
        r"kernels=\(1000001,\) should be odd and below",
    ),
    "no channels": (lambda: create_supernet("shufflenet-small", stem=0), "stem=0 should be from 1 to 65,536"),
    "one pixel": (lambda: macro(input_size=1), "input_size=1 is too small for the space 'nasbench-macro'"),
    "an infinite limit": (lambda: Feasible(table(), {"macs": math.inf}), "macs': inf. should be a finite"),
    "a limit in quotes": (lambda: Feasible(table(), {"macs": "1e6"}), "should be a valid number"),  # type: ignore[dict-item]
    "no limits": (lambda: Feasible(table(), None), "limits=None should be a valid dictionary"),  # type: ignore[arg-type]
    "no table": (lambda: Feasible(None, {"macs": 1}), "cost=None should be a CostTable"),  # type: ignore[arg-type]
    "a cost": (lambda: table().extremes("flops"), "there is no cost 'flops'"),
    "a shape": (lambda: CostTable(sound(), (1, -8, 8)), "input_shape=.* should be greater than or equal to 1"),
    "a window": (lambda: CostWindow(table(), "macs", high=math.nan), "high=nan should have numbers"),
    "a device": (lambda: LatencyTable(sound(), device="tpu"), "device='tpu' cannot be used"),
    "a folder of latencies": (lambda: LatencyTable(sound(), file=Path.cwd()), "is a folder, not a file"),
    "no data": (lambda: train_supernet(sound(), None, Train()), "data=None should be a TrainingData"),  # type: ignore[arg-type]
    "no recipe": (lambda: train_supernet(sound(), DIGITS, None), "config=None should be a Train"),  # type: ignore[arg-type]
    "no chain": (lambda: train_supernet(nn.Identity(), DIGITS, Train()), "supernet=Identity.* should be a Chain"),  # type: ignore[arg-type]
    "no network": (lambda: train_standalone(None, DIGITS, Train()), "network=None should be a Module"),  # type: ignore[arg-type]
    "other channels": (
        lambda: trained(in_channels=3),
        "cannot read images of 1 channels .*in_channels=1",
    ),
    "fewer classes": (lambda: trained(num_classes=5), "has 5 outputs, and the data have 10 classes"),
    "more classes": (lambda: trained(num_classes=12), "has 12 outputs, and the data have 10 classes"),
    "a long checkpoint": (lambda: trained(state=Path("x" * 300)), "the checkpoint 'x.* cannot be a file's name"),
    "a folder as checkpoint": (lambda: trained(state=Path.cwd()), "the checkpoint .* is a folder, not a file"),
    "no sampler": (lambda: trained(sampler=5), "sampler=5 should be callable"),
    "nothing sampled": (lambda: trained(sampler=lambda step: ()), "no architecture for step 0"),
    "a sampler of another space": (
        lambda: trained(sampler=lambda step: (Arch({"stage1.block0.op": "shuffle3"}),)),
        "an architecture of another space than 'nasbench-macro' for step 0: ",
    ),
    "a sampler without a sequence": (
        lambda: trained(sampler=lambda step: Arch({"stage1.block0.op": "mb3_k3"})),
        r"the sampler returned Arch\(stage1.block0.op='mb3_k3'\) for step 0; return a sequence of Arch",
    ),
    "a list as value": (
        lambda: Arch({"a": [1]}),  # type: ignore[dict-item]
        r"an architecture maps names to text, numbers or truth values, not 'a' to \[1\]",
    ),
    "a number as name": (lambda: Arch({1: 2}), "not 1 to 2"),  # type: ignore[dict-item]
    "no config of data": (lambda: load(None), "source=None should be a Data"),  # type: ignore[arg-type]
    "a long source": (lambda: load(Data("x" * 5000)), "there is no data set 'xx"),
    "a long study": (lambda: Study("x" * 300, sound().space), "the study 'x.* cannot be a file's name"),
    "a folder as study": (lambda: Study(Path.cwd(), sound().space), "the study .* is a folder, not a file"),
    "a study within a file": (lambda: Study(f"{__file__}/x.db", sound().space), "lies within a file"),
    "a device as study": (lambda: Study("/dev/null", sound().space), "the study /dev/null is a device"),
    "a study's name": (lambda: Study(5, sound().space), "path=5 should be"),  # type: ignore[arg-type]
    "a study's space": (lambda: Study(None, "x"), "space='x' should be a SearchSpace"),  # type: ignore[arg-type]
    "no study": (lambda: searched(None, study=None), "study=None should be a Study"),
    "a class as searcher": (lambda: searched(None, searcher=RandomSearch), "searcher=.* should be a Searcher"),
    "a long cache": (lambda: ScoreCache(Path("x" * 300)), "the evaluation cache 'x.* cannot be a file's name"),
    "a mapping to score": (lambda: scored([{"x": 1}]), "come in a list of Arch"),
    "no preprocessing": (
        lambda: export(nn.Identity(), "x", arch={}, space="x", preprocess=None),  # type: ignore[arg-type]
        "preprocess=None should be a Preprocess",
    ),
    "a number as architecture": (lambda: Arch(5), "is a mapping of decision names to values, not '5'"),  # type: ignore[arg-type]
    "choices": (lambda: SearchSpace("x", ["a"]), "takes a sequence of choices"),  # type: ignore[list-item]
    "NaN as option": (lambda: Choice("a", (math.nan, 1.0)), "has NaN among its options"),
    "a limit that is NaN": (
        lambda: Feasible(table(), {"macs": math.nan}),
        "limits=.*nan.* should be a finite number",
    ),
    "no limit": (lambda: Feasible(table(), {"macs": None}), "limits=.*None.* should be a valid number"),  # type: ignore[dict-item]
    "latency batch": (lambda: LatencyTable(sound(), batch=-1), "batch=-1 should be an integer from 1"),
    "no time": (lambda: LatencyTable(sound(), seconds=0), "seconds=0 should be a number from"),
    "no networks to time": (lambda: LatencyTable(sound()).error(0), "archs=0 should be"),
    "time NaN": (lambda: LatencyTable(sound(), seconds=math.nan), "seconds=nan should be"),
    "scoring batch": (
        lambda: SharedWeights(sound(), DIGITS.calibration, DIGITS.validation, batch=-1),
        "batch=-1 should",
    ),
    "no supernet": (lambda: SharedWeights(None, None, None), "supernet=None should be a Chain"),  # type: ignore[arg-type]
    "no architecture": (
        lambda: export(nn.Identity(), "x", arch=None, space="x", preprocess=DIGITS.preprocess()),  # type: ignore[arg-type]
        "arch=None should be a valid dictionary",
    ),
    "tolerance": (
        lambda: export(nn.Identity(), "x", arch={}, space="x", preprocess=DIGITS.preprocess(), tolerance=-1),
        "tolerance=-1 should be a number",
    ),
    "no folder": (lambda: load_exported(None), "an export is given by its folder, not by None"),  # type: ignore[arg-type]
    "no option": (
        lambda: SearchSpace.from_json('{"name":"x","choices":[{"name":"a","options":[null]}],"normal_forms":[]}'),
        r"choice 'a' has options that are no plain values: \[None\]",
    ),
    "detector classes": (lambda: detector(num_classes=0), "num_classes=0 should be an integer from 1"),
    "head width": (lambda: detector(head_width=0), "head_width=0 should be an integer from 1"),
    "head convs": (lambda: detector(head_convs=-1), "head_convs=-1 should be an integer from 0"),
    "anchor": (lambda: detector(anchor_scale=math.nan), "anchor_scale=nan should be a number"),
    "no anchor": (lambda: detector(anchor_scale=0), "anchor_scale=0 makes anchors without area"),
    "overlap": (lambda: detector(overlap=1.5), "overlap=1.5 should be a number from 0 to 1"),
    "image size": (lambda: detector(image_size=(64, "64")), r"image_size=\(64, '64'\) should be a valid integer"),
    "trials": (lambda: searched(None, trials=1.5), "trials=1.5 should be a valid integer"),
    "no trials": (lambda: searched(None, trials=None), "trials=None should be a valid integer"),
    "no results": (lambda: searched(lambda archs: None), "evaluate returned a NoneType for 1 architectures"),
    "a seed as generator": (
        lambda: create_supernet("nasbench-macro", generator=5),  # type: ignore[arg-type]
        r"generator=5 should be a torch\.Generator",
    ),
    "a seed to sample with": (lambda: sound().space.sample(5), "rng=5 should be a generator"),
    "the cost of a dictionary": (lambda: table()({"x": 1}), "is not an architecture; space.canonical"),  # type: ignore[arg-type]
    "no backbone": (
        lambda: create_detector("retinanet", backbone=None),
        "backbone=None should be a valid string",
    ),  # type: ignore[arg-type]
    "a backbone's settings": (
        lambda: detector(backbone_settings=5),
        "backbone_settings=5 should be a valid",
    ),
    "images of other channels": (
        lambda: SharedWeights(create_supernet("nasbench-macro"), DIGITS.calibration, DIGITS.validation),
        "calibration images have 1 channels and the supernet 'nasbench-macro' reads 3",
    ),
    "a supernet to train alone": (lambda: train_standalone(sound(), DIGITS, Train()), "call train_supernet"),
    "latencies in no folder": (lambda: LatencyTable(sound(), file=Path("none/x")), "there is no folder none"),
    "a text as cache": (lambda: ScoreCache(Path(__file__)), "cannot be read as an evaluation cache"),
    "a generator": (lambda: searched(lambda archs: ({} for _ in archs)), "evaluate returned a generator"),
    "images smaller than a stride": (lambda: trained_on_small(alone=False), "images have 4 pixels, .* one pixel per 8"),
    "images smaller than the stride of a subnet": (
        lambda: trained_on_small(alone=True),
        "images have 4 pixels, .* one pixel per 8 pixels of an image: .* at least 8",
    ),
    "a plan for images smaller than a stride": (
        lambda: plan_training(small_strided(), SMALL, Train(epochs=1, batch=512)),
        "images have 4 pixels",
    ),
    "a width in quotes": (
        lambda: macro(widths=(32, "64", 128)),
        r"widths=\(32, '64', 128\) should be a valid integer, and item 1 is '64'",
    ),
    "one width for several": (lambda: macro(widths=5), "widths=5 should be a sequence of values, such as"),
    "widths in one text": (lambda: macro(widths="64"), "widths='64' should be a sequence of values"),
    "a stem in quotes": (lambda: macro(stem="64"), "stem='64' should be a valid integer"),
    # spaces and studies
    "indices of another space": (
        lambda: sound().space.to_indices(create_supernet("shufflenet-small").space.sample(Random(0))),
        "no choice 'stage2.block3.op'; did you mean|'shuffle. is not an option of 'stage1.block0.op' in space",
    ),
    "an option of another space": (
        lambda: TOY.to_indices(Arch({"a": 3})),
        "3 is not an option of 'a' in space 'toy'; choose from: 1, 2",
    ),
    "a study without a name": (lambda: Study("", TOY), "path='' should be the name of a file; an empty one"),
    "a cache without a name": (lambda: ScoreCache(""), "path='' should be the name of a file; an empty one"),
    "weights without a name": (lambda: load_pretrained(macro(), ""), "file='' should be the name of a file"),
    "a truth value for a number": (
        lambda: SearchSpace("n", [Choice("n", (1, 2))]).canonical({"n": True}),
        "True is not an option of 'n'",
    ),
    "a number for a truth value": (
        lambda: SearchSpace("n", [Choice("n", (False, True))]).canonical({"n": 1}),
        "1 is not an option of 'n'",
    ),
    "a truth value in a file": (
        lambda: SearchSpace("n", [Choice("n", (1, 2))]).canonical(Arch.from_json('{"n": true}')),
        "True is not an option of 'n'",
    ),
    "one text for several options": (
        lambda: SearchSpace("n", [Choice("op", ("a", "b"))]).restrict({"op": "ab"}),
        r"options=\{'op': 'ab'\} should be a sequence of values, not one text",
    ),
    "a trial of another space": (lambda: Trial.of(sound().space, Arch({"x": 1}), {"accuracy": 1}), "has no choice 'x'"),
    "a trial with a gap": (
        lambda: Study(None, sound().space).append([Trial.of(sound().space, first(), {"accuracy": 1}, number=5)]),
        "number=5 and batch=5 does not continue the study, whose next trial has number=0",
    ),
    "fewer asked for than none": (
        lambda: Study(None, sound().space).append([Trial.of(sound().space, first(), {"accuracy": 1})], asked=0),
        "asked=0 should be how many",
    ),
    "settings that are no JSON": (lambda: Study(None, sound().space).set_settings({"a": {1}}), "cannot be written as"),
    "a state that is no snapshot": (lambda: Study(None, sound().space).set_snapshot("x"), "state='x' should be bytes"),  # type: ignore[arg-type]
    "points of two lengths": (lambda: nondominated_sort([(1.0, 2.0), (1.0,)]), "points=.* equally many numbers"),
    "violations of other points": (lambda: nondominated_sort([(1.0, 2.0)], [0.0, 1.0]), "violations=.* each of 1"),
    "a distance of NaN": (lambda: crowding_distance([(1.0, math.nan)]), "points=.* none of them NaN"),
    "a searcher by number": (lambda: searcher_class(5), "name=5 should be that of a searcher"),  # type: ignore[arg-type]
    "evaluations below none": (lambda: budget_settings("random", sound().space, -5), "evaluations=-5 should be"),
    "a limit of NaN": (
        lambda: largest_multiplier({"a": 3}, {"a": 6}, lambda widths: 1, math.nan),
        "limit=nan should be a cost",
    ),
    "a width without bound": (
        lambda: largest_multiplier({"a": 3}, {}, lambda widths: 1, 9),
        "no width of the group 'a'",
    ),
    "all of the limit to spare": (
        lambda: equal_widths({"a": 3}, {"a": 6}, lambda widths: 1, limit=9, share=1.0),
        "share=1.0 should be",
    ),
    "no random draws": (
        lambda: random_widths(Random(0), {"a": 3}, {"a": 6}, lambda widths: 1, limit=9, share=0.5, tries=0),
        "tries=0 and spread=4.0 should be",
    ),
    # costs
    "too few networks for a correction": (lambda: LatencyTable(sound()).correct(2), "networks=2 should be greater"),
    "a negative number of networks": (lambda: LatencyTable(sound()).correct(-1), "networks=-1 should be greater"),
    "a fit to two networks": (lambda: Correction.fitted([1.0, 2.0], [1.0, 2.0]), "same networks, at least 3"),
    "a fit to no time": (lambda: Correction.fitted([1.0, 2.0, 3.0], [1.0, 0.0, 2.0]), "positive milliseconds"),
    # data
    "an image that is not there": (lambda: DIGITS.train.subset(torch.tensor([10**6])), "index=.* positions of 1150"),
    "labels in floats": (lambda: pixels_of(labels=torch.zeros(2)), "labels of torch.float32 should be"),
    "pixels in floats": (lambda: pixels_of(pixels=torch.zeros(2, 1, 8, 8)), "pixels of torch.float32 and"),
    "batches of nothing": (lambda: next(DIGITS.test.batches(0)), "size=0 should be a number of images"),
    "fewer batches than none": (lambda: Batches(DIGITS.test, 8, -1), "count=-1 should be a number of batches"),
    "a deviation of 0": (lambda: DIGITS.normalized_by((0.5,), (0.0,)), r"std=\(0.0,\) should be positive numbers"),
    "a negative deviation": (lambda: DIGITS.normalized_by((0.5,), (-1.0,)), r"std=\(-1.0,\) should be positive"),
    "a mean that is NaN": (lambda: DIGITS.normalized_by((math.nan,), (1.0,)), r"mean=\(nan,\) should be finite"),
    "three channels of one": (lambda: DIGITS.normalized_by((0.5,) * 3, (0.2,) * 3), "one per channel of 1"),
    "a list of images and labels": (lambda: load([torch.zeros(4, 1, 8, 8), [0, 1] * 2]), "should be a Data, a folder"),
    "a list with one label missing": (
        lambda: load([(torch.zeros(1, 8, 8), 0), (torch.zeros(1, 8, 8),)]),
        "item 1 of the data set list is tuple, not a pair",
    ),
    "a share of another process": (
        lambda: next(training_batches(DIGITS.train, Augment(), batch=6, seed=0, rank=2, world=2)),
        "batch=6, rank=2 and world=2 do not fit",
    ),
    "one class of images": (
        lambda: load((torch.zeros(20, 1, 8, 8), [0] * 20)),
        "images are of one class only, '0'; there is nothing to learn",
    ),
    "one class of items": (
        lambda: load([(torch.zeros(1, 8, 8), "cat")] * 20),
        "images are of one class only, 'cat'; there is nothing to learn",
    ),
    # training
    "an opening that ends before it begins": (lambda: parse_openings(["kernel=6:4"], 10), "'kernel=6:4' ends before"),
    "an opening twice": (lambda: parse_openings(["a=1", "a=2"], 10), "'a=2' is the second one of 'a'"),
    "openings in one text": (lambda: parse_openings("a=1", 10), "openings='a=1' should be a sequence"),
    "weightless elsewhere": (
        lambda: weighted(SearchSpace("n", [Choice("op", ("a", "b"))]), weightless={"nope.op": ["a"]}),
        "'nope.op'",
    ),
    "a class as an option": (lambda: ChoiceBlock({"c": nn.Identity}), "option 'c' is"),  # type: ignore[dict-item]
    "descending sizes": (lambda: ElasticResolution(3, [64, 32]), r"sizes=\[64, 32\] should be"),
    "patches of no pixels": (lambda: create_supernet("autoformer-tiny", input_size=32, patch=0), "patch=0 should be"),
    "openings of no steps": (lambda: parse_openings(["a=1"], -1), "steps_per_epoch=-1 should be"),
    "an opening of its own": (lambda: Opening("a", 6, 4), "last no earlier than first"),
    "gradients every 0 steps": (lambda: Monitor(sound(), every=0), "every=0 should be greater"),
    "a negative noise": (lambda: initialize_copying(nn.Identity(), noise=-1.0), "noise=-1.0 should be greater"),
    "a start without pixels": (lambda: initialize_alike(nn.Identity(), [], size=0), "size=0 should be"),
    "one image to check a space with": (lambda: check_space(sound(), batch=1), "batch=1 should be greater"),
    # scoring
    "batches below none": (lambda: accuracy(nn.Flatten(), DIGITS.test, -1), "batch=-1 should be greater"),
    "metrics in words": (lambda: check_finite({"accuracy": "x"}, "it"), "metrics=.* should be a valid number"),  # type: ignore[dict-item]
    "a race to half an architecture": (lambda: Race(top=0.5), "top must be at least 1"),  # type: ignore[arg-type]
    "a race to everything": (lambda: Race(part=True), "part and level between 0 and 1"),
    "fewer outputs than classes": (
        lambda: scored([first()], num_classes=5),
        "'nasbench-macro' has 5 outputs, and the validation images have 10 classes; build it with num_classes=10",
    ),
    "accuracy of a network for other channels": (
        lambda: accuracy(sound_on_cpu(in_channels=3), DIGITS.test),
        "the images have 1 channels, and the network reads 3; build it with in_channels=1",
    ),
    "accuracy of a network for fewer classes": (
        lambda: accuracy(sound_on_cpu(num_classes=5), DIGITS.test),
        "the network has 5 outputs, and the label 9 needs 10",
    ),
    # rankings
    "a level of 0": (lambda: tied({first(): np.array([True])}, 0), "level=0 should be a probability"),
    "a level that is NaN": (lambda: tied({first(): np.array([True])}, math.nan), "level=nan should be"),
    "fewer costs than none": (lambda: evenly_spaced([1.0, 2.0], -1), "n=-1 should be how many"),
    "costs in words": (lambda: evenly_spaced(["a", "b"], 1), "costs=.* should be finite numbers, not 'a'"),  # type: ignore[list-item]
    "a ridge of other networks": (
        lambda: fit_ridge(np.zeros((4, 2)), np.zeros(3)),
        r"features of shape \(4, 2\), truth of \(3,\) do not fit",
    ),
    "a ridge without penalty": (lambda: fit_ridge(np.zeros((4, 2)), np.zeros(4), penalty=0), "penalty=0 should be"),
    "labels that are none": (
        lambda: calibrated_ranking({first(): 0.5}, lambda archs: None, space=sound().space),  # type: ignore[arg-type,return-value]
        "label returned None",
    ),
    "the top of other networks": (lambda: top([1, 2], [1, 2, 3], 1), "there are 2 and 3"),
    "half a network at the top": (lambda: top([1, 2], [1, 2], 0.5), "the top 0.5 of 2"),  # type: ignore[arg-type]
    "resamples of nothing": (lambda: resamples(0, 5, 0), "size=0 should be greater"),
    "a mean of a table": (lambda: mean_interval(np.zeros((2, 2))), r"not of shape \(2, 2\)"),  # type: ignore[arg-type]
    "groups in tables": (lambda: welch(np.zeros((2, 2)), [1.0]), "first=.* should be a sequence"),  # type: ignore[arg-type]
    "slopes in numbers": (lambda: growth([1.0]), r"slopes=\[1.0\] should be a Slope"),  # type: ignore[list-item]
    "sizes without losses": (lambda: slope(1, [1.0, 2.0], [1.0]), "there are 2 sizes and 1 losses"),
    "a network without MACs": (lambda: extrapolated({first(): 0.5}, {}, 0.1), "macs has no number for"),
    "a shorter training than none": (lambda: Growth(1.0, 0.1, 1.0).bonus(sound().space, -1.0), "longer=-1.0 should be"),
    "rows of another space": (
        lambda: distinct(sound().space, {Arch({"x": 1}): {"accuracy": 0.5}}),
        "has no choice 'x'",
    ),
    "trainings in words": (lambda: raced(trainings="20"), "trainings='20' should be a number"),
    "half a seed": (lambda: raced(seeds=1.5), "seeds=1.5 and parallel=1 should be whole"),
    "a report without costs": (
        lambda: fidelity(None, TRUTH, space=TOY, costs={}),
        "costs has no macs and params of Arch",
    ),
    "a report without resamples": (lambda: fidelity(None, TRUTH, space=TOY, costs={}, times=-1), "times=-1 should be"),
    "scores that are no mapping": (lambda: fidelity([0.5], TRUTH, space=TOY, costs={}), r"scores=\[0.5\] should be"),  # type: ignore[arg-type]
    "scores of trainings in words": (
        lambda: raced(train=lambda jobs: ["x" for _ in jobs]),
        "train returned 'x' for .*; return a score, None for a failure",
    ),
    "no scores of trainings": (lambda: raced(train=lambda jobs: None), "train returned None for 1 jobs"),
    "networks of two spaces that differ": (
        lambda: differing(first(), Arch({"x": 1})),
        "are of two spaces: only one decides 'stage1",
    ),
    # exports and pictures
    "no time for an export": (lambda: artefact_latencies([Path("x")], seconds=0), "seconds=0 should be greater"),
    "no rows of steps": (lambda: draw_chain(first(), rows=0), "rows=0 should be greater"),
    "no rows of groups": (lambda: draw_widths({"a": 3}, {"a": 4}, rows=0), "rows=0 should be greater"),
    "groups of two networks": (lambda: draw_widths({"a": 3}, {"b": 3}), "lacks the group 'a' of widths"),
    "no channels to draw": (lambda: draw_widths({"a": 0}, {"a": 0}), "have no channels to draw"),
    "no cells to draw": (lambda: draw_cells({}), "cells={} should be at least one cell"),
    "no cell to draw": (lambda: draw_cell(5), "graph=5 should be"),  # type: ignore[arg-type]
    # detection
    "a target without labels": (
        lambda: coco_figures([{"boxes": torch.zeros(0, 4)}], [found()]),
        r"targets\[0\] lacks 'labels'; give a tensor",
    ),
    "labels that are missing from a target": (
        lambda: coco_figures([{"boxes": torch.zeros(0, 4), "labels": None}], [found()]),  # type: ignore[dict-item]
        r"targets\[0\] has None for 'labels'",
    ),
    "boxes of five numbers": (
        lambda: coco_figures([found(boxes=torch.zeros(1, 5))], [found()]),
        r"'boxes' of shape \(1, 5\), which should be \(1, 4\)",
    ),
    "detections without scores": (
        lambda: coco_figures([found()], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}]),
        r"detections\[0\] lacks 'scores'",
    ),
    "a label beyond the classes": (
        lambda: draw_detections(torch.zeros(3, 8, 8, dtype=torch.uint8), found(labels=torch.tensor([5])), ["a"]),
        "the label 5 has no name",
    ),
    "pixels of a picture": (
        lambda: draw_detections(torch.zeros(3, 8, 8), found(), ["a"]),
        r"should be torch.uint8, \(3, H, W\)",
    ),
    "an overlap of 2": (lambda: set_thresholds(nn.Identity(), overlap=2), "overlap=2 should be less"),
    "a score that is NaN to be set": (lambda: set_thresholds(nn.Identity(), score=math.nan), "score=nan should be"),
    "detections below none": (lambda: set_thresholds(nn.Identity(), detections=-5), "detections=-5 should be greater"),
    "detections in words": (lambda: set_thresholds(nn.Identity(), detections="x"), "detections='x' should be"),  # type: ignore[arg-type]
    "an eighth of a turn": (lambda: turned(torch.zeros(3, 4, 5), 45), "degrees=45 should be a multiple of 90"),
    "a backbone without pixels": (lambda: DetectorCosts(detector(), backbone_size=0), "backbone_size=0 should be"),
    "a backbone of another family": (
        lambda: timm_backbone("vit_tiny_patch16_224"),
        "timm:vit_tiny_patch16_224 cannot be a backbone: .* take a ResNet, an EfficientNet or a MobileNet",
    ),
    "anchors of nothing": (lambda: best_overlaps(nn.Identity(), None), "has no Anchors"),  # type: ignore[arg-type]
    "figures without images": (lambda: detector_figures(nn.Identity(), None), "images=None should be a DetectionSet"),  # type: ignore[arg-type]
    "a detection beyond the classes": (
        lambda: confusion([], torch.tensor([[0, 3, 0.9, 1, 1, 9, 9]]), classes=2, threshold=0.5),
        "labels are from 3 to 3, and classes=2",
    ),
    "rows of five numbers": (
        lambda: confusion([], torch.zeros(1, 5), classes=2, threshold=0.5),
        r"rows of shape \(1, 5\) should be",
    ),
    "no classes of a ResNet": (lambda: resnet_18(num_classes=0), "num_classes=0 should be greater"),
    "a detector of fewer classes": (
        lambda: detection_trained(5),
        "the detector has 5 classes, and the data have 10; build it with num_classes=10",
    ),
    "ids of other classes": (
        lambda: DetectorPreprocess(64, (0.5,), (0.2,), ("a", "b"), category_ids=(1,)),
        r"category_ids=\(1,\) and classes=\('a', 'b'\) should have one value each per class",
    ),
    "no pyramid": (lambda: published_nasfpn("nasfpn-r50-7at256", repeats=0), "repeats=0 should be greater"),
    "two sets of crops": (lambda: digit_crops(Data("digits"), (5, 5)), r"counts=\(5, 5\) should be three"),
    "a composed picture in words": (lambda: compose_digits("x", (5, 5), seed=0), "size='x' should be"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_argument_is_named_with_its_value(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, message = CALLS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the error says it all
        with pytest.raises(InputError, match=message) as caught:
            call()
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space", ["nasbench-macro", "shufflenet-small", "plain-small-widths", "nasnet-small"])
def test_every_space_checks_its_sizes(space: str) -> None:
    assert space in SPACES
    for name in ("num_classes", "input_size", "in_channels"):
        with pytest.raises(InputError, match=f"{name}=0 should be"):
            create_supernet(space, **{name: 0})  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    supernet = create_supernet("nasbench-macro", num_classes=np.int64(3), input_size=np.int32(8))
    assert supernet.space.digest() == create_supernet("nasbench-macro", num_classes=3, input_size=8).space.digest()
    with pytest.raises(InputError, match=r"num_classes=2\.5 should be an integer"):
        create_supernet("nasbench-macro", num_classes=np.float64(2.5), input_size=8)


def test_more_calibration_images_than_there_are_is_said() -> None:
    with pytest.warns(UserWarning, match="data.calibration=5,000 is more than the 1,150 images of the training split"):
        assert len(load(Data("digits", size=8, calibration=5000)).calibration) == 1150
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(Data("digits", size=8, validation=0.9))  # the default means "up to"


def test_a_training_that_is_checked_draws_nothing_and_changes_nothing() -> None:
    network = create_supernet("nasbench-macro", num_classes=10, input_size=8, in_channels=1)
    first = network.step_modules[0].eval()
    before, drawn = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    check_network(network, DIGITS)
    assert network.training
    assert not first.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a folder, a pipe or a device"):
        load_weights(tmp_path / "pipe", nn.Linear(1, 1))
    for use in (
        lambda: trained(state=tmp_path / "pipe"),
        lambda: Study(tmp_path / "pipe", sound().space),
        lambda: LatencyTable(sound(), file=tmp_path / "pipe"),
    ):
        with pytest.raises(InputError, match="pipe is a device or a pipe, not a file"):
            use()
    assert _read(tmp_path / "pipe", "key") is None


def test_a_cache_keeps_numbers_only(tmp_path: Path) -> None:
    with ScoreCache(tmp_path / "scores.db") as cache:
        for metrics in ({}, {"accuracy": True}, {"accuracy": "0.5"}):
            with pytest.raises(InputError, match=f"the metrics of {first().key} are .*; give one or more numbers"):
                cache.put({}, first(), Score(metrics))  # type: ignore[arg-type]
        assert cache.get({}, first().key) is None
        cache.put({}, first(), Score({"accuracy": math.nan}))  # of a network whose outputs are not finite
        known = cache.get({}, first().key)
        assert known is not None
        assert math.isnan(known.metrics["accuracy"])
        with pytest.raises(InputError, match="context=5 should be"):
            cache.get(5, first().key)  # type: ignore[arg-type]


def test_a_damaged_file_of_weights_gives_no_advice_to_run_it(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(2), "code": Path}, file)
    for content in (file.read_bytes(), file.read_bytes()[:-40], b"x" * 100):
        file.write_bytes(content)
        for read in (lambda: load_backbone(detector(), file), lambda: load_pretrained(elastic_network(), file)):
            with pytest.raises(InputError, match=r"weights\.pth is damaged or holds more than weights") as caught:
                read()
            assert "weights_only" not in str(caught.value)


def test_a_name_is_offered_once_and_by_its_beginning(tmp_path: Path) -> None:
    assert nearest("z", ["a", "b", "a", "b"]) == "choose from: a, b"
    assert nearest("acc", ["arch", "accuracy", "accuracy_1"]) == "did you mean 'accuracy'?"
    file = tmp_path / "truth.csv"
    file.write_text("arch,accuracy\n00000000,0.5\n")
    with pytest.raises(InputError, match="no column 'acc'; did you mean 'accuracy'"):
        read_truth(file, sound().space, column="acc")


def test_a_layout_that_no_step_reads_need_not_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def untold(self: ClassifierHead, layout: object) -> object:
        raise NotImplementedError

    monkeypatch.setattr(ClassifierHead, "out_layout", untold, raising=False)
    assert scored([first()])[0]["loss"] > 0
    assert len(trained(until=1)) == 1
