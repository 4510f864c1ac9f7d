"""Two gloo processes: gradients equal those of torch's DDP, only active weights are sent; synchronised batch norm."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.distributed_cases import CASES, PAYLOADS, SPACES, accumulate, architectures, build, joint_batch, main
from helpers.distributed_cases import gradients as gradients_of
from helpers.launch import launch
from supernet import Chain
from supernet.errors import InputError
from supernet.training.distributed import (
    ALONE,
    World,
    convert_sync_bn,
    current,
    process_group,
    reduce_gradients,
    revert_sync_bn,
)

TESTS = Path(__file__).parents[1]
TOLERANCE = 1e-6  # of the largest gradient of a parameter, or absolute below 1
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """The results that the two processes wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers: list[dict[str, Any]] = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]

    def tensors(self, space: str, paths: int, rank: int = 0) -> dict[str, Tensor]:
        return load_file(self.folder / f"{space}-{paths}.{rank}.safetensors")

    def gradients(self, space: str, paths: int, *, kind: str, rank: int = 0) -> dict[str, Tensor]:
        tensors = self.tensors(space, paths, rank)
        return {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(kind + "/")}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    launch(main, folder)
    return Ranks(folder)


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Checks that the same parameters have gradients, and that the gradients agree."""
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = max(1.0, theirs[name].abs().max().item())
        assert (gradient - theirs[name]).abs().max().item() <= TOLERANCE * scale, name


def active_names(net: Chain, paths: int) -> set[str]:
    used = {id(p) for arch in architectures(net, paths) for p in net.active_parameters(arch)}
    return {name for name, parameter in net.named_parameters() if id(parameter) in used}


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "paths"), CASES)
def test_gradients_are_those_of_torchs_ddp(ranks: Ranks, space: str, paths: int) -> None:
    ours = ranks.gradients(space, paths, kind="ours")
    assert_close(ours, ranks.gradients(space, paths, kind="ddp"))
    assert any(gradient.abs().max() > 1e-3 for gradient in ours.values())
    for name, gradient in ranks.gradients(space, paths, kind="ours", rank=1).items():
        assert torch.equal(gradient, ours[name]), f"the ranks differ in {name}"


@pytest.mark.parametrize(("space", "paths"), CASES)
def test_parameters_that_no_architecture_used_have_no_gradient(ranks: Ranks, space: str, paths: int) -> None:
    net = build(space)
    assert ranks.gradients(space, paths, kind="ours").keys() == active_names(net, paths)
    if space in ("chain", "shufflenet-small"):
        assert len(active_names(net, paths)) < len(list(net.parameters()))


@pytest.mark.parametrize(("space", "paths"), CASES)
def test_two_halves_are_the_joint_batch_of_one_process(ranks: Ranks, space: str, paths: int) -> None:
    """Batch norm is in eval mode, because in training mode each process uses the statistics of its own images."""
    net = build(space).eval()
    accumulate(net, architectures(net, paths), *joint_batch())
    assert_close(ranks.gradients(space, paths, kind="eval"), gradients_of(net))


def test_all_ranks_end_when_rank_0_has_lost_its_patience(ranks: Ranks) -> None:
    assert [numbers["patience"] for numbers in ranks.numbers] == [3, 3]


def union_bytes(net: Chain, paths: int) -> int:
    """Returns the bytes of the elements that some architecture uses, counted with masks."""
    masks: dict[nn.Parameter, Tensor] = {}
    for arch in architectures(net, paths):
        for parameter, index in net.active_parts(arch):
            masks.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))[index] = True
    return 4 * sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize(("space", "paths"), CASES)
def test_only_active_elements_are_sent(ranks: Ranks, space: str, paths: int) -> None:
    net = build(space)
    union = union_bytes(net, paths)
    extra = 4 * paths  # the losses
    numbers = ranks.numbers[0][f"{space}-{paths}"]
    whole = 4 * sum(parameter.numel() for parameter in net.parameters())
    print(f"{space}, {paths} paths: sent {numbers['sent']}, active {union}, DDP {numbers['ddp']}")
    assert numbers["sent"] == union + extra <= 1.05 * union  # in "sliced" the union of three widths is an L
    assert numbers["ddp"] == whole  # the control: torch sends every parameter of the supernet
    assert numbers["sent"] < whole + extra or active_names(net, paths) == dict(net.named_parameters()).keys()


def test_one_sliced_architecture_sends_its_slices(ranks: Ranks) -> None:
    net = build("sliced")
    union = union_bytes(net, 1)
    used = 4 * sum(parameter.numel() for parameter in net.active_parameters(architectures(net, 1)[0]))
    assert ranks.numbers[0]["sliced-1"]["sent"] <= 1.05 * union < 0.9 * used


@pytest.mark.parametrize(("space", "paths"), CASES)
def test_many_buckets_give_the_result_of_one(ranks: Ranks, space: str, paths: int) -> None:
    numbers = ranks.numbers[0][f"{space}-{paths}"]
    assert numbers["one"] == 1
    assert numbers["many"] >= 5
    small = ranks.gradients(space, paths, kind="small")
    for name, gradient in ranks.gradients(space, paths, kind="ours").items():
        assert torch.equal(small[name], gradient), name


@pytest.mark.parametrize("space", SPACES)
def test_losses_are_averaged_in_the_same_messages(ranks: Ranks, space: str) -> None:
    first, second = (ranks.tensors(space, 3, rank) for rank in (0, 1))
    assert not torch.equal(first["losses"], second["losses"])
    for tensors in (first, second):
        torch.testing.assert_close(tensors["mean"], (first["losses"] + second["losses"]) / 2)


def test_another_dtype_has_its_own_bucket_and_frozen_weights_are_not_sent(ranks: Ranks) -> None:
    for rank, numbers in enumerate(ranks.numbers):
        assert numbers["other"]["double"] == [[0.5, 6.0, 5.0], "torch.float64", [rank, 10.0 * rank + 1, 5.0]]
        sent, expected = numbers["other"]["frozen"]
        assert sent == expected


def test_an_active_parameter_without_a_gradient_is_reported(ranks: Ranks) -> None:
    for rank, numbers in enumerate(ranks.numbers):
        assert f"without a gradient on rank {rank}, of shapes [(8, 3, 3, 3)" in numbers["other"]["missing"]


# -- ranks and devices ------------------------------------------------------------------------------------------------


def test_ranks_know_their_place_and_receive_from_rank_0(ranks: Ranks) -> None:
    for rank, numbers in enumerate(ranks.numbers):
        assert numbers["other"]["world"] == [rank, 2, rank, True, f"cuda:{rank}"]
        assert numbers["other"]["received"] == [payload.hex() for payload in PAYLOADS]
        assert numbers["other"]["barrier"]
        assert numbers["after"] == 1, "the group outlives its context"


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as world:
        assert world == current() == ALONE == World()
        assert world.main
        assert world.device("cuda") == "cuda"
        assert world.from_main(b"as it is") == b"as it is"
        world.barrier()
    net = build("chain")
    losses = accumulate(net, architectures(net, 1), *joint_batch())
    before = gradients_of(net)
    extra, sent = reduce_gradients(net.active_parts(architectures(net, 1)[0]), losses)
    assert extra is losses
    assert sent == 0
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients_of(net).items())


def test_a_device_that_is_not_there_is_refused_before_work() -> None:
    with pytest.raises(InputError, match=r"the device 'cuda:63' is not available"), process_group("cuda:63"):
        pass


def test_devices_are_named_only_for_cuda_among_several() -> None:
    assert World(3, 4, 1).device("cuda") == "cuda:1"
    assert World(3, 4, 1).device("cpu") == "cpu"
    assert World(3, 4, 1).device("cuda:0") == "cuda:0"
    assert not World(3, 4, 1).main


@pytest.mark.parametrize(
    ("devices", "device", "message"),
    [
        (0, "cuda", r"WORLD_SIZE=4 processes, 2 of them on this machine, which has 0 CUDA devices.*'cpu'"),
        (1, "cuda", r"WORLD_SIZE=4 processes, 2 of them on this machine, which has 1 CUDA devices; start one process"),
        (2, "cuda:1", r"every process needs a device of its own: choose 'cuda', not 'cuda:1'"),
    ],
)
def test_missing_devices_are_reported(monkeypatch: pytest.MonkeyPatch, devices: int, device: str, message: str) -> None:
    for name, value in zip(TORCHRUN, ("0", "4", "0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(InputError, match=message), process_group(device):
        pass
    assert not torch.distributed.is_initialized()


# -- batch norm over all processes ------------------------------------------------------------------------------------


def norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("space", SPACES)
def test_sync_bn_and_back_leaves_every_tensor(space: str) -> None:
    net = build(space)
    names, before = list(net.state_dict()), copy.deepcopy(net.state_dict())
    objects = dict(net.named_parameters())
    settings = [(type(norm), norm.eps, norm.momentum, norm.affine) for norm in norms(net)]
    assert convert_sync_bn(net) is net
    assert norms(net)
    assert all(type(norm) is nn.SyncBatchNorm for norm in norms(net))
    assert {name: id(p) for name, p in net.named_parameters()} == {name: id(p) for name, p in objects.items()}
    net = copy.deepcopy(net)  # as an evaluation does
    assert revert_sync_bn(net) is net
    assert [(type(norm), norm.eps, norm.momentum, norm.affine) for norm in norms(net)] == settings
    assert list(net.state_dict()) == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    arch, (images, _) = architectures(net, 1)[0], joint_batch()
    assert torch.equal(net(images, arch), build(space)(images, arch))  # in training mode: it is batch norm again


def test_every_kind_of_batch_norm_is_restored() -> None:
    shared = nn.BatchNorm2d(3, momentum=None)
    plain = [nn.BatchNorm1d(3, affine=False), nn.BatchNorm3d(3, eps=0.5), nn.BatchNorm2d(3, track_running_stats=False)]
    net = nn.Sequential(*plain, shared, nn.ModuleDict({"inside": shared})).eval()
    net[1].weight.requires_grad_(False)
    before = str(net)
    convert_sync_bn(convert_sync_bn(net))
    assert net[3] is net[4]["inside"]
    assert type(net[3]) is nn.SyncBatchNorm
    revert_sync_bn(revert_sync_bn(net))
    assert str(net) == before
    assert net[3] is net[4]["inside"]
    assert not net[1].weight.requires_grad
    assert not any(module.training for module in net.modules())
    assert not any(tensor.is_meta for tensor in net.state_dict().values())
    foreign = revert_sync_bn(nn.Sequential(nn.SyncBatchNorm(3)))
    assert type(foreign[0]) is nn.BatchNorm2d


def test_a_batch_norm_that_does_more_is_refused() -> None:
    class WithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(InputError, match="WithActivation has no synchronised form"):
        convert_sync_bn(nn.Sequential(WithActivation(3)))
