"""`pyquant profile`: time per step, and the kernel chosen for each."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options


@click.command("profile", short_help="Show the time and the kernel of each step.")
@options.tune(0)
@options.run_of_file
def command(
    file: Path,
    batch: int,
    input_shape: tuple[int, int, int] | None,
    tune: float,
    threads: int | None,
    precision: str,
    memory_budget: int,
    as_json: bool,
) -> None:
    """Show how long each step of a run takes, and which kernel does it; with --tune, how long other kernels take.

    GMAC/s are the multiply-accumulates of the dense layer. The peak is that of fp32 multiply-adds in registers, for
    kernels in integers that of 8-bit products in the first-level cache. Kernels that save multiplications can exceed
    it.
    """
    from pyquant.bench import input_batches
    from pyquant.runtime import load

    model = load(file, threads=threads, precision=precision, memory_budget=memory_budget)
    (inputs,) = input_batches(model.file, batch, input_shape)
    measured = {layer["name"]: layer["ms"] for layer in model.tune(*inputs, seconds=tune)} if tune > 0 else {}
    result = model.profile(*inputs)
    for step in result["steps"]:
        step["candidates"] = {kernel: measured.get(step["name"], {}).get(kernel) for kernel in step["candidates"]}
    if as_json:
        console.print_json(result)
        return
    rows = [
        [
            step["name"],
            step["kernel"],
            f"{step['ms']:.3f}",
            f"{step['share']:.1%}",
            "" if step["gmacs"] is None else f"{step['gmacs']:.1f}",
            "" if step["of_peak"] is None else f"{step['of_peak']:.0%}",
        ]
        for step in result["steps"]
    ]
    console.print_table(["step", "kernel", "ms>", "share>", "GMAC/s>", "of peak>"], rows)
    peaks = f"{result['peak_gmacs']:.0f} GMAC/s"
    if precision == "fast":
        peaks += f" in fp32, {result['peak8_gmacs']:.0f} in 8 bits,"
    print(
        f"{sum(step['ms'] for step in result['steps']):.2f} ms in all; {model.isa}, peak {peaks} "
        f"on {model.threads} thread{'s' if model.threads > 1 else ''}"
    )
    if measured:
        _show_candidates(measured)


def _show_candidates(measured: dict[str, dict[str, float]]) -> None:
    """Print what each kernel took that a layer could have."""
    kernels = list(dict.fromkeys(kernel for times in measured.values() for kernel in times))
    rows = [
        [layer, *(f"{times[kernel]:.3f}" if kernel in times else "" for kernel in kernels)]
        for layer, times in measured.items()
    ]
    console.print_table(["candidates, ms", *(f"{kernel}>" for kernel in kernels)], rows)
