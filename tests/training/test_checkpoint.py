"""Files are replaced atomically and loaded strictly."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from supernet import create_supernet
from supernet.config import Preprocess, Train, from_dict
from supernet.errors import InputError, RunError
from supernet.files import replacing, write_json
from supernet.training.checkpoint import load_state, load_weights, save_state, save_weights


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Makes the system refuse files beyond `limit` bytes, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    state, weights = tmp_path / "state.pt", tmp_path / "w.safetensors"
    save_state(state, {"step": 1})
    with full_disk(50_000):
        with pytest.raises(RunError, match=r"state\.pt cannot be written .* was saved there before is intact"):
            save_state(state, {"step": 2, "tensor": torch.ones(100_000)})
        with pytest.raises(RunError, match=r"w\.safetensors cannot be written .* nothing was there before"):
            save_weights(weights, nn.Linear(400, 400), {})
        with pytest.raises(RunError, match=r"j\.json cannot be written"):
            write_json(tmp_path / "j.json", {"text": "x" * 100_000})
    assert load_state(state)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]
    save_state(state, {"step": 2, "tensor": torch.ones(100_000)})  # the disk has room again
    assert load_state(state)["step"] == 2


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert load_state(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    """safetensors writes metadata in the order of a hash table whose seed differs from one call to the next."""
    paths = [tmp_path / f"{n}.safetensors" for n in range(8)]
    for path in paths:
        save_weights(path, nn.BatchNorm2d(2), {"space": "x", "a": "1", "b": "2", "c": "3"})
    assert len({path.read_bytes() for path in paths}) == 1
    assert load_weights(paths[0], nn.BatchNorm2d(2)) == {
        "format_version": "3",
        "space": "x",
        "a": "1",
        "b": "2",
        "c": "3",
    }


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    torch.save({"format": 2, "payload": Payload()}, path)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_state(path)
    assert not marker.exists()


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    save_weights(path, net, {"space": "x"})
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert load_weights(path, other)["space"] == "x"
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(InputError, match=r"another network: tensor '0\.bias'"):
        load_weights(path, nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="truncated"):
        load_weights(path, other)
    with pytest.raises(InputError, match="has the training finished"):
        load_weights(tmp_path / "missing.safetensors", other)


def test_settings_of_another_release_are_named() -> None:
    with pytest.raises(InputError, match=r"no setting 'epoch'; did you mean 'epochs'"):
        from_dict(Train, {"epoch": 3})
    with pytest.raises(InputError, match="'input_size' of Preprocess is missing"):
        from_dict(Preprocess, {})
    assert from_dict(Train, {"lr": 0.3}) == Train(lr=0.3)


@pytest.mark.parametrize("prefix", ["blocks.", ""])
def test_files_with_numbered_steps_are_refused_by_name(tmp_path: Path, prefix: str) -> None:
    chain = create_supernet("shufflenet-small", input_size=16)
    module: nn.Module = chain if prefix else chain.subnet(chain.space.from_indices([0] * 8))
    weights = {f"{prefix}{number}.weight": torch.zeros(1) for number in range(10)}
    save_file(weights, tmp_path / "old.safetensors")
    with pytest.raises(InputError, match=r"old\.safetensors was written by an older release .*; train again"):
        load_weights(tmp_path / "old.safetensors", module)
    torch.save({"format": 1}, tmp_path / "old.pt")
    with pytest.raises(InputError, match=r"old\.pt was written by an older release .*; train again"):
        load_state(tmp_path / "old.pt")


def test_an_empty_checkpoint_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "state.pt").touch()
    with pytest.raises(InputError, match=r"state\.pt is empty; delete it to train again"):
        load_state(tmp_path / "state.pt")
