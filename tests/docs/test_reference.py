"""The reference says what the code says, the links lead somewhere, and what is public is documented."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import dask_fleet
from dask_fleet.server.documents import JobDocument
from dask_fleet.server.routes_jobs import _FILTERS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md"))
    if ".venv" not in page.parts
)


def make_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "cli.md", "errors.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    made = make_reference().PAGES[name]()
    kept = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert kept == made, "run: python scripts/make_reference.py"


def test_every_route_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    sources = sorted((ROOT / "src" / "dask_fleet" / "server").glob("routes_*.py"))
    found = [path for source in sources for path in re.findall(r'Route\("([^"]+)"', source.read_text(encoding="utf-8"))]
    assert len(found) >= 22
    documented = set(re.findall(r"`(?:GET |POST |PUT |PATCH |DELETE )?(/[^`?\s]*)", page))
    missing = [path for path in found if path not in documented]
    assert not missing, f"not in docs/reference/http-api.md: {missing}"


def test_every_command_is_shown_in_use() -> None:
    """A reference says what there is; a page that a person reads to do something must show each command once."""
    pages = [page for page in PAGES if "reference" not in page.parts and page.name != "CHANGELOG.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    commands = re.findall(r"^## `dask-fleet ([a-z]+(?: [a-z]+)?)", reference, re.MULTILINE)
    assert len(commands) > 20
    missing = [command for command in commands if not re.search(rf"(dask-fleet |dask fleet |`){command}\b", text)]
    assert not missing, f"no page shows how to use: {missing}"


def test_every_member_and_filter_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    wanted = {field.name for field in msgspec.structs.fields(JobDocument)} | _FILTERS
    missing = sorted(name for name in wanted if f"`{name}`" not in page)
    assert not missing, f"not in docs/reference/http-api.md: {missing}"


def test_every_public_name_is_documented() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in dask_fleet.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", text)]
    assert not missing, f"public names that no page mentions: {missing}"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [spec for specs in project["optional-dependencies"].values() for spec in specs]
    names = {re.split(r"[\[<>=]", spec)[0] for spec in (*project["dependencies"], *extras)} - {"dask-fleet"}
    page = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    documented = set(re.findall(r"`([A-Za-z0-9_-]+)`", rows))
    assert names <= documented, f"no reason given for {sorted(names - documented)}"
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    unpinned = [name for name in names if f"\n{name.lower().replace('_', '-')}==" not in pinned]
    assert not unpinned, f"run `make pins`: {unpinned}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    broken = [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]
    assert not broken, f"{page.relative_to(ROOT)}: {broken}"
