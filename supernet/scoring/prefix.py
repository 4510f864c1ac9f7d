"""Prefix sharing: what a batch of subnets have in common from the input on runs once.

The statistics of a step's batch norms, and its outputs, depend only on the steps before it and on the batches. A
prefix that several subnets share is therefore materialised, calibrated and run once, with the same operations on the
same batches as for each of them separately, and the results are the same bits. The walk is depth first, so that only
the outputs along the current path are in memory.

The leading steps without a decision, such as a stem or a fixed backbone, are the trunk of all architectures. Trunk
features are kept from one trie to the next where there is room for them (`TrunkCache`).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from supernet.chain import Chain
from supernet.chain.copying import copy_module
from supernet.scoring.batch_norm import Settling, norms_of, use_batch_statistics
from supernet.scoring.memory import ActivationMeter, TrunkCache, tensors_in, version
from supernet.scoring.merging import MERGED_BYTES, CannotMergeError, Held, batch_by_batch, held, merged, same_bits
from supernet.scoring.steps import Adapt, MaterializedStep, StepCache, Watch
from supernet.scoring.trie import Node, Trie


class Numbered(Protocol):
    """Batches that are made when they are asked for by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


Visit = Callable[[int, Any], None]
"""Receives the position of an architecture and the output of its last step for the next batch."""


class PrefixSharing:
    """Calibrates and runs tries of subnets of one supernet, which is only read.

    Batches pass through the trie several at a time, as many as the budget allows; the first goes alone, to show how
    much memory one takes. A step takes several of them at once where they are small and that changes no bit (see
    `merging`); otherwise it sees them one by one, in the same order.

    Args:
        supernet: the chain.
        memory_format: the memory format of the weights of the materialised steps.
        memory: bytes of activations that may be alive at a time, and as many again of copied weights.
        batch_statistics: normalise every batch with its own statistics.
        hold: bytes of trunk features that are kept from trie to trie, in addition to `memory`. Unless it is 0, an
            instance serves one sequence of calibration batches and one of validation batches, and the trunk is
            calibrated once.
        watch: entered around each phase.
        adapt: changes every new copy of a step (see `StepCache`).
        bf16: compute in bfloat16, except for the statistics of batch norm; batches are single tensors.
        settle: see `Recalibrate.settle`.

    Attributes:
        peak: the most bytes of activations that were alive at a time, including the trunk features kept.
        batches_made: how many batches were read; the trunk features of the others had been kept.
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
        adapt: Adapt | None = None,
        bf16: bool = False,
        settle: float = 0.0,
    ) -> None:
        self._bf16, self._settle = bf16, settle
        self.memory, self.batch_statistics, self.peak, self._watch = memory, batch_statistics, 0, watch
        self.batches_made = 0
        self._supernet = supernet
        self._trunk_peak = 0  # bytes that the trunk needs for one batch
        self._steps = StepCache(
            supernet, memory_format=memory_format, memory=memory, watch=watch, adapt=adapt, bf16=bf16
        )
        self._trunk = TrunkCache(hold)
        self._meter = ActivationMeter(memory)

    def forget(self) -> None:
        """Drops everything derived from weights that the supernet no longer has."""
        self._steps.clear()
        self._trunk.clear()

    def calibrate(self, trie: Trie, batches: Numbered) -> None:
        """Re-estimates the statistics of every node as the mean over the batches (see `recalibrate_bn`).

        Args:
            trie: the subnets.
            batches: normalised images, (N, C, H, W) each, all of the same N; each is read once at most.

        Raises:
            BudgetExceeded: one batch along one path takes more than the budget.
        """
        with self._watch("calibrate"):
            start, known = self._start(trie), self._trunk.statistics
            if known is not None:
                for node, statistics in zip(trie.trunk, known, strict=True):
                    node.statistics = statistics
            calibrates_trunk = start is not trie.root and known is None
            nodes = trie.trunk if calibrates_trunk else []
            if any(self._steps.of(node).norms for node in nodes) or any(
                self._needs_calibration(child) for child in start.children.values()
            ):
                self._walk(trie, batches, None)
                if start is not trie.root:
                    self._trunk.statistics = [node.statistics for node in trie.trunk]

    def outputs(self, trie: Trie, batches: Numbered, visit: Visit, *, start: int = 0, stop: int | None = None) -> None:
        """Hands every output of every architecture to `visit`, for each architecture in the order of the batches.

        Args:
            trie: the subnets, calibrated.
            batches: normalised images.
            visit: receives the outputs.
            start, stop: the range of batches, as in `range`; all by default.

        Raises:
            BudgetExceeded: one batch along one path takes more than the budget.
        """
        with self._watch("evaluate"):
            self._walk(trie, batches, visit, start=start, stop=stop)

    def network(self, trie: Trie, leaf: int) -> nn.Sequential:
        """Returns a private network of one architecture, calibrated as the trie is, in eval mode."""
        steps = []
        for node in trie.paths[leaf]:
            step = self._steps.of(node)
            self._bind(step, node)
            steps.append(copy_module(step.module))
        network = self._supernet.assemble(steps).eval()
        if self.batch_statistics:
            for norm in norms_of(network):
                use_batch_statistics(norm)
        return network

    def _start(self, trie: Trie) -> Node:
        """Returns the node at which a walk starts: the end of the trunk if its features are kept, else the input."""
        return trie.trunk[-1] if trie.trunk and self._trunk.limit else trie.root

    @torch.no_grad()
    def _walk(
        self, trie: Trie, batches: Numbered, visit: Visit | None, *, start: int = 0, stop: int | None = None
    ) -> None:
        """Makes one pass over the batches; without `visit` it calibrates."""
        calibrate = visit is None
        if calibrate and self._trunk.statistics is None:
            self._trunk.clear()  # what an interrupted calibration left
        end = len(batches) if stop is None else stop
        number, take, largest = start, 1, 1
        while number < end:
            if calibrate and self._settle and number and not self._unsettled(trie):
                break
            self._meter = ActivationMeter(self.memory, self._trunk.places)
            group = range(number, min(number + take, end))
            with self._watch("trunk"):
                states = [held(self._enter(trie, batches, at, calibrate=calibrate)) for at in group]
            kept = self._start(trie) is not trie.root
            entering = max(one.bytes for one in states) if kept else 0  # the trunk's features are merged in a copy
            self._descend(self._start(trie), states, visit)
            self.peak = max(self.peak, self._meter.peak + self._trunk.size)
            per_batch = -(-self._meter.peak // len(group))
            largest = max(largest, self._trunk_peak, per_batch + entering)
            number, take = group.stop, max(1, self.memory // largest)
            if calibrate and self._settle:
                take = 1  # settled steps then run no further batch

    def _enter(self, trie: Trie, batches: Numbered, number: int, *, calibrate: bool) -> Any:
        """Returns the state of a batch at the start of the walk: from the cache, or computed, and kept if it fits."""
        state = self._trunk.get(number, calibrate=calibrate)
        if state is not None:
            return state
        state = batches[number].bfloat16() if self._bf16 else batches[number]
        self.batches_made += 1
        outer, self._meter = self._meter, ActivationMeter(self.memory - self._meter.now, self._trunk.places)
        self._meter.add(state)
        from_root = self._start(trie) is trie.root
        for node in [] if from_root else trie.trunk:
            if calibrate and self._trunk.statistics is not None:
                node = Node(node.position, node.sub, node.layout)  # its statistics are known; do not count twice
            step = self._steps.of(node)
            self._bind(step, node, fresh=calibrate)
            with self._mode(step, calibrate=calibrate):
                settling = self._settling(step, node, calibrate=calibrate)
                settling.before_batch()
                out = self._apply(step, state, calibrate=calibrate)
                settling.after_batch()
            self._meter.drop(state)
            state = out
        self._trunk_peak = max(self._trunk_peak, self._meter.peak)
        outer.peak = max(outer.peak, outer.now + self._meter.peak)
        self._meter = outer
        if from_root or not self._trunk.keep(number, state, calibrate=calibrate):
            outer.add(state)
        return state

    def _descend(self, node: Node, states: list[Held], visit: Visit | None) -> None:
        """Hands the states to every child; they are released once the last child has read them."""
        children = [
            child
            for child in node.children.values()
            if visit or (self._needs_calibration(child) and not (self._settle and self._has_settled(child)))
        ]
        for child in children:
            self._run(child, states, visit, last=child is children[-1])
        if not children:
            for one in states:
                self._meter.drop(one.state)

    def _run(self, node: Node, states: list[Held], visit: Visit | None, *, last: bool) -> None:
        """Runs a step on all states and goes on below it; with `last` each state is released after it was read."""
        calibrate = visit is None
        step, outs, number = self._steps.of(node), list[Held](), 0
        self._bind(step, node, fresh=calibrate)
        with self._mode(step, calibrate=calibrate):
            settling = self._settling(step, node, calibrate=calibrate)
            while number < len(states):
                if calibrate not in step.alone:
                    self._merge(states, number)
                for out in self._outputs(step, states[number], settling, calibrate=calibrate):
                    if visit is not None and node.leaf is not None:
                        for one in out.apart():
                            visit(node.leaf, one.state)
                        self._meter.drop(out.state)
                    else:
                        outs.append(out)
                    del out
                if last:
                    self._meter.drop(states[number].state)
                    states[number] = Held(None, 0)
                number += 1
        if outs:
            self._descend(node, outs, visit)

    def _merge(self, states: list[Held], number: int) -> None:
        """Merges a state with those after it while they are small enough together and the budget allows."""
        first, end = states[number], number + 1
        size = first.bytes
        while end < len(states) and size + states[end].bytes <= MERGED_BYTES and states[end].form == first.form:
            size += states[end].bytes
            end += 1
        several = states[number:end]
        if len(several) == 1 or self._meter.now + size > self._meter.limit:
            return
        try:
            whole = merged(several)
        except CannotMergeError:
            return
        self._meter.add(whole.state)
        for one in several:
            self._meter.drop(one.state)
        states[number:end] = [whole]

    def _outputs(self, step: MaterializedStep, read: Held, settling: Settling, *, calibrate: bool) -> Iterator[Held]:
        """Yields the outputs of a step for the batches of a state, together if that changes no bit, else one by one."""
        if read.batches > 1 and calibrate not in step.alone:
            out = self._together(step, read, calibrate=calibrate)
            if out is not None:
                yield out
                return
        for one in read.apart():
            settling.before_batch()
            out = Held(self._apply(step, one.state, calibrate=calibrate), read.images)
            settling.after_batch()
            yield out
            del out

    def _together(self, step: MaterializedStep, several: Held, *, calibrate: bool) -> Held | None:
        """Returns the output of a step for several batches at once, None if they have other bits alone.

        The first time that a step gets so many batches of these shapes in a kind of pass, the first and the last of
        them also pass alone. Larger batches may be computed by other kernels, and a user's block may mix images.
        """
        kind = (calibrate, several.batches, several.form)
        norms = step.norms if calibrate or self.batch_statistics else []

        def at_once() -> Held:
            with batch_by_batch(norms, several.batches):
                return Held(self._apply(step, several.state, calibrate=calibrate), several.images, several.batches)

        if kind in step.together:
            return at_once()
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        saved = [buffer.clone() for buffer in buffers]
        outer, self._meter = self._meter, ActivationMeter(self._meter.limit - self._meter.now, self._trunk.places)
        out = None
        try:
            out = at_once()
            batches, outs, after = several.apart(), out.apart(), [buffer.clone() for buffer in buffers]
            alone = (self._apply(step, batches[at].state, calibrate=calibrate) for at in (0, -1))
            if same_bits(next(alone), outs[0].state) and same_bits(next(alone), outs[-1].state):
                saved = after
                step.together.add(kind)
            else:
                out = None
        except Exception:  # a block may fail in any way if it needs another number of images; alone it may work
            out = None
        outer.peak = max(outer.peak, outer.now + self._meter.peak)
        self._meter = outer
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
        if out is None:
            step.alone.add(calibrate)
        else:
            self._meter.add(out.state)
        return out

    def _apply(self, step: MaterializedStep, state: Any, *, calibrate: bool) -> Any:
        """Returns the output of a step; the state stays as it is even if the step works in place."""
        read, writes = state, step.writes_input.get(calibrate)
        if writes is not False:  # a copy, once to find out and always for a step that writes
            read = copy.deepcopy(state)
            self._meter.add(read)
        before = [version(tensor) for tensor in tensors_in(read)]
        out = step.module(read)
        self._meter.add(out)
        wrote = [version(tensor) for tensor in tensors_in(read)] != before
        if writes is None:
            step.writes_input[calibrate] = wrote
        assert writes is not False or not wrote, f"{type(step.module).__name__} writes into its input only sometimes"
        if read is not state:
            self._meter.drop(read)
        return out

    @contextmanager
    def _mode(self, step: MaterializedStep, *, calibrate: bool) -> Iterator[None]:
        """Sets the batch norms as the pass needs them; before and after they are in eval mode with their momentum."""
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

    def _bind(self, step: MaterializedStep, node: Node, *, fresh: bool = False) -> None:
        """Gives the shared copy the statistics of this node; if there are none yet and `fresh`, new ones."""
        if fresh and not node.statistics:
            for norm in step.norms:
                node.statistics.append({name: b.clone() for name, b in norm._buffers.items() if b is not None})
                norm._buffers.update(node.statistics[-1])
                norm.reset_running_stats()
        if node.statistics:
            for norm, buffers in zip(step.norms, node.statistics, strict=True):
                norm._buffers.update(buffers)

    def _needs_calibration(self, node: Node) -> bool:
        """Returns whether this step or one below it has a batch norm."""
        if node.needs_calibration is None:
            below = [self._needs_calibration(child) for child in node.children.values()]
            node.needs_calibration = any(below) or bool(self._steps.of(node).norms)
        return node.needs_calibration

    def _settling(self, step: MaterializedStep, node: Node, *, calibrate: bool) -> Settling:
        """Returns what ends the calibration of a node's batch norms early; use it inside `_mode`, which undoes it."""
        return Settling(step.norms, self._settle, node.settled) if calibrate else Settling([], 0.0, set())

    def _has_settled(self, node: Node) -> bool:
        """Returns whether the calibration of every batch norm in this step and below has ended."""
        own = len(node.settled) == len(self._steps.of(node).norms)
        return own and all(self._has_settled(child) for child in node.children.values())

    def _unsettled(self, trie: Trie) -> bool:
        """Returns whether the calibration of some batch norm goes on."""
        start = self._start(trie)
        trunk = trie.trunk if start is not trie.root and self._trunk.statistics is None else []
        open_trunk = any(len(node.settled) < len(self._steps.of(node).norms) for node in trunk)
        return open_trunk or not all(self._has_settled(child) for child in start.children.values())
