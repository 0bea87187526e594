"""A service's version: a hash of its own files, so that results of older code are never served for newer
code.

Own files are those beneath the service's folder (or its package) that it imports: found by reading the import
statements, also those inside functions, of each own file in turn; and those that were loaded with it in other
ways. Installed packages are not own files: declare a `version`, or let results expire, when their change must
change results.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Where a service's own files lie."""

    start: Path
    """The file that was loaded."""
    root: Path
    """The folder that imports of own modules begin at."""
    within: Path
    """The folder tree (or the one file) that own files lie in."""

    @classmethod
    def of(cls, module: ModuleType) -> OwnFiles:
        """Return them for an imported module."""
        start = Path(module.__file__ or "").resolve()
        top = module.__name__.partition(".")[0]
        depth = module.__name__.count(".") + (1 if start.name == "__init__.py" else 0)
        root = start.parent
        for _ in range(depth):
            root = root.parent
        if depth:
            return cls(start, root, root / top)
        alone = bool(_INSTALLED & set(start.parts)) or start.parent == Path(sysconfig.get_path("stdlib")).resolve()
        return cls(start, root, start if alone else root)

    def has(self, path: Path) -> bool:
        """Whether `path` is one of them: below the tree, and not in an environment that happens to lie there
        too.
        """
        if path == self.within:
            return True
        if not path.is_relative_to(self.within):
            return False
        between = path.relative_to(self.within).parts
        return not _INSTALLED & set(between)


def content_digest(own: OwnFiles, *, newly_loaded: Iterable[ModuleType] = ()) -> str:
    """Return SHA-256 (hexadecimal) over names and contents of the own files that `own.start` imports.

    Parameters
    ----------
    own
        Where to begin, and what counts.
    newly_loaded
        Modules that the import brought in; own ones among them count even if no import statement names them.
    """
    files = set(_imported(own))
    for module in newly_loaded:
        origin = getattr(module, "__file__", None)
        if isinstance(origin, str) and own.has(path := Path(origin).resolve()) and path.is_file():
            files.add(path)
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda file: file.relative_to(own.root).as_posix()):
        name, content = path.relative_to(own.root).as_posix().encode(), path.read_bytes()
        digest.update(b"%d:%s%d:" % (len(name), name, len(content)))
        digest.update(content)
    return digest.hexdigest()


def versioned(declared: str, digest: str) -> str:
    """Return the version under which jobs are identified."""
    short = hashlib.sha256(f"{declared}\0{digest}".encode()).hexdigest()[:16]
    return f"{declared}+{short}" if declared else short


def _imported(own: OwnFiles) -> Iterator[Path]:
    seen = {own.start}
    waiting = [own.start]
    while waiting:
        path = waiting.pop()
        yield path
        for name in _names_imported_by(path, own.root):
            for found in _files_of(name, own.root):
                if found not in seen and own.has(found):
                    seen.add(found)
                    waiting.append(found)


def _names_imported_by(path: Path, root: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # it cannot be imported either
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *(node.module.split(".") if node.module else ())))
            yield base
            # "from package import module" names a file, "from module import function" does not.
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def _files_of(name: str, root: Path) -> Iterator[Path]:
    """Yield the files that importing ``a.b.c`` from `root` runs."""
    folder = root
    for part in name.split("."):
        if not part:
            return
        if (module := folder / f"{part}.py").is_file():
            yield module.resolve()
        folder = folder / part
        if not folder.is_dir():
            return
        if (init := folder / "__init__.py").is_file():
            yield init.resolve()
