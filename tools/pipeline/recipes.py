"""Recipes: functions that return a complete configuration. No torch here, so that `--help` is instant."""

from collections.abc import Callable
from dataclasses import replace

from detection.config import DetectionAugment, DetectionData
from supernet.config import Augment, Data, Train, Window
from supernet_tools.pipeline.config import DetectorRun, Recipe, SupernetRun

CIFAR = Augment(shift=4, flip=True)
IMAGENET = Augment(scale=0.08, flip=True, color_jitter=0.4)


def quickstart() -> SupernetRun:
    """ShuffleNet choice blocks on the embedded digits."""
    return SupernetRun(
        space="shufflenet-small",
        data=Data("digits", size=16, augment=Augment(shift=1)),
        train=Train(epochs=50, batch=32, lr=0.2),
        retrain=Train(epochs=6, batch=32, lr=0.1),
    )


def demo() -> SupernetRun:
    """The space of NAS-Bench-Macro, narrow, on the embedded digits at their own size; trainings take a second.

    Its architectures differ: MACs span a factor of 24, and of the 106 networks below 33,000 MACs, a tenth has a
    validation accuracy below 0.57 after three epochs and a tenth above 0.89 (40 of them, mean of three trainings).
    Two thirds of the images are held out, so that such differences can be seen.
    """
    return SupernetRun(
        space="nasbench-macro",
        space_settings=("widths=[8, 16, 32]", "stem=4", "head=64"),
        data=Data("digits", size=8, calibration=256, validation=0.4, test=0.4),
        train=Train(epochs=30, batch=32, optimizer="nmuon", lr=0.02, weight_decay=5e-4),
        retrain=Train(epochs=3, batch=32, optimizer="nmuon", lr=0.02, warmup_epochs=0.5),
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

    AdamW, since SGD's first steps leap on uniform paths and the ranking suffers to the end (BENCHMARKS.md). Images are
    only flipped while weights are shared (docs/recipes.md).
    """
    train = Train(epochs=120, batch=256, optimizer="adamw", lr=3e-3, weight_decay=0.05)
    recipe = _cifar10("nasbench-macro", train, Train(epochs=50, batch=256, lr=0.1))
    return replace(recipe, shared_augment=0.0)


def spos_cifar10() -> SupernetRun:
    """The SPOS block on CIFAR-10, uniform single path (Guo et al., 2020)."""
    train = Train(epochs=300, batch=256, lr=0.4, schedule="linear", weight_decay=4e-5, label_smoothing=0.1)
    return _cifar10("shufflenet-small", train, Train(epochs=300, batch=256, lr=0.1, label_smoothing=0.1))


def nasbench201_cifar10() -> SupernetRun:
    """NAS-Bench-201 on CIFAR-10; winners are retrained by the benchmark's recipe (Dong & Yang, 2020, Table 1).

    The supernet is trained with Muon, weighted paths and images that are only flipped; the released searches use SGD,
    uniform paths and shifted images, with which a short training hardly ranks (docs/recipes.md).
    """
    train = Train(epochs=250, batch=256, optimizer="nmuon", lr=0.01)
    recipe = _cifar10("nasbench201", train, Train(epochs=200, batch=256, lr=0.1, warmup_epochs=0.0))
    return replace(recipe, sampler="weighted", shared_augment=0.0)


def _imagenet_training(epochs: int) -> Train:
    """Batch 1,024, momentum without Nesterov, rate 0.5 falling linearly: supernets and final networks alike."""
    return Train(
        epochs=epochs,
        batch=1024,
        optimizer="momentum",
        lr=0.5,
        schedule="linear",
        weight_decay=4e-5,
        warmup_epochs=0.0,
        label_smoothing=0.1,
        device="cuda",
        bf16=True,
    )


def _imagenet(space: str, steps: int) -> SupernetRun:
    """The supernet recipe that SPOS and DetNAS share; 1,251 steps are an epoch."""
    held = 50_000 / 1_281_167
    return SupernetRun(
        space=space,
        data=Data("", stream=True, workers=8, size=224, augment=IMAGENET, calibration=25_600, validation=held),
        train=_imagenet_training(round(steps / 1251)),
        retrain=_imagenet_training(240),
        window=Window(low=290e6, high=360e6, bin=10e6),
        alike=False,
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
    return replace(recipe, sampler="sandwich", train=replace(recipe.train, distill=True))


def morphnet_imagenet() -> SupernetRun:
    """Widths of ResNet-50 on ImageNet, for MorphNet, or --space mobilenetv2-widths; give --data.source."""
    held = 50_000 / 1_281_167
    return SupernetRun(
        space="resnet-50-widths",
        data=Data("", stream=True, workers=8, size=224, augment=IMAGENET, calibration=25_600, validation=held),
        train=replace(_residual(30, 256), device="cuda", bf16=True),
        retrain=replace(_residual(90, 256), device="cuda", bf16=True),
    )


CELLS = (
    "blocks=3",
    "filters=16",
    'ops=["identity", "sep3", "sep5", "max3", "avg3"]',
    'combiners=["add"]',
    "chosen=false",
)
"""Settings of a cell space that a supernet trained for minutes can cover: 8.1e13 architectures instead of 1e36."""


def nasnet_digits() -> SupernetRun:
    """Two small cells (NASNet) on the embedded digits at their own 8×8 pixels."""
    adamw = Train(epochs=60, batch=32, optimizer="adamw", lr=3e-3, weight_decay=0.05)
    return SupernetRun(
        space="nasnet-small",
        space_settings=CELLS,
        data=Data("digits", size=8),
        train=adamw,
        retrain=replace(adamw, epochs=10),
    )


def nasnet_cifar10() -> SupernetRun:
    """Two cells (NASNet) on CIFAR-10, reduced to three blocks and five operations; retrained as NASNet-A is (§4.1).

    That is with an auxiliary head, drop path to 0.6 and cutout, by momentum without Nesterov.
    """
    train = Train(epochs=60, batch=128, optimizer="adamw", lr=3e-3, weight_decay=0.05)
    retrain = Train(epochs=600, batch=32, optimizer="momentum", lr=0.025, clip=5.0, warmup_epochs=0.0)
    recipe = _cifar10("nasnet-cifar", train, retrain)
    return replace(
        recipe, space_settings=(*CELLS, "repeats=2"), retrain_settings=("auxiliary=true",), retrain_cutout=0.5
    )


# -- detectors --------------------------------------------------------------------------------------------------------

SMALL_STEPS = Train(batch=4, optimizer="adamw", lr=3e-3, weight_decay=0.05, clip=5.0)
"""What small sets take: with 16 images a step and as many passes the same detector reached a third of the AP50."""

SMALL = ("widths=[32, 64, 128]", "stem=8")  # of shufflenet-small: full resolution at the stem is dear at 96 pixels


def detnas_digits_pretrain() -> SupernetRun:
    """Pre-training of detnas-digits: single digits on photographs, cut from the images of its splits."""
    return SupernetRun(
        space="shufflenet-small",
        space_settings=SMALL,
        data=Data("detection.data.crops:digit_crops", size=32, augment=Augment(shift=3)),
        train=replace(SMALL_STEPS, epochs=8, batch=8),
        retrain=replace(SMALL_STEPS, epochs=6, batch=8),
        lead="shuffle3",
        lead_epochs=3.0,
        shared_augment=0.0,
    )


def detnas_digits() -> DetectorRun:
    """DetNAS in small: RetinaNet on digits on photographs; --pretrained a run of detnas-digits-pretrain."""
    return DetectorRun(
        backbone="shufflenet-small",
        backbone_settings=SMALL,
        head_width=64,
        head_convs=2,
        settings=("levels=2", "retinanet.anchor_scale=3"),
        data=DetectionData("digits", size=96, workers=1),
        train=replace(SMALL_STEPS, epochs=5),
        retrain=replace(SMALL_STEPS, epochs=6),
        start="classification",
    )


def detnas_bccd() -> DetectorRun:
    """RetinaNet on a few hundred photographs (BCCD's blood cells): give --data.source, annotations in COCO's layout."""
    varied = DetectionAugment(flip=True, scale=(0.8, 1.25))
    data = DetectionData("", size=120, longest=160, workers=1, augment=varied)
    return replace(
        detnas_digits(),
        data=data,
        train=replace(SMALL_STEPS, epochs=40),
        retrain=replace(SMALL_STEPS, epochs=16),
        lead="shuffle3",
        lead_epochs=8.0,
        start="scratch",
        scoring_batch=8,
    )


def _detnas(detector: str, lr: float, data: DetectionData, images: int, steps: int) -> DetectorRun:
    """Fine-tuning of DetNAS (Chen et al., 2019): 16 images a step, batch norm trained everywhere."""
    train = Train(
        epochs=round(steps * 16 / images),
        batch=16,
        optimizer="momentum",
        lr=lr,
        weight_decay=1e-4,
        warmup_epochs=500 * 16 / images,
        schedule="step",
        device="cuda",
        sync_bn=True,
    )
    return DetectorRun(
        detector=detector,
        backbone="detnas-300m",
        data=data,
        train=train,
        retrain=train,
        start="classification",
        scoring_batch=8,
    )


def _coco() -> DetectionData:
    """train2017, 5,000 images of which score architectures; give --data.source, --data.images and the test's."""
    return DetectionData(
        "",
        size=800,
        longest=1333,
        validation=5000 / 118_287,
        calibration=4000,
        memory=0,
        workers=8,
        augment=DetectionAugment(flip=True),
    )


def _voc() -> DetectionData:
    """VOC 2007 and 2012 trainval with 2007's test, whose annotations must be in COCO's layout."""
    return replace(_coco(), size=600, longest=1000, validation=0.2)


def detnas_coco_fpn() -> DetectorRun:
    """DetNAS on COCO, two stages: 90,000 steps; --pretrained a run of detnas-imagenet, --data.source and so on."""
    return _detnas("faster-rcnn-fpn", 0.02, _coco(), 113_287, 90_000)


def detnas_coco_retinanet() -> DetectorRun:
    """DetNAS on COCO, RetinaNet: as detnas-coco-fpn at half the rate."""
    return _detnas("retinanet", 0.01, _coco(), 113_287, 90_000)


def detnas_voc_fpn() -> DetectorRun:
    """DetNAS on VOC, two stages, annotations in COCO's layout; the number of steps is ours, 18 passes."""
    return _detnas("faster-rcnn-fpn", 0.02, _voc(), 13_241, 15_000)


def detnas_voc_retinanet() -> DetectorRun:
    """DetNAS on VOC, RetinaNet: as detnas-voc-fpn at half the rate."""
    return _detnas("retinanet", 0.01, _voc(), 13_241, 15_000)


PLAIN = ", ".join(f'"stage{s}.block{b}.op": "shuffle3"' for s, n in ((1, 2), (2, 4), (3, 2)) for b in range(n))


def nasfpn_digits() -> DetectorRun:
    """NAS-FPN in small: the pyramid alone on a fixed ShuffleNet; --pretrained a run of detnas-digits-pretrain."""
    return replace(
        detnas_digits(),
        backbone_arch=f"{{{PLAIN}}}",
        neck="nasfpn",
        head_width=48,
        head_convs=1,
        settings=("levels=2", "anchor_scale=3", "repeats=2", "cells=6"),
        data=replace(detnas_digits().data, compose=(800, 100, 200)),
    )


def nasfpn_bccd() -> DetectorRun:
    """NAS-FPN on a few hundred photographs, the pyramid alone on a fixed ShuffleNet: give --data.source."""
    return replace(
        detnas_bccd(),
        backbone_arch=f"{{{PLAIN}}}",
        neck="nasfpn",
        head_width=48,
        head_convs=1,
        settings=("levels=2", "pooled_levels=3", "anchor_scale=3", "repeats=2", "cells=7"),
        train=replace(SMALL_STEPS, epochs=30),
        retrain=replace(SMALL_STEPS, epochs=10),
        lead="",
        lead_epochs=0.0,
    )


def nasfpn_coco() -> DetectorRun:
    """NAS-FPN's proxy on COCO (Ghiasi et al., 2019): ResNet-10, 512 pixels, three repeats, 10 epochs."""
    train = Train(
        epochs=10,
        batch=64,
        optimizer="momentum",
        lr=0.08,
        weight_decay=1e-4,
        warmup_epochs=0.3,
        schedule="step",
        drops=(0.8,),
        device="cuda",
        sync_bn=True,
    )
    data = replace(
        _coco(),
        longest=0,
        size=512,
        min_side=32,
        validation=7392 / 118_287,
        augment=DetectionAugment(flip=True, scale=(0.8, 1.2)),
    )
    return DetectorRun(
        backbone="detection.resnet:resnet_10",
        neck="nasfpn",
        settings=("repeats=3", "focal_gamma=1.5", "huber=0.1", "box_weight=12.5"),
        data=data,
        train=train,
        retrain=train,
    )


def nasfpn_coco_final() -> DetectorRun:
    """NAS-FPN 7@256 on ResNet-50, 640 pixels, 50 epochs: for retrain.py --arch; --pretrained torchvision's file."""
    proxy = nasfpn_coco()
    return replace(
        proxy,
        backbone="detection.resnet:resnet_50",
        settings=("repeats=7", "focal_gamma=1.5", "huber=0.1", "box_weight=12.5"),
        start="classification",
        data=replace(proxy.data, size=640, validation=0.001, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        train=replace(proxy.train, epochs=0),
        retrain=replace(proxy.train, epochs=50, drops=(0.6, 0.8)),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "quickstart": quickstart,
    "nasnet-digits": nasnet_digits,
    "nasnet-cifar10": nasnet_cifar10,
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
    "detnas-digits-pretrain": detnas_digits_pretrain,
    "detnas-digits": detnas_digits,
    "detnas-bccd": detnas_bccd,
    "detnas-coco-fpn": detnas_coco_fpn,
    "detnas-coco-retinanet": detnas_coco_retinanet,
    "detnas-voc-fpn": detnas_voc_fpn,
    "detnas-voc-retinanet": detnas_voc_retinanet,
    "nasfpn-digits": nasfpn_digits,
    "nasfpn-bccd": nasfpn_bccd,
    "nasfpn-coco": nasfpn_coco,
    "nasfpn-coco-final": nasfpn_coco_final,
}
