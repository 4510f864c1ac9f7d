"""Train a supernet by a recipe: python tools/train_supernet.py quickstart --train.epochs 20 --out runs/x"""

from common import main, parse_recipe, print_table
from recipes import RECIPES


def run() -> None:
    config, out = parse_recipe(RECIPES, "Train a supernet. Every field of the recipe is a flag.")

    import stages

    trained = stages.train_stage(config, out)
    found = stages.supernet_accuracy(trained)
    accuracy = f"{found['mean']:.4f} ± {found['deviation']:.4f} over {found['n']} random subnets"
    rows = [("space", trained.supernet.space.name), ("architectures", trained.supernet.space.size()),
            ("shared-weight accuracy", accuracy),
            ("weights", out / stages.WEIGHTS)]  # fmt: skip
    print_table("supernet", ("what", "value"), rows)


if __name__ == "__main__":
    main(run)
