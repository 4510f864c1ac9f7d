"""The figures of BENCHMARKS.md: python tools/benchmark.py memory-order, or oracle --seeds 100"""

import statistics
import time

import tyro
from common import main, print_table


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


def oracle(seeds: int = 50, population_size: int = 50, tournament_size: int = 10) -> None:
    """Distinct evaluations until a searcher finds a network of the top 1 % of the NAS-Bench-Macro table.

    Args:
        seeds: Searches per searcher.
        population_size: Of aging evolution.
        tournament_size: Of aging evolution.
    """
    from searchers import AgingEvolution, RandomSearch, Study, search
    from supernet import create_supernet
    from supernet.spaces.nasbench_macro import table

    space, published = create_supernet("nasbench-macro").space, table()
    networks = sorted((published[arch]["accuracy"] for arch in {space.normal_form(a) for a in published}), reverse=True)
    goal = networks[len(networks) // 100 - 1]
    rows = []
    for name in ("random", "aging-evolution"):
        needed = []
        for seed in range(seeds):
            sizes = {"population_size": population_size, "tournament_size": tournament_size}
            evolution = name == "aging-evolution"
            searcher = AgingEvolution(space, seed=seed, **sizes) if evolution else RandomSearch(space, seed=seed)
            study = Study(None, space)
            search(searcher, lambda archs: [published[arch] for arch in archs], study, trials=1500)
            new = [trial for trial in study.trials() if not trial.repeat]
            needed.append(next((i for i, t in enumerate(new, 1) if t.metrics["accuracy"] >= goal), len(new)))
        half = 1.96 * statistics.stdev(needed) / seeds**0.5
        rows.append((name, f"{statistics.mean(needed):.1f} ± {half:.1f}", seeds))
    print_table("evaluations to the top 1 %", ("searcher", "mean, 95 % interval", "n"), rows)


def run() -> None:
    commands = {"memory-order": memory_order, "oracle": oracle}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


if __name__ == "__main__":
    main(run)
