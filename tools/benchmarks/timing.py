"""The figures of BENCHMARKS.md: python tools/benchmarks/timing.py memory-order, or oracle --seeds 500"""

import functools
import statistics
import time
from typing import Any

import tyro

from supernet_tools.pipeline.command_line import main, print_table


def memory_order(space: str = "shufflenet-small", size: int = 16, steps: int = 60, threads: int = 1) -> None:
    """Time of a training step in channels-last over contiguous order, the two sides in turn on the same paths.

    Args:
        space: Name of a space.
        size: Image side in pixels.
        steps: Paired steps per batch size, after five that do not count.
        threads: Of torch.
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


def oracle(seeds: int = 500, optuna_seeds: int = 20, batches: tuple[int, ...] = (1, 50)) -> None:
    """Distinct networks that a searcher evaluates until it meets the best of NAS-Bench-Macro, and one of the top ten.

    The table is asked directly, without a study; networks of the same normal form count once, and within a batch in the
    order asked. A search that brings nothing new for 2,000 trials is given up; "reached" says how many were not.

    Args:
        seeds: Searches per searcher.
        optuna_seeds: Searches of Optuna's TPE, which takes milliseconds for a proposal; 0 for none.
        batches: Architectures asked for at a time.
    """
    from searchers import AgingEvolution, LocalSearch, OptunaSearcher, RandomSearch, TopKEvolution
    from supernet.spaces.nasbench_macro import nasbench_macro

    aging = functools.partial(AgingEvolution, population_size=50, tournament_size=10)
    makers = {
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
            found = [_evaluations(make(space, seed=seed), batch) for seed in range(n)]
            if found:
                goals = [_interval([pair[goal] for pair in found if pair[goal]]) for goal in (0, 1)]
                reached = sum(pair[0] > 0 for pair in found)
                rows.append((name, batch, *goals, f"{reached} of {n}", f"{time.perf_counter() - began:.0f} s"))
    columns = ("searcher", "batch", "to the best", "to the top ten", "reached", "time")
    print_table("distinct evaluations, mean and 95 % interval", columns, rows)


def _interval(needed: list[int]) -> str:
    if len(needed) < 2:
        return "-"
    return f"{statistics.mean(needed):.1f} ± {1.96 * statistics.stdev(needed) / len(needed) ** 0.5:.1f}"


def _evaluations(searcher: Any, batch: int) -> tuple[int, int]:
    """How many distinct networks are evaluated up to the best one and up to the first of the top ten; 0 for never."""
    from searchers import Trial

    keys, accuracy, ranked = _networks()
    seen: set[str] = set()
    ten = trials = last = 0
    while trials < last + 2_000 and (archs := searcher.ask(batch)):
        told = []
        for arch in archs:
            trials, key = trials + 1, keys[arch]
            repeat = key in seen
            seen.add(key)
            last = last if repeat else trials
            ten = ten or len(seen) * (key in ranked[:10])
            if key == ranked[0]:
                return len(seen), ten
            told.append(Trial(trials - 1, arch, key, {"accuracy": accuracy[key]}, repeat, 0.0, 0))
        searcher.tell(told)
    return 0, ten


@functools.cache
def _networks() -> tuple[dict[Any, str], dict[str, float], list[str]]:
    """Of NAS-Bench-Macro: the network of each architecture, the accuracy of each network, and these from the best."""
    from supernet.spaces.nasbench_macro import nasbench_macro, table

    space, published = nasbench_macro().space, table()
    keys = {arch: space.normal_form(arch).key for arch in published}
    accuracy = {keys[arch]: published[space.normal_form(arch)]["accuracy"] for arch in published}
    return keys, accuracy, sorted(accuracy, key=lambda key: -accuracy[key])


def run() -> None:
    commands = {"memory-order": memory_order, "oracle": oracle}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


if __name__ == "__main__":
    main(run)
