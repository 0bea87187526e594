"""Loads a service's module: in the loader process, which describes it, and in worker processes, which run it.
Both must come to the same version, so everything here depends on the files alone.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from dask_fleet.model.errors import ServiceDefinitionError, ServiceImportError
from dask_fleet.services.service import Service
from dask_fleet.services.source import short_path
from dask_fleet.services.versions import OwnFiles, content_digest, versioned

_loaded: dict[str, list[Service]] = {}
_versions: dict[int, str] = {}
_folders: set[Path] = set()


def load_target(target: str) -> list[Service]:
    """Import a file (``path/to/service.py``) or a module (``package.module``) and return the services it
    defines.

    The folder of a file is put on ``sys.path``, so that the modules beside it can be imported; a file inside
    a package is imported as a part of that package. Asking for a target again returns the same services.

    Raises
    ------
    ServiceImportError
        If the import raises; names file and line of the author's code.
    ServiceDefinitionError
        If there is no service in it, or one says what a manifest cannot express.
    """
    if (known := _loaded.get(target)) is not None:
        return known
    if is_file_target(target):
        path = Path(target).resolve()
        if not path.is_file():
            raise ServiceImportError(f"there is no file {target}: give the path of a Python file, or the name of a module")
        folder, name = import_root(path)
        put_on_path(folder)
        _refuse_namesakes(folder)
    else:
        put_on_path(Path.cwd())
        path, name = None, target
    before = set(sys.modules)
    module = _import(target, name, path if path is not None and "." not in name else None)
    own = OwnFiles.of(module)
    digest = content_digest(own, newly_loaded=[sys.modules[new] for new in set(sys.modules) - before if new in sys.modules])
    _folders.add(own.root)
    services = _services_in(module, target)
    for service in services:
        for endpoint in service.endpoints.values():
            _ = endpoint.parameters
        _versions[id(service)] = versioned(service.version, digest)
    _loaded[target] = services
    return services


def service_version(service: Service) -> str:
    """Return the version of a service that `load_target` returned: ``<declared>+<hash>``, or the hash alone.

    Raises
    ------
    ServiceDefinitionError
        If it was not loaded that way.
    """
    try:
        return _versions[id(service)]
    except KeyError:
        raise ServiceDefinitionError(f"the service {service.name!r} was not loaded from a file or module") from None


def service_doc(service: Service) -> str:
    """Return what the service is about: as declared, else the docstring of the module it was made in."""
    if service.doc:
        return service.doc
    for endpoint in service.endpoints.values():
        module = sys.modules.get(getattr(endpoint.function, "__module__", ""))
        if module is not None and module.__doc__:
            return module.__doc__.strip()
    return ""


def is_file_target(target: str) -> bool:
    """Whether `target` is written as a file, not as a module."""
    return target.endswith(".py") or os.sep in target


def import_root(path: Path) -> tuple[Path, str]:
    """Return the folder to put on ``sys.path`` and the name to import `path` by."""
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) == 1:
        # A name of its own, the same in every process and for every service.py, that no import statement can mean.
        import hashlib

        return folder, f"fleet_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    return folder, ".".join(parts).removesuffix(".__init__")


def put_on_path(folder: Path) -> None:
    """Let the modules of `folder` be imported, before others of their names."""
    entry = str(folder)
    if entry not in sys.path:
        sys.path.insert(0, entry)


def _refuse_namesakes(folder: Path) -> None:
    """Two services' folders may not both have a module that one of them has imported: the other would get the
    wrong one.
    """
    others = _folders - {folder}
    if not others:
        return
    for entry in folder.glob("*.py"):
        module = sys.modules.get(entry.stem)
        origin = getattr(module, "__file__", None)
        if origin and Path(origin).resolve() != entry and Path(origin).resolve().parent in others:
            raise ServiceDefinitionError(
                f"{short_path(str(entry))} and {short_path(origin)} would be one module {entry.stem!r} to Python:"
                " rename one of them, or serve the two from separate servers"
            )


def _import(target: str, name: str, path: Path | None) -> ModuleType:
    try:
        if path is None:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ServiceImportError(f"{target} is no Python file: its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
    except ServiceDefinitionError:
        raise  # says where already
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as exc:
        raise ServiceImportError(_import_message(target, name, exc)) from exc
    return module


def _import_message(target: str, name: str, error: BaseException) -> str:
    if isinstance(error, ServiceImportError):
        return error.detail
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name is not None
        and (name == error.name or name.startswith(error.name + "."))
    ):
        return f"there is no module {target}: look at its spelling, run this in its folder, or give the path of the file"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{short_path(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    message = f"{_author_line(error)}: {type(error).__name__}: {str(error)[:1000]}".rstrip(": ")
    if isinstance(error, ModuleNotFoundError):
        message += f"; install it for {sys.executable}"
    if isinstance(error, SystemExit):
        message += "; the module ends the process while it is imported: guard that by if __name__ == '__main__':"
    return message


def _author_line(error: BaseException) -> str:
    """Return ``file:line`` of the innermost frame that the author wrote; of any frame if there is none."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<frozen importlib") or frame.filename in {__file__, importlib.__file__}:
            continue
        own = not any(part in frame.filename for part in _FOREIGN)
        if own or not found:
            found = f"{short_path(frame.filename)}:{frame.lineno}"
    return found or "(no line)"


_FOREIGN = (
    f"{os.sep}site-packages{os.sep}",
    f"{os.sep}dist-packages{os.sep}",
    f"{os.path.dirname(os.__file__)}{os.sep}",  # noqa: PTH120 - a text to look for, not a path to open
    f"{os.sep}dask_fleet{os.sep}services{os.sep}",
)


def _services_in(module: ModuleType, target: str) -> list[Service]:
    found: list[Service] = []
    for value in list(vars(module).values()):
        if isinstance(value, Service) and not any(value is other for other in found):
            found.append(value)
    where = short_path(module.__file__ or target)
    if not found:
        raise ServiceDefinitionError(
            f"{where} defines no service: write  service = Service('name')  at its top level and decorate functions with"
            " @service.endpoint"
        )
    for service in found:
        if not service.endpoints:
            raise ServiceDefinitionError(
                f"{where}: the service {service.name!r} has no endpoints: decorate a function with @service.endpoint"
            )
    return found
