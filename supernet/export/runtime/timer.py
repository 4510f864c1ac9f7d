"""Times exports in turn, run as a script by path: `python -I -B timer.py ROUNDS SECONDS THREADS FOLDER…`.

What is timed is one forward pass of one image that is already prepared: of `load()` from model.py, with a detector's
non-maximum suppression, and in ONNX Runtime of detector.onnx or model.onnx where one is there. All artefacts take their
turn in every round, so that a machine that becomes slower does not favour the first. A line of JSON on standard output
has, per folder, the median of all passes in milliseconds.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

BLOCKED = ("supernet", "searchers", "detection", "timm", "einops", "safetensors")


class Block:
    """An import finder that hides the packages an export must not need, even where they are installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Refuses blocked packages and leaves all others to the next finder."""
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"exported code must not import {name!r}", name=name)


def passes_of(folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Returns a forward pass of each artefact of an export, by the name of what runs it."""
    preprocess = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    size = preprocess["input_size"]
    longer = preprocess.get("longest", 0) or size  # of a detector
    images = torch.rand(1, len(preprocess["mean"]), size, longer, generator=torch.Generator().manual_seed(0))
    spec = importlib.util.spec_from_file_location(f"model_{folder.name}", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = model
    spec.loader.exec_module(model)
    network = model.load()
    passes: dict[str, Callable[[], object]] = {"torch": lambda: network(images)}
    graphs = [folder / name for name in ("detector.onnx", "model.onnx") if (folder / name).exists()]
    if graphs:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(graphs[0]), options, providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: images.numpy()}
        passes["onnxruntime"] = lambda: session.run(None, inputs)
    return passes


def timed(run: Callable[[], object], seconds: float) -> list[float]:
    """Returns the milliseconds of each pass, timed for `seconds` and at least three passes, after one to warm up."""
    run()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        samples.append((time.perf_counter() - began) * 1e3)
    return samples


def main(rounds: int, seconds: float, threads: int, folders: list[str]) -> None:
    """Prints the medians."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        passes = {(folder, name): run for folder in folders for name, run in passes_of(Path(folder), threads).items()}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in passes}
        for _ in range(rounds):
            for key, run in passes.items():
                times[key] += timed(run, seconds / rounds)
    medians: dict[str, dict[str, float]] = {folder: {} for folder in folders}
    for (folder, name), samples in times.items():
        medians[folder][name] = statistics.median(samples)
    print(json.dumps(medians))


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())  # type: ignore[arg-type]
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
