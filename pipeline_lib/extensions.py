"""What a user's Python module may register: sources, signals, rule sets, models, callbacks, suites.

A pipeline names modules under `execution.extensions`: dotted names, or paths of `.py` files inside the allowed folders. A module
registers at import:

```python
from pipeline_lib.extensions import extend


@extend.source("tickets")
def read_tickets(source): ...


extend.rule_set("tickets", {"long_enough": "characters >= 80"})
```

kind · what is registered · the stages that use it:

- **source** · `(source: SourceConfig) -> Iterator[pyarrow.RecordBatch]`: columns text, id, domain, licence, url (string) and
  created_at (timestamp[us, UTC]); further columns are kept as metadata; the same input gives the same batches. Used by a
  source of kind `module` that has this name · ingest
- **signal** · `(text: pyarrow.LargeStringArray) -> pyarrow.Array`: one number a document, in order; becomes the column
  `ext_<name>` of `signals` · score
- **rule_set** · a dictionary of rule name → SQL expression over signals, true for a document to keep; chosen in
  `score.rules` · score
- **model** · `(model: ModelConfig, vocabulary_size: int, sequence_length: int) -> transformers.PreTrainedModel`; chosen by
  `model.family` · calibrate, tune, train
- **callback** · `() -> transformers.TrainerCallback`: called for every training; all that are registered are used · train
- **suite** · `(seed: int) -> pyarrow.Table` with the schema `tables.schemas.SUITE_ITEMS`; part of every validation · suites

The digest of the defining module's source is part of the fingerprint of these stages: a changed file makes them run again. For a
package that is every `.py` file in it; what a module imports from elsewhere is not covered. Import heavy packages
(torch, transformers) inside the functions: modules are loaded even when every stage is reused.

Configured modules are code and run with the rights of the pipeline; that is why their paths are restricted, and why a form may
name only modules that are listed in $MILLRACE_ALLOWED_MODULES or in a deployed pipeline.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from blake3 import blake3

from pipeline_lib.errors import ConfigError

if TYPE_CHECKING:
    from pipeline_lib.config.pipeline import PipelineConfig

Kind = Literal["source", "signal", "rule_set", "model", "callback", "suite"]
ALLOWED = "MILLRACE_ALLOWED_MODULES"
KINDS: tuple[Kind, ...] = get_args(Kind)
F = TypeVar("F", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Entry:
    """A registered object, the module that registered it, and the digest of that module's source."""

    value: Any
    module: str  # as named under execution.extensions
    digest: str


_registry: dict[Kind, dict[tuple[str, str], Entry]] = {kind: {} for kind in KINDS}  # by (module, name)
_loaded: dict[str, str] = {}  # module as named in the configuration -> digest of the source it was loaded from
_lock = threading.RLock()
_loading: list[tuple[str, str]] = []  # (module as named, digest) while its code runs
_active: list[str] = []  # what the last `load_extensions` named; only these are seen


class _Extend:
    """The decorators of a user's module: `@extend.source("name")` and so on."""

    def source(self, name: str) -> Callable[[F], F]:
        """Register a reader of documents."""
        return self._function("source", name)

    def signal(self, name: str) -> Callable[[F], F]:
        """Register a measurement of a document."""
        return self._function("signal", name)

    def model(self, name: str) -> Callable[[F], F]:
        """Register a model family."""
        return self._function("model", name)

    def callback(self, name: str) -> Callable[[F], F]:
        """Register a training callback."""
        return self._function("callback", name)

    def suite(self, name: str) -> Callable[[F], F]:
        """Register validation items."""
        return self._function("suite", name)

    def rule_set(self, name: str, rules: Mapping[str, str]) -> None:
        """Register rules by name: SQL expressions over signals that are true for a document to keep."""
        _register("rule_set", name, dict(rules))

    def _function(self, kind: Kind, name: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            _register(kind, name, function)
            return function

        return register


extend = _Extend()


def _register(kind: Kind, name: str, value: Any) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a {kind}", fix="letters, digits, `_`, `.` and `-`, at most 60")
    if not _loading:
        raise ConfigError(
            f"{kind} {name!r} is registered by a module that was not loaded as an extension",
            fix="name the module under execution.extensions, and do not import it elsewhere before",
        )
    module, digest = _loading[-1]
    _registry[kind][module, name] = Entry(value, module, digest)


def load_extensions(names: Sequence[str]) -> None:
    """Load modules, once each, and make exactly these the active ones; one whose source changed since is loaded again.

    The stage engine does this before it computes a fingerprint. Work in another process does it again, with `active_extensions()`
    of the process that sent it.

    Args:
        names: dotted module names, or paths of `.py` files.

    Raises:
        ConfigError: a module does not exist, or fails while it is imported.
    """
    with _lock:
        for name in names:
            path = _find(name)
            digest = _digest(path)
            if _loaded.get(name) == digest:
                continue
            for entries in _registry.values():
                for known in [key for key, entry in entries.items() if entry.module == name]:
                    del entries[known]
            _loaded.pop(name, None)
            _run(name, path, digest)
            _loaded[name] = digest
        _active[:] = names


def active_extensions() -> tuple[str, ...]:
    """The modules that are loaded and seen now, for `load_extensions` in another process."""
    return tuple(_active)


def _seen(kind: Kind) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for (module, name), entry in _registry[kind].items():
        if module not in _active:
            continue
        if name in found:
            raise ConfigError(f"two extensions register the {kind} {name!r}: {found[name].module} and {module}", fix="rename one")
        found[name] = entry
    return dict(sorted(found.items()))


def extension(kind: Kind, name: str) -> Any:
    """The object registered under a name.

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    entries = _seen(kind)
    if name in entries:
        return entries[name].value
    near = get_close_matches(name, entries, 1)
    known = f"registered: {', '.join(entries)}" if entries else f"no loaded extension registers a {kind}"
    raise ConfigError(
        f"no extension registers the {kind} {name!r}",
        where="execution.extensions",
        fix=f"did you mean {near[0]!r}?" if near else f"{known}; name the module that does under execution.extensions",
    )


def extensions(kind: Kind) -> dict[str, Any]:
    """Everything the active modules registered of a kind, by name, in name order."""
    return {name: entry.value for name, entry in _seen(kind).items()}


def digests(kinds: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """`{"source:tickets": digest}` of what the named modules registered of some kinds: their part of a stage's fingerprint."""
    load_extensions(names)
    return {f"{kind}:{name}": entry.digest for kind in sorted(kinds) for name, entry in _seen(_kind(kind)).items()}


def check_extensions(config: PipelineConfig) -> None:
    """Load a configuration's extensions and see that the names it asks for are there, before any work.

    Raises:
        ConfigError: a module cannot be loaded, or a source or rule set has no such name.
    """
    from pipeline_lib.config.data import RuleSetName

    load_extensions(config.execution.extensions)
    for source in config.ingest.sources:
        if source.kind == "module":
            extension("source", source.name)
    built_in = get_args(RuleSetName)
    chosen = [*config.score.rules.values(), config.score.instruct_rules]
    for name in (part.strip() for text in chosen for part in text.split("+")):
        if name not in (known := [*built_in, *extensions("rule_set")]):
            near = get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"there is no rule set {name!r}", where="score.rules", fix=fix)


def allow_modules(config: PipelineConfig) -> None:
    """Allow a configuration's dotted modules in this process and its children: for what a person at this machine has named."""
    os.environ[ALLOWED] = ",".join(sorted({*_allowed(), *_dotted(config)}))


def check_modules(config: PipelineConfig, deployed: Callable[[], Collection[str]] = tuple) -> None:
    """Refuse dotted modules that nobody at this machine has named: a form could otherwise import anything that is installed.

    Paths of `.py` files are restricted as all paths are (`config.paths`).

    Args:
        config: what is about to run.
        deployed: the modules of the deployed pipelines; asked only where needed.

    Raises:
        ConfigError: names the first such module.
    """
    if unknown := [name for name in _dotted(config) if name not in _allowed()]:
        known = deployed()
        if refused := [name for name in unknown if name not in known]:
            raise ConfigError(
                "a form may not name this module",
                where=f"execution.extensions: {refused[0]}",
                fix=f"whoever runs the servers can list it in ${ALLOWED}, or in a deployed pipeline's YAML",
            )


def _dotted(config: PipelineConfig) -> list[str]:
    return [name for name in config.execution.extensions if not name.endswith(".py")]


def _allowed() -> list[str]:
    return [name for part in os.environ.get(ALLOWED, "").split(",") if (name := part.strip())]


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of extension: {', '.join(KINDS)}")
    return kind


def _find(name: str) -> Path:
    """The file of a module (`__init__.py` of a package), without running it."""
    where = f"execution.extensions: {name}"
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError("there is no such file", where=where, fix="paths in a YAML count from its folder")
        return path.resolve()
    if not _MODULE.fullmatch(name):
        raise ConfigError("is neither a dotted module name nor a path ending in .py", where=where)
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError("there is no such Python module", where=where, fix="install it, or name its file: path/to/module.py")
    return Path(spec.origin)


def _digest(path: Path) -> str:
    """Digest of a module file, or of every `.py` file of a package (names and bytes)."""
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    hasher = blake3()
    for file in files:
        data = file.read_bytes()
        name = file.relative_to(path.parent).as_posix() if len(files) > 1 else ""
        hasher.update(f"{name}\n{len(data)}\n".encode()).update(data)
    return str(hasher.hexdigest()[:32])


@contextmanager
def _as_loading(name: str, digest: str) -> Iterator[None]:
    _loading.append((name, digest))
    try:
        yield
    finally:
        _loading.pop()


def _run(name: str, path: Path, digest: str) -> None:
    """Run a module's code as an import under its name; a file gets a stable name of its own, so that its functions can travel."""
    with _as_loading(name, digest):
        try:
            if name.endswith(".py"):
                own_name = f"millrace_extension_{path.stem}_{blake3(str(path).encode()).hexdigest()[:8]}"
                _execute(own_name, path)
            elif name in sys.modules:
                for part in [part for part in sys.modules if part == name or part.startswith(name + ".")]:
                    del sys.modules[part]
                importlib.import_module(name)
            else:
                importlib.import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            line = _line_in(error, path)
            raise ConfigError(
                f"{type(error).__name__}: {error}", where=f"execution.extensions: {path}{line}", fix="mend the module"
            ) from error


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line_in(error: BaseException, path: Path) -> str:
    """`:12` for the deepest line of the module in a traceback."""
    line, trace = 0, error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f":{line}" if line else ""
