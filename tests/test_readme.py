"""The README's examples run as they stand."""

import re
import shlex
from pathlib import Path

import click
import pytest
from conftest import REPOSITORY

from pyquant.cli import commands

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == "pyquant"]


def test_first_block_is_python() -> None:
    assert README.index("```python") == README.index("```")


def test_python_examples_run(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks in order, in a folder with the module, pictures and files that they name."""
    pytest.importorskip("torch", reason="the examples compress a network")
    (tmp_path / "my_project.py").write_text("from tiny_networks import residual\n\nnetwork = residual()\n")
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "cat.jpg").write_bytes((pictures / "cat" / "0.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_project", raising=False)
    for number, code in enumerate(blocks("python")):
        exec(compile(code, f"README.md, Python block {number + 1}", "exec"), {"__name__": "readme"})
    assert "probability" in capsys.readouterr().out
    assert (tmp_path / "network.pqmodel").exists()


@pytest.mark.parametrize("arguments", shell_commands(), ids=" ".join)
def test_shell_examples_have_the_options_they_use(arguments: list[str]) -> None:
    name, *rest = arguments
    command = commands.get_command(click.Context(commands), name)
    assert command is not None, f"no command '{name}'"
    command.make_context(name, rest)


def test_every_command_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)[^|]*\|", README, re.MULTILINE)
    assert set(commands.list_commands(click.Context(commands))) <= set(rows)
