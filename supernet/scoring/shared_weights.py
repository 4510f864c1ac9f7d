"""Scores of subnets with shared weights: private statistics, recalibrated batch norm, the supernet untouched."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from supernet.chain import Chain
from supernet.data.batches import Batches, ImageSet, digest, identity
from supernet.errors import InputError
from supernet.scoring.batch_norm import BatchNormPolicy, BatchStatistics, Recalibrate, recalibrate_bn
from supernet.scoring.cache import Score, ScoreCache
from supernet.scoring.metrics import BatchMetric, Metric, Metrics, classification
from supernet.scoring.prefix import BudgetExceeded, PrefixSharing, Watch, norms_of, use_batch_statistics, version
from supernet.scoring.trie import Trie
from supernet.space import Arch
from supernet.training.distributed import revert_sync_bn

Record = Callable[[Arch, Score], None]

GROUP = 64
"""Architectures in a trie: a longer request is sorted and cut, so that scores are kept as it goes on; what two pieces
have in common runs twice, which is little beside what the architectures of one piece share."""


# -- candidates -------------------------------------------------------------------------------------------------------


class SharedWeights:
    """Scores architectures with a supernet's weights: `SharedWeights(...)(archs) -> list of metrics`.

    Every candidate has batch-norm statistics of its own, so the supernet is bit-identical afterwards and scores do not
    depend on what is scored before or beside. All candidates see the same calibration and validation images in the same
    order. What the candidates of one call have in common from the input on is calibrated and run once, with the same
    bits as one by one (`PrefixSharing`); a network asked for twice is scored once.

    The weights may change between calls in any way that torch counts (optimisers, `load_state_dict`); after writing
    through `.data`, make a new evaluator.

    Args:
        supernet: trained; its device is used.
        calibration: images from the training split, in memory (`Images`) or read batch by batch (see `ImageSet`).
        validation: held-out images for the score, likewise.
        bn: what batch norm normalises with.
        metric: `(network, images, batch) -> metrics`; `classification` by default. See `BatchMetric` for what shares
            the validation pass too.
        batch: validation images per forward pass; has no influence on scores except under `BatchStatistics`.
        cost: adds its figures to the metrics, e.g. a `CostTable`.
        channels_last: run the candidates in channels-last order, several times faster for depthwise convolutions on the
            CPU; it changes rounding and nothing else.
        share: evaluate common prefixes once; off, one by one, as it is where a single batch exceeds the budget.
        memory: bytes of activations held for sharing; more batches at a time are run where they fit. Copies of weights
            may take as much again.
        hold: bytes, beside `memory`, of what the leading steps that no decision reaches (a stem, the fixed backbone of
            a searched neck) make of calibration and validation batches. These steps are then calibrated and run once
            for all calls until the weights change; batches that do not fit are run again in every call. To hold all
            takes the maps that the last of these steps hands on, in float32, of every image; 0 holds none.
        cache: looked up first, and every new score is kept there at once, costs aside.
        watch: makes a context that is entered around each phase of scoring with shared prefixes, e.g. to time it; see
            `supernet.scoring.prefix.Phase`.

    Attributes:
        steps_asked: steps of all networks scored so far, as one by one would run them; without repeats and cache hits.
        steps_run: steps that were run for them.
        hits: networks whose score came from the cache.

    Raises:
        InputError: a cache with a metric that has no name of its own (see `BatchMetric.name`).
    """

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
        share: bool = True,
        memory: int = 2**30,
        hold: int = 2**29,
        cache: ScoreCache | None = None,
        watch: Watch = nullcontext,
    ) -> None:
        device = next(supernet.parameters()).device
        self.supernet, self.metric, self.batch, self.cost = supernet, metric, batch, cost
        self.bn = Recalibrate() if bn is None else bn
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.calibration, self.validation = calibration.to(device), validation.to(device)
        self.share, self.cache, self._watch = share, cache, watch
        self.steps_asked = self.steps_run = self.hits = 0
        if cache is not None and ("<" in _name(metric) or _name(metric) in ("", "partial")):
            raise InputError(f"scores of {metric!r} cannot be cached: give it an attribute `name` that is its own")
        self._images = identity(self.calibration, self.validation)
        self._state: tuple[object, ...] = ()
        self._weights = ""
        self._prefixes = PrefixSharing(
            supernet,
            memory_format=self.memory_format,
            memory=memory,
            batch_statistics=isinstance(self.bn, BatchStatistics),
            hold=hold,
            watch=watch,
        )

    @property
    def settings(self) -> dict[str, str]:
        """What scores depend on: weights and images as digests, the policy, the metric. A study compares them."""
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
        }

    @property
    def context(self) -> dict[str, str]:
        """What the cache files scores under: the settings and the space's digest."""
        return {**self.settings, "space": self.supernet.space.digest()}

    @property
    def held_bytes(self) -> int:
        """The most bytes of activations that were held at a time: for sharing, and of fixed steps between calls."""
        return self._prefixes.peak

    def __call__(self, archs: Sequence[Arch]) -> list[Metrics]:
        """One mapping per architecture, in order.

        Raises:
            InputError: an architecture of another space, or a cache that cannot be read or written.
        """
        self._refresh()
        space = self.supernet.space
        forms = [space.canonical(space.normal_form(arch)) for arch in archs]
        context = self.context if self.cache is not None else {}
        scores: dict[Arch, Score] = {}
        for form in dict.fromkeys(forms):
            known = self.cache.get(context, form.key) if self.cache is not None else None
            if known is not None:
                scores[form] = known
                self.hits += 1
        new = sorted((form for form in dict.fromkeys(forms) if form not in scores), key=space.to_indices)

        def record(form: Arch, score: Score) -> None:
            scores[form] = score
            if self.cache is not None:
                self.cache.put(context, form, score)

        for start in range(0, len(new), GROUP):
            self._evaluate(new[start : start + GROUP], record)
        costs = [dict(self.cost(arch)) if self.cost is not None else {} for arch in archs]
        return [{**scores[form].metrics, **cost} for form, cost in zip(forms, costs, strict=True)]

    def subnet(self, arch: Arch) -> nn.Module:
        """The standalone copy of one architecture as it is scored: in normal form, eval mode, batch norm per policy."""
        network = revert_sync_bn(self.supernet.subnet(self.supernet.space.normal_form(arch))).eval()
        network.to(memory_format=self.memory_format)
        if isinstance(self.bn, Recalibrate):
            recalibrate_bn(network, self._calibration_batches)
        elif isinstance(self.bn, BatchStatistics):
            for norm in norms_of(network):
                use_batch_statistics(norm)
        return network

    @property
    def _calibration_batches(self) -> Batches:
        assert isinstance(self.bn, Recalibrate)
        size = min(self.bn.size, len(self.calibration))
        return Batches(self.calibration, size, min(self.bn.batches, len(self.calibration) // size))

    def _evaluate(self, archs: Sequence[Arch], record: Record) -> None:
        """Score canonical, distinct architectures and record each score as soon as it is there."""
        asked = len(archs) * len(self.supernet.step_names)
        self.steps_asked += asked
        if self.share:
            trie, made = Trie(self.supernet, archs), self._prefixes.batches_made
            try:
                self._shared(trie, archs, record)
            except BudgetExceeded:
                self.share = False
                self._prefixes.forget()
                warnings.warn(
                    f"one batch takes more than memory={self._prefixes.memory:,} bytes of activations: architectures "
                    "are scored one by one from here on; give a larger memory or a smaller batch",
                    stacklevel=3,
                )
            else:
                kept = isinstance(self.metric, BatchMetric) and self._prefixes.batches_made == made
                self.steps_run += trie.size - kept * len(trie.trunk)
                return
        self.steps_run += asked
        for arch in archs:
            record(arch, self._score(self.subnet(arch)))

    def _shared(self, trie: Trie, archs: Sequence[Arch], record: Record) -> None:
        if isinstance(self.bn, Recalibrate):
            self._prefixes.calibrate(trie, self._calibration_batches)
        metric = self.metric
        if not isinstance(metric, BatchMetric):
            for number, arch in enumerate(archs):
                record(arch, self._score(self._prefixes.network(trie, number)))
            return
        batches = Batches(self.validation, self.batch)
        parts: list[list[Any]] = [[] for _ in archs]

        def visit(number: int, outputs: Any) -> None:
            mine = parts[number]
            with self._watch("metric"):
                mine.append(metric.of_batch(outputs, batches.labels(len(mine))))
                score = Score(metric.combine(mine), metric.correct(mine)) if len(mine) == len(batches) else None
            if score is not None:
                record(archs[number], score)

        self._prefixes.outputs(trie, batches, visit)

    def _score(self, network: nn.Module) -> Score:
        if not isinstance(self.metric, BatchMetric):
            return Score(dict(self.metric(network, self.validation, self.batch)))
        with torch.no_grad():
            parts = [self.metric.of_batch(network(x), y) for x, y in self.validation.batches(self.batch)]
        return Score(dict(self.metric.combine(parts)), self.metric.correct(parts))

    def _refresh(self) -> None:
        """Forget what was derived from weights that are no longer the supernet's."""
        tensors = (*self.supernet.parameters(), *self.supernet.buffers())
        state = tuple((tensor.data_ptr(), version(tensor)) for tensor in tensors)
        if state != self._state:
            self._state, self._weights = state, ""
            self._prefixes.forget()


def _name(metric: Metric) -> str:
    """What a metric is known by: its own name, or that of its function or class."""
    own: str = getattr(metric, "name", "") or getattr(metric, "__qualname__", type(metric).__qualname__)
    return own
