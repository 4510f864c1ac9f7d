"""Train a supernet by a recipe: python tools/train_supernet.py quickstart --train.epochs 20 --out runs/x"""

from supernet_tools.pipeline.command_line import main, parse_recipe, print_table
from supernet_tools.pipeline.recipes import RECIPES


def run() -> None:
    config, out, plan = parse_recipe(RECIPES, "Train a supernet. Every field of the recipe is a flag.")

    from supernet.training.distributed import process_group
    from supernet_tools.pipeline import stages

    with process_group(config.train.device) as world:
        if plan:
            figures = stages.plan_stage(config)
            if world.main:
                print_table("plan, from three steps", ("what", "value"), figures)
            return
        trained = stages.train_stage(config, out)
        if not world.main:
            return
        rows = [("space", trained.supernet.space.name), ("architectures", trained.supernet.space.size())]
        if config.train.epochs:
            found = stages.supernet_accuracy(trained)
            score = f"{found['mean']:.4f} ± {found['deviation']:.4f} over {found['n']} random subnets"
            rows += [(f"shared-weight {trained.kind.metric}", score), ("weights", out / stages.WEIGHTS)]
        else:
            rows += [("shared weights", "none, train.epochs is 0"), ("for", f"tools/retrain.py {out} --arch FILE")]
    print_table("supernet", ("what", "value"), rows)


if __name__ == "__main__":
    main(run)
