"""Every configuration that a docstring, the README or a page shows is one."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from volctl import kinds
from volctl.backend import Setup
from volctl.config import BackendConfig, load, places

FENCED = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    \[\[backend\]\]\n(?:    .*\n)+", re.MULTILINE)
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
MODULES = sorted([*REPO.glob("volctl/**/*.py"), *REPO.glob("backends/*.py")])


def examples() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, text in enumerate(FENCED.findall(page.read_text(encoding="utf-8"))):
            yield f"{page.name}-{number}", text
    for module in MODULES:
        said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")), clean=False) or ""
        for number, text in enumerate(INDENTED.findall(said)):
            yield f"{module.relative_to(REPO)}-{number}", textwrap.dedent(text)


EXAMPLES = dict(examples())


def read(text: str, tmp_path: Path) -> tuple[BackendConfig, ...]:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load(places(str(path), str(tmp_path / "state"))).backends


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_configuration(name: str, tmp_path: Path) -> None:
    for backend in read(EXAMPLES[name].replace("libvirt-qemu", "root"), tmp_path):
        kinds.load(backend.kind)(Setup(backend.name, backend.options, "any database"))  # it checks its options


def test_each_backend_shows_one() -> None:
    shown = {name.partition("-")[0] for name in EXAMPLES}
    assert {"README.md", *(f"backends/{kind}.py" for kind in ("fake", "loop", "lvm", "qcow2"))} <= shown
