"""What the machine is called, for people to read and for results to be told apart."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def processor_name() -> str:
    """Return the name of the processor's model."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        if name := next((value.strip() for key, _, value in lines if key.strip() == "model name"), ""):
            return name
    return platform.processor() or platform.machine()


def machine_name() -> str:
    """Return the processor, the number of its logical processors, and the system."""
    return f"{processor_name()}, {os.cpu_count()} logical processors, {platform.system()} {platform.machine()}"
