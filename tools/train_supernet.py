"""Train a supernet by a recipe: python tools/train_supernet.py quickstart --train.epochs 20 --out runs/x"""

import warnings

from supernet_tools.pipeline.command_line import closing, command, main, parse_recipe
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.tables import print_table

STEPS = 90  # that try a learning rate


def run() -> None:
    config, out, action, accept = parse_recipe(RECIPES, "Train a supernet. Every field of the recipe is a flag.")

    from supernet.training.distributed import process_group
    from supernet_tools.pipeline.growth import bonus_of
    from supernet_tools.pipeline.learned import not_learned
    from supernet_tools.pipeline.run import WEIGHTS
    from supernet_tools.pipeline.train import plan_stage, rates_stage, supernet_accuracy, train_stage

    with process_group(config.train.device) as world:
        if action == "plan":
            rows = plan_stage(config)
            if world.main:
                print_table("plan, from three steps", ("what", "value"), rows)
            return
        if action == "find-lr":
            rates = rates_stage(config, steps=STEPS)
            if world.main:
                best = min(rates, key=lambda rate: (rates[rate], rate))
                title = f"learning rates of {config.train.optimizer}, {STEPS} steps each"
                print_table(title, ("rate", "loss"), [(f"{rate:.3g}", f"{loss:.4f}") for rate, loss in rates.items()])
                print(f"the lowest loss is that of --train.lr {best:.3g}")
            return
        trained = train_stage(config, out, accept_changed_data=accept)
        if not world.main:
            return
        report: list[tuple[str, object]] = [
            ("space", trained.space.name),
            ("architectures", trained.space.size()),
        ]
        if trained.kind.has_weights:
            shared = supernet_accuracy(trained)
            score = f"{shared['mean']:.4f} ± {shared['deviation']:.4f} over {shared['n']} random subnets"
            report += [(f"shared-weight {trained.kind.metric}", score), ("weights", out / WEIGHTS)]
        else:
            report += [("shared weights", "none, train.epochs is 0"), ("for", f"tools/retrain.py {out} --arch FILE")]
    print_table("supernet", ("what", "value"), report)
    if problem := not_learned(trained):
        warnings.warn(problem, stacklevel=1)
    following = command("search", out) if config.train.epochs else command("retrain", out, "--arch", "FILE")
    if "loss" in trained.kind.metrics and bonus_of(trained) > 0:
        print(
            "larger networks were still gaining on smaller ones when the training ended, so shared scores underrate "
            "them; search --extrapolate adds what a retraining would give"
        )
        following = command("search", out, "--extrapolate")
    closing([out], following, command("report", out))


if __name__ == "__main__":
    main(run)
