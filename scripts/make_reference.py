"""Write the parts of docs/reference/ that the code already says: settings, command line and errors.

    python scripts/make_reference.py

`tests/docs/test_reference.py` fails when they are out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import typer

import dask_fleet.config.settings as settings_module
from dask_fleet.config.durations import format_duration
from dask_fleet.config.parsers import public_name
from dask_fleet.config.settings import Settings
from dask_fleet.model.durations import format_bytes
from dask_fleet.model.errors import ConnectionFailed, FleetError, SetupError, WaitTimeout
from dask_fleet.model.failure import Cause

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
MADE = "<!-- Made by scripts/make_reference.py from the code; do not edit. -->"

SETTINGS_INTRO = """\
Each setting has one name everywhere: `orphan-timeout: 60s` in `fleet.yaml`, `FLEET_ORPHAN_TIMEOUT=60s` in the environment,
`--orphan-timeout 60s` as a flag of the commands that have it. A flag wins over a variable, a variable over the file, the
file over the default. Unknown names are errors. `dask-fleet config show` says what holds here and why."""

SETTINGS_OTHER = """\
Two variables name files and have no place in `fleet.yaml`: `FLEET_CONFIG` (read that file instead of `./fleet.yaml`) and
`FLEET_TOKEN_FILE` (read the token from that file). A token never stands in `fleet.yaml`: such files get shared.

Variables begin with `FLEET_`, not `DASK_`: Dask takes every such variable into its configuration, parts of which end up on
the command lines of other machines.
"""

CLI_INTRO = """\
`dask-fleet COMMAND`, or the same as `dask fleet COMMAND`. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 78
refused to listen there, 130 interrupted. `--json` prints JSON for programs; `dask-fleet --install-completion` completes
commands and flags in your shell.
"""

ERRORS_INTRO = """\
Errors of the API are problem documents (RFC 9457, `application/problem+json`) with `type`, `title`, `status`, `detail` and
a stable `code`, which is what programs test; `detail` is for people and may change. The SDK raises the class of the same
code, from `dask_fleet.model.errors`; all are `dask_fleet.FleetError`. With `retryable` ones the same request may succeed
later: the answer has `Retry-After`.
"""


def attribute_docs(module: Any, name: str) -> dict[str, str]:
    """Return the docstrings below the attributes of a class, by attribute."""
    tree = ast.parse(inspect.getsource(module))
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for attribute, text in zip(cls.body, cls.body[1:], strict=False):
        target = attribute.target if isinstance(attribute, ast.AnnAssign) else None
        if isinstance(attribute, ast.Assign):
            target = attribute.targets[0]
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[target.id] = " ".join(str(text.value.value).split())
    return found


def settings() -> str:
    """Return the page of settings."""
    docs = attribute_docs(settings_module, "Settings")
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        SETTINGS_INTRO,
        "",
        "| setting | default | what for |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{public_name(field.name)}` | {_default(field)} | {docs[field.name].replace('``', '`')} |"
        for field in dataclasses.fields(Settings)
    ]
    lines += [
        "",
        SETTINGS_OTHER,
    ]
    return "\n".join(lines)


def _default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "the CPUs there are"
    value = field.default
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if field.name.endswith("_bytes"):
        return f"`{format_bytes(value)}`"
    return f"`{format_duration(value) if field.name.endswith('_s') else value}`"


def command_line() -> str:
    """Return the page of commands."""
    from dask_fleet.cli.main import app

    lines = [
        "# Command line",
        "",
        MADE,
        "",
        CLI_INTRO,
    ]
    _commands(typer.main.get_command(app), "dask-fleet", lines)
    return "\n".join(lines)


def _commands(command: Any, path: str, lines: list[str]) -> None:
    children = getattr(command, "commands", None)
    if children is not None:
        for name, child in children.items():
            _commands(child, f"{path} {name}", lines)
        return
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    shown = "".join(
        f" {each.make_metavar(typer.Context(command)) if each.metavar is None else each.metavar}" for each in arguments
    )
    lines += [f"## `{path}{shown}`", ""]
    lines += [" ".join(line.split()) for line in inspect.cleandoc(command.help or "").splitlines()] + [""]
    options = [each for each in command.params if each.param_type_name == "option" and "--help" not in each.opts]
    if not options:
        return
    lines += ["| flag | what for | default |", "|---|---|---|"]
    for option in options:
        flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
        default = option.show_default if isinstance(option.show_default, str) else _shown(option.default)
        lines.append(f"| {flags} | {' '.join((option.help or '').split())} | {default} |")
    lines.append("")


def _shown(default: Any) -> str:
    return "" if default in (None, False, (), []) or callable(default) else str(default)


def errors() -> str:
    """Return the page of errors."""
    lines = [
        "# Errors",
        "",
        MADE,
        "",
        ERRORS_INTRO,
        "| code | status | class | when | retryable |",
        "|---|---:|---|---|---|",
    ]
    lines += [_error_row(cls) for cls in _leaves(FleetError) if not issubclass(cls, SetupError)]
    lines += ["", "## Before anything is served", "", "`dask-fleet` prints these and exits; the message names the cure.", ""]
    lines += ["| code | exit code | class | when |", "|---|---:|---|---|"]
    lines += [
        f"| `{cls.code}` | {cls.exit_code} | `{cls.__name__}` | {_first_paragraph(cls)} |"
        for cls in _leaves(FleetError)
        if issubclass(cls, SetupError)
    ]
    lines += ["", "## Why a job failed", "", "The `cause` in a failed job's `error`, and in the attempts of any job.", ""]
    lines += ["| cause | meaning |", "|---|---|"]
    docs = attribute_docs(inspect.getmodule(Cause), "Cause")
    lines += [f"| `{cause.value}` | {docs[cause.name].replace('``', '`')} |" for cause in Cause]
    return "\n".join([*lines, ""])


def _leaves(cls: type[FleetError]) -> list[type[FleetError]]:
    children = [
        leaf for child in cls.__subclasses__() if child.__module__ == FleetError.__module__ for leaf in _leaves(child)
    ]
    return children or [cls]


def _error_row(cls: type[FleetError]) -> str:
    status = "SDK" if cls in {ConnectionFailed, WaitTimeout} else cls.status
    return f"| `{cls.code}` | {status} | `{cls.__name__}` | {_first_paragraph(cls)} | {'yes' if cls.retryable else ''} |"


def _first_paragraph(cls: type) -> str:
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
    return text.replace("``", "`").replace("|", "\\|")


PAGES = {"settings.md": settings, "cli.md": command_line, "errors.md": errors}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
