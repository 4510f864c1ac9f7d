"""Which memory order trains faster, and how many evaluations do the evolutionary searchers need on NAS-Bench-Macro?

    python tools/benchmarks/timing.py memory-order          channels-last against contiguous training steps
    python tools/benchmarks/timing.py oracle --seeds 500    evaluations until the best network of the table is found

Each ends with a table: median time ratios with quartiles, or mean evaluations with 95 % intervals.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from supernet.checked import Count, Natural, Pixels, Threads
from supernet_tools.benchmarks.curves import PATIENCE, format_mean
from supernet_tools.pipeline.command_line import main, run_one_of
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from searchers.loop import Searcher
    from supernet.space import Arch


def memory_order(space: str = "shufflenet-small", size: Pixels = 16, steps: Count = 60, threads: Threads = 1) -> None:
    """Time of a training step in channels-last order over contiguous order, alternating on the same paths.

    Args:
        space: Name of a space.
        size: Image side in pixels.
        steps: Pairs of steps per batch size, after five that warm up.
        threads: Threads of torch.
    """
    import torch

    from supernet import create_supernet
    from supernet.seeding import generator

    torch.set_num_threads(threads)
    formats = (torch.channels_last, torch.contiguous_format)
    nets = [create_supernet(space, input_size=size).train().to(memory_format=order) for order in formats]
    rows = []
    for batch in (32, 64, 128):
        images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
        ratios = []
        for step in range(steps + 5):
            arch = nets[0].space.sample(generator("benchmark", step))
            seconds = []
            for net, order in zip(nets, formats, strict=True):
                began = time.perf_counter()
                logits = net(images.contiguous(memory_format=order), arch)
                torch.nn.functional.cross_entropy(logits, labels).backward()
                seconds.append(time.perf_counter() - began)
                net.zero_grad(set_to_none=True)
            ratios.append(seconds[0] / seconds[1])
        low, middle, high = statistics.quantiles(ratios[5:], n=4)
        rows.append((batch, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", steps))
    print_table(f"{space}, {size}×{size}, forward and backward", ("batch", "median ratio", "quartiles", "n"), rows)


def oracle(seeds: Count = 500, optuna_seeds: Natural = 20, batches: tuple[Count, ...] = (1, 50)) -> None:
    """Distinct networks that a searcher evaluates until it finds the best of NAS-Bench-Macro, and one of the top ten.

    Scores are read from the table, without a study. Architectures with the same normal form count once; within a batch
    they count in the order of the proposal. A search without a new network for 2,000 trials is given up; "reached"
    counts the searches that found the best network.

    Args:
        seeds: Searches per searcher.
        optuna_seeds: Searches of Optuna's TPE, which takes milliseconds per proposal; 0 for none.
        batches: Architectures per proposal.
    """
    from searchers import AgingEvolution, LocalSearch, OptunaSearcher, RandomSearch, TopKEvolution
    from supernet.spaces.nasbench_macro import nasbench_macro

    aging = functools.partial(AgingEvolution, population_size=50, tournament_size=10)
    makers: dict[str, tuple[Callable[..., Searcher], int]] = {
        "random": (RandomSearch, seeds),
        "aging evolution, P=50, S=10": (aging, seeds),
        "non-aging evolution, P=50, S=10": (functools.partial(aging, aging=False), seeds),
        "top-k evolution, detnas": (TopKEvolution.detnas, seeds),
        "top-k evolution, spos": (TopKEvolution.spos, seeds),
        "top-k evolution, spos, one-point": (functools.partial(TopKEvolution.spos, crossover="one-point"), seeds),
        "local search": (LocalSearch, seeds),
        "optuna TPE": (OptunaSearcher, optuna_seeds),
    }
    space, rows = nasbench_macro().space, []
    for batch in batches:
        for name, (make, n) in makers.items():
            began = time.perf_counter()
            counts = [_evaluations(make(space, seed=seed), batch) for seed in range(n)]
            if counts:
                goals = [format_mean([pair[goal] for pair in counts if pair[goal]]) for goal in (0, 1)]
                reached = sum(pair[0] > 0 for pair in counts)
                rows.append((name, batch, *goals, f"{reached} of {n}", f"{time.perf_counter() - began:.0f} s"))
    columns = ("searcher", "batch", "to the best", "to the top ten", "reached", "time")
    print_table("distinct evaluations, mean and 95 % interval", columns, rows)


def _evaluations(searcher: "Searcher", batch: int) -> tuple[int, int]:
    """Returns the distinct networks evaluated up to the best one, and up to the first of the top ten; 0 for never."""
    from searchers import Trial

    keys, accuracy, ranked = _networks()
    top_ten = ranked[:10]
    seen: set[str] = set()
    to_top_ten = trials = last_new = 0
    while trials < last_new + PATIENCE and (archs := searcher.ask(batch)):
        reports = []
        for arch in archs:
            trials, key = trials + 1, keys[arch]
            repeat = key in seen
            if not repeat:
                seen.add(key)
                last_new = trials
            if not to_top_ten and key in top_ten:
                to_top_ten = len(seen)
            if key == ranked[0]:
                return len(seen), to_top_ten
            metrics = {"accuracy": accuracy[key]}
            reports.append(Trial.of(searcher.space, arch, metrics, number=trials - 1, repeat=repeat))
        searcher.tell(reports)
    return 0, to_top_ten


@functools.cache
def _networks() -> "tuple[dict[Arch, str], dict[str, float], list[str]]":
    """Returns the key of each architecture of NAS-Bench-Macro, the accuracy of each key, and the keys by rank."""
    from supernet.spaces.nasbench_macro import nasbench_macro, table

    space, published = nasbench_macro().space, table()
    keys = {arch: space.normal_form(arch).key for arch in published}
    accuracy = {keys[arch]: published[space.normal_form(arch)]["accuracy"] for arch in published}
    return keys, accuracy, sorted(accuracy, key=lambda key: -accuracy[key])


def run() -> None:
    """Runs the command that the first argument names."""
    commands: dict[str, Callable[..., None]] = {"memory-order": memory_order, "oracle": oracle}
    run_one_of(commands, __doc__)


if __name__ == "__main__":
    main(run)
