"""A batch of subnets as a trie over the steps of a chain: what they have in common from the input on runs once.

The statistics of a step's batch norms depend on the steps before it alone, batch by batch, and so does what it hands
on. A prefix that several subnets share is therefore materialised, calibrated and run once, with the same operations on
the same batches as for each of them apart, and the results are the same bits. The walk is depth first, so that only
what the current path hands on is held.

The leading steps that no decision reaches, such as a stem or a fixed backbone, are common to all architectures there
are. What they hand on is held from one trie to the next where there is room for it (`Features`).
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.chain import Chain, Layouts, materialize
from supernet.scoring.trie import Node, Trie
from supernet.space import Arch
from supernet.training.distributed import revert_sync_bn


class Numbered(Protocol):
    """Batches that are made when they are asked for by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


Visit = Callable[[int, Any], None]
"""Receives the position of an architecture and what its last step hands on for the next batch."""


Phase = Literal["materialize", "trunk", "calibrate", "evaluate", "metric"]
"""A part of scoring: copying weights into steps, reading batches and running the steps that all architectures share,
re-estimating batch-norm statistics, running the validation batches, and computing the metric."""

Watch = Callable[[Phase], AbstractContextManager[object]]
"""Makes a context that is entered for each phase, for instance to time it. Phases nest: steps are copied
while a trie is calibrated or evaluated, for example."""


class BudgetExceeded(Exception):
    """The activations of a single batch along one path are larger than the budget."""


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """Every batch norm inside, each once."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def use_batch_statistics(norm: _BatchNorm) -> None:
    """Normalise every batch with its own statistics and leave the running ones alone."""
    norm.train()
    norm.momentum = 0.0


def tensors_in(state: Any) -> Iterator[Tensor]:
    """The tensors of a state: itself, or those in its tuples, mappings and objects at any depth."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for part in state.values():
            yield from tensors_in(part)
    elif isinstance(state, tuple | list):
        for part in state:
            yield from tensors_in(part)
    elif hasattr(state, "__dict__"):
        yield from tensors_in(vars(state))


def version(tensor: Tensor) -> int:
    """Grows at every write; inference tensors keep no count, and cannot be written to from outside either."""
    return 0 if tensor.is_inference() else tensor._version


# -- materialised steps -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Step:
    """A materialised step. `writes`: whether it changes its input in place, per kind of pass, once seen."""

    module: nn.Module
    norms: list[_BatchNorm]
    writes: dict[bool, bool] = field(default_factory=dict)


class _Copies:
    """Materialised steps, each made once for all paths it lies on; the least recently used ones leave first.

    A step stands on a path once, so one copy serves all nodes; what differs between nodes is in `Node.statistics`.
    """

    def __init__(self, supernet: Chain, *, memory_format: torch.memory_format, memory: int, watch: Watch) -> None:
        self._supernet, self._memory_format, self._memory, self._watch = supernet, memory_format, memory, watch
        self._steps: dict[tuple[int, Arch, Layouts], tuple[_Step, int]] = {}
        self._bytes = 0

    def of(self, node: Node) -> _Step:
        key = (node.position, node.sub, node.layout)
        if key in self._steps:
            step, size = self._steps.pop(key)
        else:
            with self._watch("materialize"):
                step, size = self._make(node)
        self._steps[key] = step, size  # last again
        while self._bytes > self._memory and len(self._steps) > 1:
            self._bytes -= self._steps.pop(next(iter(self._steps)))[1]
        return step

    def _make(self, node: Node) -> tuple[_Step, int]:
        made = materialize(self._supernet.step_module(node.position), node.sub, node.layout).eval()
        made = revert_sync_bn(nn.Sequential(made))[0].to(memory_format=self._memory_format)
        size = sum(tensor.nbytes for tensor in (*made.parameters(), *made.buffers()))
        self._bytes += size
        return _Step(made, norms_of(made)), size

    def clear(self) -> None:
        self._steps.clear()
        self._bytes = 0


Place = tuple[torch.device, int]


def _storages(state: Any) -> Iterator[tuple[Place, torch.UntypedStorage]]:
    """The memory behind every tensor of a state, and where it is."""
    for tensor in tensors_in(state):
        storage = tensor.untyped_storage()
        yield (tensor.device, storage.data_ptr()), storage


class Features:
    """What the fixed steps hand on, per kind of pass and number of a batch, as far as it fits.

    What came first stays: every pass reads all batches in order, and dropping one for another would lose both.

    Args:
        limit: bytes.

    Attributes:
        held: bytes of the states kept.
        places: of their memory.
        statistics: per fixed step those of its batch norms; None until a whole calibration has passed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.places: set[Place] = set()
        self._states: dict[tuple[bool, int], Any] = {}
        self.clear()

    def clear(self) -> None:
        """Keep nothing, statistics included."""
        self.held = 0
        self.statistics: list[list[dict[str, Tensor]]] | None = None
        self.places.clear()
        self._states.clear()

    def get(self, calibrate: bool, number: int) -> Any:
        """The state after the fixed steps, None if it is not kept."""
        return self._states.get((calibrate, number))

    def keep(self, calibrate: bool, number: int, state: Any) -> bool:
        """Keep a state if there is room, and say whether there is."""
        found = dict(_storages(state))
        size = sum(storage.nbytes() for storage in found.values())
        if self.held + size > self.limit:
            return False
        self._states[calibrate, number] = state
        self.places |= found.keys()
        self.held += size
        return True


class _Held:
    """Bytes of the activations held at a time; memory that several states share is counted once.

    Args:
        kept: memory that is not counted, because it stays anyway.
    """

    def __init__(self, limit: int, kept: Set[Place] = frozenset()) -> None:
        self.limit, self.now, self.peak = limit, 0, 0
        self._kept = kept
        self._users: Counter[Place] = Counter()

    def add(self, state: Any) -> None:
        for place, storage in _storages(state):
            if place not in self._kept:
                self.now += 0 if self._users[place] else storage.nbytes()
                self._users[place] += 1
        self.peak = max(self.peak, self.now)
        if self.now > self.limit:
            raise BudgetExceeded

    def drop(self, state: Any) -> None:
        for place, storage in _storages(state):
            if place in self._kept:
                continue
            self._users[place] -= 1
            if not self._users[place]:
                del self._users[place]
                self.now -= storage.nbytes()


# -- the walk ---------------------------------------------------------------------------------------------------------


class PrefixSharing:
    """Calibrates and runs tries of subnets of one supernet, which is read only.

    Batches pass through the trie several at a time, as many as the budget allows: the first alone, which shows how much
    one takes. How they are grouped changes no bit, because every step sees them one by one and in the same order.

    Args:
        memory_format: of the weights of the materialised steps.
        memory: bytes of activations that may be held at a time, and as many again of copied weights.
        batch_statistics: normalise every batch with its own statistics.
        hold: bytes of what fixed steps hand on that are kept from trie to trie, beside `memory`. With any, an instance
            is for one sequence of calibration batches and one of others; statistics of fixed steps are then found once.
        watch: entered around each phase.

    Attributes:
        peak: the most bytes of activations held so far, those kept included.
        batches_made: how many batches were asked for; the others had been kept after the fixed steps.
    """

    def __init__(
        self,
        supernet: Chain,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        memory: int = 2**30,
        batch_statistics: bool = False,
        hold: int = 0,
        watch: Watch = nullcontext,
    ) -> None:
        self.memory, self.batch_statistics, self.peak, self._watch = memory, batch_statistics, 0, watch
        self.batches_made = self._entry = 0
        self._supernet = supernet
        self._copies = _Copies(supernet, memory_format=memory_format, memory=memory, watch=watch)
        self._features = Features(hold)
        self._held = _Held(memory)

    def forget(self) -> None:
        """Drops what was derived from weights that the supernet no longer has."""
        self._copies.clear()
        self._features.clear()

    def calibrate(self, trie: Trie, batches: Numbered) -> None:
        """Re-estimates the statistics of every node as the mean over the batches (see `evaluate.recalibrate_bn`).

        Args:
            batches: normalised images, (N, C, H, W) each, of equal N; made when they are asked for by number, each
                once at most.

        Raises:
            BudgetExceeded: one batch along one path takes more than the budget.
        """
        with self._watch("calibrate"):
            known, start = self._features.statistics, self._start(trie)
            for node, statistics in zip(trie.trunk, known or (), strict=False):
                node.statistics = statistics
            before = [] if start is trie.root or known is not None else trie.trunk
            if any(self._copies.of(node).norms for node in before) or any(map(self._normed, start.children.values())):
                self._walk(trie, batches, None)
                if start is not trie.root:
                    self._features.statistics = [node.statistics for node in trie.trunk]

    def outputs(self, trie: Trie, batches: Numbered, visit: Visit) -> None:
        """Hands every output of every architecture to `visit`; of one architecture, in the order of the batches.

        Raises:
            BudgetExceeded: one batch along one path takes more than the budget.
        """
        with self._watch("evaluate"):
            self._walk(trie, batches, visit)

    def network(self, trie: Trie, leaf: int) -> nn.Sequential:
        """A private network of one architecture, calibrated as the trie is, in eval mode."""
        steps = []
        for node in trie.paths[leaf]:
            step = self._copies.of(node)
            self._bind(step, node)
            steps.append(copy.deepcopy(step.module))
        network = self._supernet.assemble(steps).eval()
        if self.batch_statistics:
            for norm in norms_of(network):
                use_batch_statistics(norm)
        return network

    def _start(self, trie: Trie) -> Node:
        """The node from which a trie is walked: the last that is kept for further tries, or the input."""
        return trie.trunk[-1] if trie.trunk and self._features.limit else trie.root

    @torch.no_grad()
    def _walk(self, trie: Trie, batches: Numbered, visit: Visit | None) -> None:
        """One pass over all batches; without `visit` it calibrates."""
        if visit is None and self._features.statistics is None:
            self._features.clear()  # of a calibration that was broken off
        number, take, most = 0, 1, 1
        while number < len(batches):
            self._held = _Held(self.memory, self._features.places)
            group = range(number, min(number + take, len(batches)))
            with self._watch("trunk"):
                states = [self._entered(trie, batches, at, calibrate=visit is None) for at in group]
            self._spread(self._start(trie), states, visit)
            self.peak = max(self.peak, self._held.peak + self._features.held)
            number, most = group.stop, max(most, self._entry, -(-self._held.peak // len(group)))
            take = max(1, self.memory // most)

    def _entered(self, trie: Trie, batches: Numbered, number: int, *, calibrate: bool) -> Any:
        """A batch as the start of the walk hands it on: kept from before, or run up to there and kept if it fits."""
        state = self._features.get(calibrate, number)
        if state is not None:
            return state
        state = batches[number]
        self.batches_made += 1
        outside, self._held = self._held, _Held(self.memory - self._held.now, self._features.places)
        self._held.add(state)
        for node in trie.trunk if self._start(trie) is not trie.root else []:
            if calibrate and self._features.statistics is not None:
                node = Node(node.position, node.sub, node.layout)  # whose statistics nobody reads
            step = self._copies.of(node)
            self._bind(step, node, fresh=calibrate)
            with self._mode(step, calibrate=calibrate):
                out = self._apply(step, state, calibrate=calibrate)
            self._held.drop(state)
            state = out
        self._entry = max(self._entry, self._held.peak)
        outside.peak = max(outside.peak, outside.now + self._held.peak)
        self._held = outside
        if self._start(trie) is trie.root or not self._features.keep(calibrate, number, state):
            outside.add(state)
        return state

    def _spread(self, node: Node, states: list[Any], visit: Visit | None) -> None:
        """Give every child the states, which are released when the last one has read them."""
        children = [child for child in node.children.values() if visit or self._normed(child)]
        for number, child in enumerate(children, start=1):
            self._run(child, states, visit, spare=number == len(children))
        if not children:
            for state in states:
                self._held.drop(state)

    def _run(self, node: Node, states: list[Any], visit: Visit | None, *, spare: bool) -> None:
        step, outs = self._copies.of(node), []
        self._bind(step, node, fresh=visit is None)
        with self._mode(step, calibrate=visit is None):
            for number in range(len(states)):
                out = self._apply(step, states[number], calibrate=visit is None)
                if spare:
                    self._held.drop(states[number])
                    states[number] = None
                if visit is not None and node.leaf is not None:
                    visit(node.leaf, out)
                    self._held.drop(out)
                else:
                    outs.append(out)
                del out
        if outs:
            self._spread(node, outs, visit)

    def _apply(self, step: _Step, state: Any, *, calibrate: bool) -> Any:
        """What the step makes of a state, which stays as it is even if the step works in place."""
        given, known = state, step.writes.get(calibrate)
        if known is not False:  # once to find out, and always for a step that writes
            given = copy.deepcopy(state)
            self._held.add(given)
        before = [version(tensor) for tensor in tensors_in(given)]
        out = step.module(given)
        self._held.add(out)
        wrote = [version(tensor) for tensor in tensors_in(given)] != before
        if known is None:
            step.writes[calibrate] = wrote
        assert known is not False or not wrote, f"{type(step.module).__name__} writes into its input only sometimes"
        if given is not state:
            self._held.drop(given)
        return out

    @contextmanager
    def _mode(self, step: _Step, *, calibrate: bool) -> Iterator[None]:
        """The batch norms as the pass needs them; in eval mode with their own momentum before and after."""
        if not (calibrate or self.batch_statistics):
            yield
            return
        momenta = [norm.momentum for norm in step.norms]
        for norm in step.norms:
            use_batch_statistics(norm)
            norm.momentum = None if calibrate else 0.0  # None is torch's cumulative average
        try:
            yield
        finally:
            for norm, momentum in zip(step.norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()

    def _bind(self, step: _Step, node: Node, *, fresh: bool = False) -> None:
        """Give the shared copy the statistics of this node; if there are none yet and `fresh`, new ones."""
        if fresh and not node.statistics:
            for norm in step.norms:
                node.statistics.append({name: b.clone() for name, b in norm._buffers.items() if b is not None})
                norm._buffers.update(node.statistics[-1])
                norm.reset_running_stats()
        if node.statistics:
            for norm, buffers in zip(step.norms, node.statistics, strict=True):
                norm._buffers.update(buffers)

    def _normed(self, node: Node) -> bool:
        """Whether this step or one after it has a batch norm to calibrate."""
        if node._normed is None:
            below = [self._normed(child) for child in node.children.values()]
            node._normed = any(below) or bool(self._copies.of(node).norms)
        return node._normed
