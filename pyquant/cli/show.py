"""Results that several commands print, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyquant import console


def show_outcome(outcome: Mapping[str, Any], as_json: bool) -> None:
    """Print what `compress` has made, or planned, given as its JSON values."""
    if as_json:
        console.print_json(outcome)
    elif "files" in outcome:
        _show_files(outcome["files"])
    elif "plans" in outcome:
        _show_plans(outcome["plans"])
    elif "predicted_output_error" in outcome and "file" not in outcome:
        show_plan(outcome, as_json)
    else:
        show_report(outcome, as_json)
        _show_trials(outcome)


def show_report(report: Mapping[str, Any], as_json: bool) -> None:
    """Print the report of `compress` or `import`, given as its JSON values."""
    if as_json:
        console.print_json(report)
        return
    _show_layers(report["layers"])
    print(
        f"{report['file']}: {console.bytes_text(report['bytes'])}, dense {console.bytes_text(report['dense_bytes'])}, "
        f"{report['ratio']:.1f} times smaller; {report['bit_operations']:.3g} bit operations per input"
    )
    print(f"self-check passed: at most {report['self_check']['max_relative_error']:.1e} of the largest output apart")
    if "output_error" in report:
        print(f"relative squared error of the outputs {report['output_error']:.4f}, on calibration inputs")
    if "accuracy" in report:
        _show_accuracy(report["accuracy"])


def show_plan(plan: Mapping[str, Any], as_json: bool) -> None:
    """Print the plan of `compress --dry-run`, given as its JSON values; errors are those of the network's outputs."""
    if as_json:
        console.print_json(plan)
        return
    _show_layers([{**layer, "relative_output_error": layer["predicted_error"]} for layer in plan["layers"]])
    print(
        f"predicted: at most {console.bytes_text(plan['bytes'])} ({plan['bytes']:,} bytes), dense "
        f"{console.bytes_text(plan['dense_bytes'])}, {plan['ratio']:.1f} times smaller; "
        f"relative squared error of the outputs {plan['predicted_output_error']:.3f}; "
        f"{plan['bit_operations']:.3g} bit operations per input"
    )


def show_inspection(inspection: Mapping[str, Any]) -> None:
    """Print what `inspect` found, given as its JSON values."""
    _show_layers(inspection["layers"])
    features = ", ".join(inspection["features"]) or "none"
    print(f"format {inspection['format_version']}, features: {features}")
    sizes = ", ".join("any" if size is None else str(size) for size in inspection["input"]["shape"])
    print(f"input '{inspection['input']['name']}': float32 [{sizes}]; {len(inspection['classes'])} class names")
    print(f"activation ranges: {'yes' if inspection['activation_ranges'] else 'none'}")
    print(f"{console.bytes_text(inspection['bytes'])}, {inspection['ratio']:.1f} times smaller than dense")
    print(f"{inspection['bit_operations']:.3g} bit operations per input")


def show_bench(result: Mapping[str, Any]) -> None:
    """Print what `bench` measured, given as its JSON values."""
    ratios = result["ratios"]
    rows = [
        [
            row["engine"],
            row["precision"],
            console.bytes_text(row["file_bytes"]),
            f"{row['median_ms']:.2f}",
            f"{row['p10_ms']:.2f}-{row['p90_ms']:.2f}",
            f"{row['load_ms']:.0f}",
            console.bytes_text(row["peak_rss_bytes"]),
            f"{ratios[row['engine']]:.2f}" if row["engine"] in ratios else "",
        ]
        for row in result["rows"]
    ]
    columns = ["engine", "precision", "file>", "ms>", "p10-p90>", "load ms>", "memory>", "ratio>"]
    console.print_table(columns, rows)
    threads, isa = result["threads"], result["isa"]
    print(f"batch {result['batch']}, {threads} thread{'s' if threads > 1 else ''}, {isa}; ratio: pyquant / engine")


def _block(layer: Mapping[str, Any]) -> str:
    if layer["kept"] is not None:
        return str(layer["setting"]).rpartition(";bits")[0]
    if layer["block"] is None:
        return "dense" if layer["levels"] is None else "grid"
    return "x".join(str(size) for size in layer["block"])


def _centroids(layer: Mapping[str, Any]) -> str:
    """Return how many numbers a code can be: of centroids, or of levels of a grid."""
    if layer["centroids"] is None:
        return str(layer["levels"] or "")
    return str(layer["centroids"]) if layer["codebooks"] == 1 else f"{layer['codebooks']}x{layer['centroids']}"


def _show_files(files: list[Mapping[str, Any]]) -> None:
    with_accuracy = "accuracy" in files[0]
    rows = [
        [
            made["file"],
            f"{made['bytes']:,}",
            f"{made['ratio']:.1f}",
            _error(made.get("predicted_output_error")),
            _error(made.get("output_error")),
            *([f"{made['accuracy']['top1_after']:.2f}", f"{made['accuracy']['drop']:.2f}"] if with_accuracy else []),
        ]
        for made in files
    ]
    accuracy = ["top-1 %>", "drop>"] if with_accuracy else []
    console.print_table(["file", "bytes>", "ratio>", "predicted>", "measured>", *accuracy], rows)
    print("predicted and measured: squared error of the outputs, relative to those of the dense network")
    worst = max(made["self_check"]["max_relative_error"] for made in files)
    print(f"self-checks passed: at most {worst:.1e} of the largest output apart")
    if with_accuracy:
        accuracy_of = files[0]["accuracy"]
        print(f"the dense network: {accuracy_of['top1_before']:.2f} % top-1 on {accuracy_of['pictures']:,} pictures")


def _show_plans(plans: list[Mapping[str, Any]]) -> None:
    rows = [[f"{plan['bytes']:,}", f"{plan['ratio']:.1f}", _error(plan["predicted_output_error"])] for plan in plans]
    console.print_table(["bytes>", "ratio>", "predicted>"], rows)
    print("predicted: squared error of the outputs, relative to the dense network's; --json has each layer's codec")


def _show_accuracy(accuracy: Mapping[str, Any]) -> None:
    direction = "down" if accuracy["drop"] >= 0 else "up"
    print(
        f"top-1 {accuracy['top1_before']:.2f} % before, {accuracy['top1_after']:.2f} % after: "
        f"{abs(accuracy['drop']):.2f} points {direction} (standard error {accuracy['standard_error']:.2f}) on the same "
        f"{accuracy['pictures']:,} pictures; top-5 {accuracy['top5_before']:.2f} % and {accuracy['top5_after']:.2f} %"
    )


def _show_trials(outcome: Mapping[str, Any]) -> None:
    if "trials" not in outcome:
        return
    rows = [
        [
            f"{tried['bytes']:,}",
            f"{tried['top1']:.2f}",
            f"{tried['drop']:.2f}",
            f"{tried['standard_error']:.2f}",
            "holds" if tried["holds"] else "too far",
        ]
        for tried in outcome["trials"]
    ]
    console.print_table(["bytes>", "top-1 %>", "drop>", "standard error>", "result"], rows)
    print(f"the smallest file of these that falls by at most {outcome['max_drop']:g} points was kept")
    if outcome["smallest_possible"]:
        print("it is the smallest that is possible for this network: a larger drop would give no smaller one")


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.4f}"


def _show_layers(layers: list[Mapping[str, Any]]) -> None:
    with_errors = any(layer["relative_output_error"] is not None for layer in layers)
    rows = [
        [
            layer["name"],
            layer["op"],
            _block(layer),
            _centroids(layer),
            f"{layer['bits_per_weight']:.2f}",
            f"{layer['bytes']:,}",
            *(["" if (e := layer["relative_output_error"]) is None else f"{e:.4f}"] if with_errors else []),
        ]
        for layer in layers
    ]
    columns = ["layer", "op", "block", "centroids>", "bits/weight>", "bytes>", *(["error>"] if with_errors else [])]
    console.print_table(columns, rows)
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        if layer["reason"] is not None:
            by_reason.setdefault(layer["reason"], []).append(layer["name"])
    for reason, names in by_reason.items():
        print(f"left dense, {reason}: {', '.join(names)}")
