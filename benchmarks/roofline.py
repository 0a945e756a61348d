"""Where the time of a network goes, layer shape by layer shape: the machine's peak, ours, and OpenVINO's.

    python benchmarks/roofline.py FILE.pqmodel PICTURES [--threads 1]

FILE has activation ranges (`pyquant calibrate`); PICTURES are those on which the int8 peer is calibrated. Both engines
run the whole network, in turns; times are medians of single layers within it, as `Model.profile` and OpenVINO's own
performance counters give them. Prints a table in Markdown.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import click
import openvino

from pyquant import _core, console
from pyquant.bench import input_batches, write_files
from pyquant.engines import Arrays
from pyquant.file import ModelFile, read_model
from pyquant.graph import Graph
from pyquant.runtime import Model

ROUNDS = 25
WARM_UP_ROUNDS = 3

Times = dict[str, float]  # ms by layer


def time_layers(runs: Mapping[str, Callable[[], Times]]) -> dict[str, Times]:
    """Return the median of each layer, of each of several runs that take turns."""
    times: dict[str, dict[str, list[float]]] = {run: defaultdict(list) for run in runs}
    for turn in console.track(range(ROUNDS + WARM_UP_ROUNDS), "measuring"):
        for name, run in runs.items():
            for layer, ms in run().items():
                if turn >= WARM_UP_ROUNDS:
                    times[name][layer].append(ms)
    return {run: {layer: median(ms) for layer, ms in layers.items()} for run, layers in times.items()}


def ours(model: Model, inputs: Arrays) -> Callable[[], Times]:
    """Return what times the layers of a run of ours."""
    return lambda: {step["name"]: step["ms"] for step in model.profile(*inputs)["steps"]}


def openvino_runs(path: Path, inputs: Arrays, threads: int) -> Callable[[], Times]:
    """Return what times the layers of a run of OpenVINO's."""
    config = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    config |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()

    def run() -> Times:
        request.infer(list(inputs), share_inputs=True, share_outputs=True)
        times: Times = defaultdict(float)
        for node in request.get_profiling_info():  # the name of the layer, and behind a slash what became of it
            times[node.node_name.partition("/")[0]] += node.real_time.total_seconds() * 1000
        return times

    return run


def shapes_of(graph: Graph, inputs: Arrays) -> dict[str, str]:
    """Return the shape of each layer that has a weight, in words: the layers of one shape are one row."""
    inferred = graph.infer_shapes([array.shape for array in inputs])
    rows = {}
    for node, weight in graph.weighted():
        source = inferred[node.inputs[0]]
        outputs, _, *kernel = weight.shape
        sides = "x".join(map(str, kernel)) or "linear"
        stride = node.attributes.get("stride", (1,))[0]
        plane = f" of {'x'.join(map(str, source[2:]))}" if kernel else ""
        rows[node.name] = f"{source[1]} to {outputs}, {sides}{f' / {stride}' if stride > 1 else ''}{plane}"
    return rows


def measure(file: ModelFile, pictures: Path, threads: int) -> str:
    """Return the table."""
    network = file.network
    batches = input_batches(file, 1, None, pictures)
    models = {precision: Model(file, threads=threads, precision=precision) for precision in ("exact", "fast")}
    with tempfile.TemporaryDirectory(prefix="pyquant-roofline-") as folder:
        files = write_files(network, batches, ("onnx", "onnx-int8"), Path(folder))
        runs = {precision: ours(model, batches[0]) for precision, model in models.items()}
        runs |= {kind: openvino_runs(path, batches[0], threads) for kind, path in files.items()}
        times = time_layers(runs)
    kernels = {
        precision: {step["name"]: step["kernel"] for step in model.profile(*batches[0])["steps"]}
        for precision, model in models.items()
    }
    isa = models["exact"].isa
    peaks = {"exact": _core.peak_gmacs(isa) * threads, "fast": _core.peak8_gmacs(isa) * threads}
    macs = network.graph.macs([array.shape for array in batches[0]])
    rows = defaultdict(list)
    for layer, shape in shapes_of(network.graph, batches[0]).items():
        rows[shape].append(layer)
    lines = [
        f"{isa}, {threads} thread{'s' if threads > 1 else ''}: {peaks['exact']:.0f} GMAC/s in fp32, "
        f"{peaks['fast']:.0f} in 8 bits",
        "",
        "| layers | | at the peak | `exact` | OpenVINO | at the 8-bit peak | `fast` | OpenVINO, int8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sums = [0.0] * 6
    for shape, layers in rows.items():
        cells = []
        for precision, peer in (("exact", "onnx"), ("fast", "onnx-int8")):
            names = dict.fromkeys(kernels[precision][layer] for layer in layers)
            ideal = sum(macs[layer] for layer in layers) / peaks[precision] / 1e6
            cells += [(ideal, ""), (sum(times[precision][layer] for layer in layers), f" {', '.join(names)}")]
            cells.append((sum(times[peer][layer] for layer in layers), ""))
        sums = [total + ms for total, (ms, _) in zip(sums, cells, strict=True)]
        lines.append(f"| {shape} | {len(layers)} | {' | '.join(f'{ms:.2f}{name}' for ms, name in cells)} |")
    lines.append(f"| all of these | | {' | '.join(f'{total:.2f}' for total in sums)} |")
    rest = {run: sum(layers.values()) for run, layers in times.items()}
    others = [rest[run] - sums[i] for run, i in (("exact", 1), ("onnx", 2), ("fast", 4), ("onnx-int8", 5))]
    lines.append("| the rest | | | {:.2f} | {:.2f} | | {:.2f} | {:.2f} |".format(*others))
    return "\n".join(lines)


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.argument("pictures", type=click.Path(exists=True, path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(file: Path, pictures: Path, threads: int) -> None:
    """Measure, and print the table."""
    console.enable()
    click.echo(measure(read_model(file), pictures, threads))


if __name__ == "__main__":
    main()
