"""Recipes: functions that return a complete configuration. No torch here, so that `--help` is instant."""

from dataclasses import replace

from supernet.config import Augment, Data, SupernetRun, Train, Window

CIFAR = Augment(shift=4, flip=True)
IMAGENET = Augment(scale=0.08, flip=True, color_jitter=0.4)


def quickstart() -> SupernetRun:
    """The demo: ShuffleNet choice blocks on the embedded digits."""
    return SupernetRun(
        space="shufflenet-small",
        data=Data("digits", size=16, augment=Augment(shift=1)),
        train=Train(epochs=50, batch=32, lr=0.2),
        retrain=Train(epochs=6, batch=32, lr=0.1),
    )


def macro_digits() -> SupernetRun:
    """The NAS-Bench-Macro space on the embedded digits."""
    return SupernetRun(
        space="nasbench-macro",
        data=Data("digits", size=16, augment=Augment(shift=1)),
        train=Train(epochs=60, batch=32, lr=0.1),
        retrain=Train(epochs=12, batch=32, lr=0.1),
    )


def spos_images() -> SupernetRun:
    """Uniform single-path training (Guo et al., 2020) on a folder of images: give --data.source."""
    return SupernetRun(
        space="shufflenet-small",
        data=Data("", size=32, augment=CIFAR, calibration=2048, validation=0.1),
        train=Train(epochs=100, batch=128, lr=0.2, label_smoothing=0.1),
        retrain=Train(epochs=50, batch=128, lr=0.1, label_smoothing=0.1),
    )


def _cifar10(space: str, train: Train, retrain: Train) -> SupernetRun:
    data = Data("cifar10", size=32, augment=CIFAR, calibration=2048, validation=0.1)
    return SupernetRun(space=space, data=data, train=train, retrain=retrain)


def macro_cifar10() -> SupernetRun:
    """The NAS-Bench-Macro space on CIFAR-10, single path; its own supernet recipe was not published.

    AdamW, since SGD's first steps leap on uniform paths and the ranking suffers to the end (BENCHMARKS.md).
    """
    train = Train(epochs=120, batch=256, optimizer="adamw", lr=3e-3, weight_decay=0.05)
    return _cifar10("nasbench-macro", train, Train(epochs=50, batch=256, lr=0.1))


def spos_cifar10() -> SupernetRun:
    """The SPOS block on CIFAR-10, uniform single path (Guo et al., 2020)."""
    train = Train(epochs=300, batch=256, lr=0.4, schedule="linear", weight_decay=4e-5, label_smoothing=0.1)
    return _cifar10("shufflenet-small", train, Train(epochs=300, batch=256, lr=0.1, label_smoothing=0.1))


def nasbench201_cifar10() -> SupernetRun:
    """NAS-Bench-201 on CIFAR-10; winners are retrained by the benchmark's recipe (Dong & Yang, 2020, Table 1)."""
    train = Train(epochs=250, batch=256, lr=0.1, clip=5.0)
    return _cifar10("nasbench201", train, Train(epochs=200, batch=256, lr=0.1, warmup_epochs=0.0))


def _imagenet_training(epochs: int) -> Train:
    """Batch 1,024, momentum without Nesterov, rate 0.5 falling linearly: supernets and final networks alike."""
    return Train(
        epochs=epochs, batch=1024, optimizer="momentum", lr=0.5, schedule="linear", weight_decay=4e-5,
        warmup_epochs=0.0, label_smoothing=0.1, device="cuda", bf16=True,
    )  # fmt: skip


def _imagenet(space: str, steps: int) -> SupernetRun:
    """The supernet recipe that SPOS and DetNAS share; 1,251 steps are an epoch."""
    held = 50_000 / 1_281_167
    return SupernetRun(
        space=space,
        data=Data("", stream=True, workers=8, size=224, augment=IMAGENET, calibration=25_600, validation=held),
        train=_imagenet_training(round(steps / 1251)),
        retrain=_imagenet_training(240),
        window=Window(low=290e6, high=360e6, bin=10e6),
    )


def spos_imagenet() -> SupernetRun:
    """SPOS on ImageNet (Guo et al., 2020): paths of 290 to 360 M MACs, 150,000 steps; give --data.source."""
    return _imagenet("spos", 150_000)


def detnas_imagenet() -> SupernetRun:
    """Pre-training of the DetNAS supernet (Chen et al., 2019): 300,000 steps; give --data.source."""
    return _imagenet("detnas-300m", 300_000)


def morphnet_digits() -> SupernetRun:
    """Widths of a plain network on the embedded digits, for MorphNet; sandwiches, so that its scores mean something."""
    return SupernetRun(
        space="plain-small-widths",
        data=Data("digits", size=16, augment=Augment(shift=1)),
        train=Train(epochs=10, batch=32, lr=0.05),
        retrain=Train(epochs=12, batch=32, lr=0.1),
        sampler="sandwich",
    )


def _residual(epochs: int, batch: int) -> Train:
    """How He et al. (2016) train ResNets, with a cosine instead of their steps of the rate."""
    return Train(epochs=epochs, batch=batch, optimizer="momentum", lr=0.1, weight_decay=1e-4, warmup_epochs=0.0)


def morphnet_cifar10() -> SupernetRun:
    """Widths of ResNet-20 on CIFAR-10, for MorphNet; retrained for the 64,000 steps of He et al. (2016, §4.2)."""
    recipe = _cifar10("resnet-20-widths", _residual(60, 128), _residual(182, 128))
    return replace(recipe, sampler="sandwich")


def morphnet_imagenet() -> SupernetRun:
    """Widths of ResNet-50 on ImageNet, for MorphNet, or --space mobilenetv2-widths; give --data.source."""
    held = 50_000 / 1_281_167
    return SupernetRun(
        space="resnet-50-widths",
        data=Data("", stream=True, workers=8, size=224, augment=IMAGENET, calibration=25_600, validation=held),
        train=replace(_residual(30, 256), device="cuda", bf16=True),
        retrain=replace(_residual(90, 256), device="cuda", bf16=True),
    )


RECIPES = {
    "quickstart": quickstart,
    "macro-digits": macro_digits,
    "spos-images": spos_images,
    "macro-cifar10": macro_cifar10,
    "spos-cifar10": spos_cifar10,
    "nasbench201-cifar10": nasbench201_cifar10,
    "spos-imagenet": spos_imagenet,
    "detnas-imagenet": detnas_imagenet,
    "morphnet-digits": morphnet_digits,
    "morphnet-cifar10": morphnet_cifar10,
    "morphnet-imagenet": morphnet_imagenet,
}
