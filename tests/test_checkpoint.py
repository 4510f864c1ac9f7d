"""Files: atomic replacement, strict loading, one writer per run, and runs that know their settings."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from supernet.checkpoint import load_state, load_weights, open_run, read_json, replacing, save_state, save_weights
from supernet.config import Data, SupernetRun, Train, from_dict
from supernet.errors import InputError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert load_state(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    torch.save({"format": 1, "payload": Payload()}, path)
    with pytest.raises(InputError, match="no checkpoint of this project"):
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


def test_a_run_folder_knows_its_settings(tmp_path: Path) -> None:
    config = SupernetRun(data=Data(size=16), train=Train(epochs=3))
    folder = tmp_path / "run"
    with open_run(folder, "supernet", config):
        pass
    assert from_dict(SupernetRun, read_json(folder / "run.json")["config"]) == config
    with open_run(folder, "supernet", dataclasses.replace(config, train=Train(epochs=3, save_seconds=1.0))):
        pass
    changed = dataclasses.replace(config, train=Train(epochs=4))
    with (
        pytest.raises(InputError, match=r"another run: train\.epochs is 3 there and 4 here"),
        open_run(folder, "supernet", changed),
    ):
        pass
    with (
        pytest.raises(InputError, match="holds a supernet run, not a retrain run"),
        open_run(folder, "retrain", config),
    ):
        pass
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no run"), open_run(foreign, "supernet", config):
        pass
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"), open_run(folder, "supernet", config):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from supernet.checkpoint import open_run\n"
        "from supernet.config import Train\n"
        "try:\n    open_run(Path(sys.argv[1]), 'x', Train()).__enter__()\n"
        "except ValueError as error:\n    print(error); sys.exit(3)"
    )
    with open_run(tmp_path / "run", "x", Train()):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 3
    assert "another process is writing" in done.stdout


def test_settings_of_another_release_are_named() -> None:
    with pytest.raises(InputError, match=r"no setting 'epoch'; did you mean 'epochs'"):
        from_dict(Train, {"epoch": 3})
    with pytest.raises(InputError, match="'epochs' of Train is missing"):
        from_dict(Train, {})
