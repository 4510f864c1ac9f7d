"""Scores of subnets with shared weights; every candidate has batch-norm statistics of its own."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from numbers import Real
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from supernet.chain import Chain, Layout, largest
from supernet.checked import Natural, checked_arguments, is_whole, shown
from supernet.convolutions import use_matrix_products
from supernet.data.batches import Batches, ImageSet, digest, identity
from supernet.data.images import Images
from supernet.errors import InputError
from supernet.generators import restored_generators
from supernet.ranking.paired import Bits
from supernet.scoring.batch_norm import (
    BatchNormPolicy,
    BatchStatistics,
    Matched,
    Moments,
    Recalibrate,
    check_full,
    match_moments,
    norms_of,
    output_moments,
    recalibrate_bn,
    single_values_explained,
    use_batch_statistics,
)
from supernet.scoring.cache import Score, ScoreCache
from supernet.scoring.memory import BudgetExceeded, version
from supernet.scoring.metrics import BatchMetric, ClassificationMetric, Metric, Metrics, classification
from supernet.scoring.prefix import PrefixSharing
from supernet.scoring.racing import Race, beaten, extrapolated, shuffled
from supernet.scoring.steps import Watch, to_bf16
from supernet.scoring.trie import Trie
from supernet.space import Arch
from supernet.training.distributed import revert_sync_bn

Record = Callable[[Arch, Score], None]
"""Receives a canonical architecture and its score as soon as it is known."""

GROUP = 64
"""Architectures per trie; longer requests are sorted and split, so that scores are saved as they come. A prefix that
two tries share runs twice, which costs little beside what the architectures of one trie share."""


class SharedWeights:
    """Scores architectures with a supernet's weights: `SharedWeights(...)(archs) -> list of metrics`.

    Every candidate has batch-norm statistics of its own, so the supernet is bit-identical afterwards and scores do not
    depend on what else is scored before or in the same call. All candidates see the same calibration and validation
    images in the same order. What the candidates of one call have in common from the input on is calibrated and run
    once, with the same bits as one by one (`PrefixSharing`); an architecture that is asked for twice is scored once.
    The global generators of Python, numpy and torch are left as they were.

    The weights may change between calls in any way that torch counts (optimisers, `load_state_dict`); after writing
    through `.data`, make a new evaluator.

    Args:
        supernet: a trained supernet; its device is used.
        calibration: images from the training split, in memory (`Images`) or read batch by batch (see `ImageSet`).
        validation: held-out images for the score, likewise.
        bn: the statistics that batch norm uses.
        metric: `(network, images, batch) -> metrics`; `classification` by default. A `BatchMetric` shares the
            validation pass as well.
        batch: validation images per forward pass; it does not affect scores except under `BatchStatistics`.
        cost: costs to add to the metrics, e.g. a `CostTable`.
        channels_last: run the candidates in channels-last order, several times faster for depthwise convolutions on the
            CPU; it changes rounding and nothing else.
        bf16: compute in bfloat16, except for the statistics of batch norm. It is faster on some processors, and scores
            differ slightly. The metric must be a `BatchMetric`.
        race: stops candidates of a call that are unlikely to be among its best after a part of the validation images,
            which are shuffled for it; None scores all candidates on all images. Metrics get an entry `part`, the share
            of the images that was used. It needs `share` and a metric that says which images are right.
        share: whether to evaluate shared prefixes once. If False, or once one batch exceeds `memory`, architectures are
            scored one by one.
        memory: bytes of activations that may be alive for sharing; several batches run at a time where they fit. Copies
            of weights may take as much again.
        hold: bytes, in addition to `memory`, of trunk features: the outputs of the leading steps without a decision (a
            stem, the fixed backbone of a searched neck) on calibration and validation batches. The trunk is then
            calibrated and run once for all calls until the weights change; batches that do not fit are run again in
            every call. Keeping all takes the outputs of the trunk's last step, in float32, for every image; 0 keeps
            none.
        cache: looked up first, and every new score is saved there at once, without costs.
        watch: makes a context that is entered around each phase of scoring with shared prefixes, e.g. to time it; see
            `supernet.scoring.steps.Phase`.

    Attributes:
        sharing: whether shared prefixes are evaluated once: `share`, until one batch has exceeded `memory`.
        steps_asked: the steps of all architectures scored so far, as scoring one by one would run them; repeats and
            cache hits do not count.
        steps_run: the steps that were run for them.
        hits: the architectures whose score came from the cache.

    Raises:
        InputError: images of other channels, or labels beyond the outputs of a classifier; a cache with a metric that
            has no name of its own (see `BatchMetric.name`); `Matched` in a space with decisions that are not ordered;
            bf16 with a metric that runs the network itself; a race whose metric does not say which images are right.
    """

    @checked_arguments
    def __init__(
        self,
        supernet: Chain,
        calibration: ImageSet,
        validation: ImageSet,
        *,
        bn: BatchNormPolicy | None = None,
        metric: Metric = classification,
        batch: int = 256,
        cost: Callable[[Arch], Mapping[str, float]] | None = None,
        channels_last: bool = True,
        bf16: bool = False,
        race: Race | None = None,
        share: bool = True,
        memory: Natural = 2**30,
        hold: Natural = 2**29,
        cache: ScoreCache | None = None,
        watch: Watch = nullcontext,
    ) -> None:
        if not is_whole(batch, 1):
            raise InputError(f"batch={batch!r} should be an integer of at least 1")
        for name, images in (("calibration", calibration), ("validation", validation)):
            channels = getattr(getattr(images, "pixels", None), "shape", (0, 0))[1]
            if channels and channels != supernet.input_shape[0]:
                raise InputError(
                    f"the {name} images have {channels} channels and the supernet {supernet.space.name!r} reads "
                    f"{supernet.input_shape[0]}; build it with in_channels={channels}"
                )
        if isinstance(metric, ClassificationMetric):
            _check_outputs(supernet, validation)
        device = next(supernet.parameters()).device
        self._device = str(device)
        self.supernet, self.metric, self.batch, self.cost = supernet, metric, batch, cost
        self.bn = Recalibrate() if bn is None else bn
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.calibration, self.validation = calibration.to(device), validation.to(device)
        self.share, self.cache, self._watch = share, cache, watch
        self.sharing = share
        self.steps_asked = self.steps_run = self.hits = 0
        if cache is not None and ("<" in _name(metric) or _name(metric) in ("", "partial")):
            raise InputError(f"scores of {metric!r} cannot be cached: give it an attribute `name` that is its own")
        self.bf16 = bf16
        if bf16 and not isinstance(metric, BatchMetric):
            raise InputError(f"the metric {_name(metric)!r} runs the network itself, in float32; leave bf16 out")
        self.race = race
        if race is not None:
            if not (isinstance(metric, BatchMetric) and type(metric).correct is not BatchMetric.correct and share):
                raise InputError(
                    f"a race needs share=True and a metric that says which images are right (BatchMetric.correct), "
                    f"not {_name(metric)!r}; leave race out"
                )
            self.validation = self.validation.subset(shuffled(len(self.validation)))
        if isinstance(self.bn, Matched):
            check_full(supernet.space)
        self._images = identity(self.calibration, self.validation)
        self._state: tuple[object, ...] = ()
        self._weights = ""
        self._full: Moments | None = None
        self._prefixes = PrefixSharing(
            supernet,
            memory_format=self.memory_format,
            memory=memory,
            batch_statistics=isinstance(self.bn, BatchStatistics),
            hold=hold,
            watch=watch,
            adapt=self._adapt if isinstance(self.bn, Matched) else None,
            bf16=bf16,
            settle=self.bn.settle if isinstance(self.bn, Recalibrate) else 0.0,
        )

    @property
    def settings(self) -> dict[str, str]:
        """What scores depend on: digests of weights and images, the policy, the metric. A study compares them."""
        self._refresh()
        if not self._weights:
            self._weights = digest(self.supernet.state_dict().values())
        return {
            "supernet": self._weights,
            "images": self._images,
            "batch norm": str(self.bn),
            "batch": str(self.batch),
            "memory format": str(self.memory_format),
            "metric": _name(self.metric),
            **({"settle": str(self.bn.settle)} if isinstance(self.bn, Recalibrate) and self.bn.settle else {}),
            **({"dtype": "bfloat16"} if self.bf16 else {}),
            **({"race": str(self.race)} if self.race is not None else {}),
        }

    @property
    def context(self) -> dict[str, str]:
        """The context under which the cache keeps scores: the settings and the space's digest."""
        return {**self.settings, "space": self.supernet.space.digest()}

    @property
    def held_bytes(self) -> int:
        """The most bytes of activations that were alive at a time, including trunk features kept between calls."""
        return self._prefixes.peak

    def __call__(self, archs: Sequence[Arch]) -> list[Metrics]:
        """Returns one mapping per architecture, in order.

        Raises:
            InputError: an architecture of another space, or a cache that cannot be read or written.
        """
        if not isinstance(archs, Sequence) or not all(isinstance(arch, Arch) for arch in archs):
            raise InputError(f"architectures to score come in a list of Arch, not as {shown(archs)}")
        self._refresh()
        space = self.supernet.space
        forms = [space.canonical(space.normal_form(arch)) for arch in archs]
        context = self.context if self.cache is not None else {}
        scores: dict[Arch, Score] = {}
        for form in dict.fromkeys(forms):
            score = self.cache.get(context, form.key) if self.cache is not None else None
            if score is not None:
                scores[form] = score
                self.hits += 1
        new = sorted((form for form in dict.fromkeys(forms) if form not in scores), key=space.to_indices)

        def record(form: Arch, score: Score) -> None:
            scores[form] = score
            if self.cache is not None:
                self.cache.put(context, form, score)

        remedy = "raise the images per calibration batch (scoring_batch of a detector) to two or more"
        with restored_generators(self._device), single_values_explained(remedy):
            if self.race is not None and new:
                raced = self._raced(self.race, new, [s.correct for s in scores.values() if s.correct is not None])
                scores |= raced
                if self.cache is not None:  # all or none, since which candidates stop depends on the others
                    self.cache.put_all(context, raced)
            else:
                for start in range(0, len(new), GROUP):
                    self._evaluate(new[start : start + GROUP], record)
        costs = [dict(self.cost(arch)) if self.cost is not None else {} for arch in archs]
        return [{**scores[form].metrics, **cost} for form, cost in zip(forms, costs, strict=True)]

    def subnet(self, arch: Arch) -> nn.Module:
        """Returns a standalone copy of one architecture as it is scored, always in float32.

        It is in normal form and eval mode, with batch norm as the policy says.
        """
        return self._network(arch, bf16=False)

    def _network(self, arch: Arch, *, bf16: bool) -> nn.Module:
        with restored_generators(self._device):
            network = revert_sync_bn(self.supernet.subnet(self.supernet.space.normal_form(arch))).eval()
            network.to(memory_format=self.memory_format)
            if isinstance(self.bn, Matched):
                self._refresh()
                match_moments(network, self._moments)
            if bf16:
                to_bf16(network)
            use_matrix_products(network)
            if isinstance(self.bn, Recalibrate):
                batches = (x.bfloat16() if bf16 else x for x in self._calibration_batches)
                recalibrate_bn(network, batches, settle=self.bn.settle)
            elif isinstance(self.bn, BatchStatistics):
                for norm in norms_of(network):
                    use_batch_statistics(norm)
        return network

    def _adapt(self, path: str, step: nn.Module) -> None:
        match_moments(step, self._moments, prefix=f"{path}.")

    @property
    def _moments(self) -> Moments:
        """The moments of the full network's batch norms on the calibration images, computed once per weights."""
        if self._full is None:
            network = revert_sync_bn(self.supernet.subnet(largest(self.supernet.space)))
            self._full = output_moments(network.to(memory_format=self.memory_format), self._calibration_batches)
        return self._full

    @property
    def _calibration_batches(self) -> Batches:
        assert isinstance(self.bn, Recalibrate)
        size = min(self.bn.size, len(self.calibration))
        return Batches(self.calibration, size, min(self.bn.batches, len(self.calibration) // size))

    def _evaluate(self, archs: Sequence[Arch], record: Record) -> None:
        """Scores canonical, distinct architectures and records each score as soon as it is known."""
        asked = len(archs) * len(self.supernet.step_names)
        self.steps_asked += asked
        if self.sharing:
            try:
                self.steps_run += self._evaluate_together(archs, record)
            except BudgetExceeded:
                self._stop_sharing()
            else:
                return
        self.steps_run += asked
        for arch in archs:
            record(arch, self._score(self._network(arch, bf16=self.bf16)))

    def _stop_sharing(self) -> None:
        """Scores architectures one by one from here on, since one batch exceeds the memory, and warns of it."""
        self.sharing = False
        self._prefixes.forget()
        warnings.warn(
            f"one batch takes more than memory={self._prefixes.memory:,} bytes of activations: architectures "
            "are scored one by one from here on; give a larger memory or a smaller batch",
            stacklevel=4,
        )

    def _evaluate_together(self, archs: Sequence[Arch], record: Record) -> int:
        """Scores architectures with shared prefixes and returns the number of steps that were run."""
        trie, batches_made = Trie(self.supernet, archs), self._prefixes.batches_made
        self._shared(trie, archs, record)
        trunk_was_kept = isinstance(self.metric, BatchMetric) and self._prefixes.batches_made == batches_made
        return trie.size - (len(trie.trunk) if trunk_was_kept else 0)

    def _shared(self, trie: Trie, archs: Sequence[Arch], record: Record) -> None:
        if isinstance(self.bn, Recalibrate):
            self._prefixes.calibrate(trie, self._calibration_batches)
        metric = self.metric
        if not isinstance(metric, BatchMetric):
            for number, arch in enumerate(archs):
                record(arch, self._score(self._prefixes.network(trie, number)))
            return
        batches = Batches(self.validation, self.batch, alike=True)
        parts: list[list[Any]] = [[] for _ in archs]

        def visit(number: int, outputs: Any) -> None:
            done = parts[number]
            with self._watch("metric"):
                outputs = outputs.float() if self.bf16 else outputs
                done.append(metric.of_batch(outputs, batches.labels(len(done))))
                score = Score(metric.combine(done), metric.correct(done)) if len(done) == len(batches) else None
            if score is not None:
                record(archs[number], score)

        self._prefixes.outputs(trie, batches, visit)

    def _raced(self, race: Race, archs: Sequence[Arch], known: Sequence[Bits]) -> dict[Arch, Score]:
        """Scores canonical, distinct architectures by a race; every score has an entry `part`.

        Args:
            race: the rule.
            archs: the architectures of a request that have no score yet.
            known: which images the others of the request classify correctly, where they were scored on all images.
        """
        if not self.sharing:
            return self._scored_apart(archs)
        metric = self.metric
        assert isinstance(metric, BatchMetric)
        batches = Batches(self.validation, self.batch, alike=True)
        first = max(1, round(race.part * len(batches)))
        kept: dict[Arch, list[Any]] = {arch: [] for arch in archs}
        try:
            groups = [archs[at : at + GROUP] for at in range(0, len(archs), GROUP)]
            tries = [self._first_part(group, batches, first, kept) for group in groups]
            partial = {arch: metric.combine(parts) for arch, parts in kept.items()}
            bits = {arch: row for arch, parts in kept.items() if (row := metric.correct(parts)) is not None}
            stopped: set[Arch] = set()
            if first < len(batches) and bits:
                images = sum(len(batches.labels(number)) for number in range(first))
                table = np.stack([*bits.values(), *(row[:images] for row in known)])
                lost = beaten(table, race, others=len(table) - 1)
                stopped = {arch for arch, is_beaten in zip(bits, lost, strict=False) if is_beaten}
                for trie, group in zip(tries, groups, strict=True):
                    numbers = [number for number, arch in enumerate(group) if arch not in stopped]
                    if numbers:
                        others = [group[number] for number in numbers]
                        rest = Trie(self.supernet, others)
                        rest.inherit(trie, numbers)
                        self._pass(rest, others, batches, kept, first, len(batches))
        except BudgetExceeded:
            self._stop_sharing()
            return self._scored_apart(archs)
        scores = {
            arch: Score({**metric.combine(parts), "part": 1.0}, metric.correct(parts))
            for arch, parts in kept.items()
            if arch not in stopped
        }
        complete = [(partial[arch], score.metrics) for arch, score in scores.items()]
        for arch in stopped:
            scores[arch] = Score({**extrapolated(partial[arch], complete), "part": images / len(self.validation)})
        return scores

    def _scored_apart(self, archs: Sequence[Arch]) -> dict[Arch, Score]:
        """Scores architectures one by one on all images."""
        self.steps_asked += len(archs) * len(self.supernet.step_names)
        self.steps_run += len(archs) * len(self.supernet.step_names)
        scores = {arch: self._score(self._network(arch, bf16=self.bf16)) for arch in archs}
        return {arch: Score({**score.metrics, "part": 1.0}, score.correct) for arch, score in scores.items()}

    def _first_part(self, archs: Sequence[Arch], batches: Batches, first: int, kept: dict[Arch, list[Any]]) -> Trie:
        """Calibrates architectures and runs the first batches; adds what the metric keeps of each batch to `kept`."""
        trie = Trie(self.supernet, archs)
        if isinstance(self.bn, Recalibrate):
            self._prefixes.calibrate(trie, self._calibration_batches)
        self._pass(trie, archs, batches, kept, 0, first)
        self.steps_asked += len(archs) * len(self.supernet.step_names)
        self.steps_run += trie.size
        return trie

    def _pass(
        self, trie: Trie, archs: Sequence[Arch], batches: Batches, kept: dict[Arch, list[Any]], start: int, stop: int
    ) -> None:
        """Runs the batches of `range(start, stop)`; adds what the metric keeps of each batch to `kept`."""
        metric = self.metric
        assert isinstance(metric, BatchMetric)

        def visit(number: int, outputs: Any) -> None:
            done = kept[archs[number]]
            with self._watch("metric"):
                done.append(metric.of_batch(outputs.float() if self.bf16 else outputs, batches.labels(len(done))))

        self._prefixes.outputs(trie, batches, visit, start=start, stop=stop)

    def _score(self, network: nn.Module) -> Score:
        if not isinstance(self.metric, BatchMetric):
            metrics = self.metric(network, self.validation, self.batch)
            if not isinstance(metrics, Mapping) or not all(isinstance(value, Real) for value in metrics.values()):
                raise InputError(
                    f"the metric {_name(self.metric)} returned {shown(metrics)}; return a mapping from name to number"
                )
            return Score(dict(metrics))
        batches = Batches(self.validation, self.batch, alike=True)
        with torch.no_grad():
            parts = [
                self.metric.of_batch(network(x.bfloat16()).float() if self.bf16 else network(x), batches.labels(at))
                for at, x in enumerate(batches)
            ]
        return Score(dict(self.metric.combine(parts)), self.metric.correct(parts))

    def _refresh(self) -> None:
        """Drops everything derived from weights that the supernet no longer has."""
        tensors = (*self.supernet.parameters(), *self.supernet.buffers())
        state = tuple((tensor.data_ptr(), version(tensor)) for tensor in tensors)
        if state != self._state:
            self._state, self._weights, self._full = state, "", None
            self._prefixes.forget()


def _check_outputs(supernet: Chain, validation: ImageSet) -> None:
    """Raises `InputError` if a classifier, whose last layout says its outputs, has none for a label."""
    if not isinstance(validation, Images) or not len(validation):
        return
    try:
        layout = supernet.out_layout(supernet.space.sample(Random(0)))
    except Exception:  # the last step need not declare anything, since no step reads its layout
        return
    classes = int(validation.labels.max()) + 1
    if isinstance(layout, Layout) and not layout.stride and layout.channels < classes:
        raise InputError(
            f"the supernet {supernet.space.name!r} has {layout.channels:,} outputs, and the validation images have "
            f"{classes:,} classes; build it with num_classes={classes}"
        )


def _name(metric: Metric) -> str:
    """Returns the metric's own name, or that of its function or class."""
    name: str = getattr(metric, "name", "") or getattr(metric, "__qualname__", type(metric).__qualname__)
    return name
