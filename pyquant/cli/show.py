"""Results that several commands print, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyquant import console


def show_report(report: Mapping[str, Any], as_json: bool) -> None:
    """Print the report of `compress` or `import`, given as its JSON values."""
    if as_json:
        console.print_json(report)
        return
    _show_layers(report["layers"])
    print(
        f"{report['file']}: {console.bytes_text(report['bytes'])}, dense {console.bytes_text(report['dense_bytes'])}, "
        f"{report['ratio']:.1f} times smaller"
    )
    print(f"self-check passed: at most {report['self_check']['max_relative_error']:.1e} of the largest output apart")


def show_plan(plan: Mapping[str, Any], as_json: bool) -> None:
    """Print the plan of `compress --dry-run`, given as its JSON values; errors are those of the network's outputs."""
    if as_json:
        console.print_json(plan)
        return
    _show_layers([{**layer, "relative_output_error": layer["predicted_error"]} for layer in plan["layers"]])
    print(
        f"predicted: {console.bytes_text(plan['bytes'])} ({plan['bytes']:,} bytes), dense "
        f"{console.bytes_text(plan['dense_bytes'])}, {plan['ratio']:.1f} times smaller; "
        f"relative squared error of the outputs {plan['predicted_output_error']:.3f}"
    )


def show_inspection(inspection: Mapping[str, Any]) -> None:
    """Print what `inspect` found, given as its JSON values."""
    _show_layers(inspection["layers"])
    features = ", ".join(inspection["features"]) or "none"
    print(f"format {inspection['format_version']}, features: {features}")
    sizes = ", ".join("any" if size is None else str(size) for size in inspection["input"]["shape"])
    print(f"input '{inspection['input']['name']}': float32 [{sizes}]; {len(inspection['classes'])} class names")
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


def _show_layers(layers: list[Mapping[str, Any]]) -> None:
    with_errors = any(layer["relative_output_error"] is not None for layer in layers)
    rows = [
        [
            layer["name"],
            layer["op"],
            "dense" if layer["block"] is None else "x".join(str(size) for size in layer["block"]),
            "" if layer["centroids"] is None else str(layer["centroids"]),
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
