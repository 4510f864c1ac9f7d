"""What two processes of a torchrun train for `test_torchrun.py`; rank 0 writes the results to a folder.

In the first start both ranks finish one training, resume one that a single process began, and begin a third, in which
rank 1 is killed. torchrun then starts both again, and they finish the third.
"""

import json
import os
import signal
import warnings
from pathlib import Path

import torch

from helpers.toy_spaces import chain
from supernet import Arch, Chain
from supernet.config import Augment, Data, Train
from supernet.data import Splits, load
from supernet.train import train_supernet
from supernet.training.checkpoint import save_weights
from supernet.training.distributed import World, process_group
from supernet.training.sampling import ArchSampler, uniform

CONFIG = Train(epochs=2, batch=128, lr=0.05, save_seconds=0.0, ema=0.9, warmup_epochs=0.5)
KILLED_AT = 5  # the step in which rank 1 dies


def toy() -> Chain:
    torch.manual_seed(0)
    return chain(num_classes=10, input_size=8, in_channels=1)


def train(net: Chain, data: Splits, state: Path, sampler: ArchSampler | None = None) -> list[dict[str, float]]:
    augment = Augment(mixup=0.2)
    return train_supernet(net, data, CONFIG, sampler=sampler, augment=augment, state=state, verbose=False)


def trained(folder: Path, name: str, data: Splits, world: World, sampler: ArchSampler | None = None) -> None:
    """Trains and saves the weights, the history and the warnings of every rank."""
    net = toy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = train(net, data, folder / f"{name}.pt", sampler)
    messages = [str(warning.message) for warning in caught if "bit-identical" in str(warning.message)]
    ranks = [json.loads(answer) for answer in world.gather(json.dumps(messages).encode())]
    if world.main:
        save_weights(folder / f"{name}.safetensors", net, {})
        (folder / f"{name}.json").write_text(json.dumps({"history": history, "warnings": ranks}), encoding="utf-8")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    first_start = restarts == "0"
    data = load(Data(size=8))
    sampler = uniform(toy().space)
    with process_group("cpu") as world:
        if world.main:
            (folder / f"started-{restarts}").touch()

        def killed(step: int) -> tuple[Arch, ...]:
            if step == KILLED_AT and first_start and world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return sampler(step)

        if first_start:
            trained(folder, "whole", data, world)
            trained(folder, "alone", data, world)
        trained(folder, "torn", data, world, killed)
