"""Text that every machine has: this project's documents, descriptions of installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the source tree, where there is one
LEAST = 200  # characters: shorter descriptions say nothing worth finding


def texts() -> Iterator[tuple[str, str, str]]:
    """(source, text, title) of each document, every source once."""
    for path in project_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        yield path.relative_to(ROOT).as_posix(), text, path.stem
    seen: set[str] = set()
    for distribution in distributions():
        name = distribution.metadata["Name"]
        text = description(distribution)
        if name and name.lower() not in seen and len(text) >= LEAST:
            seen.add(name.lower())
            summary = distribution.metadata["Summary"] or name
            yield f"package/{name}", f"{name} {distribution.version}: {summary}\n\n{text}", name


def project_files() -> list[Path]:
    """README and docs of the source tree; none where the package was installed from a wheel."""
    if not (ROOT / "pyproject.toml").is_file():
        return []
    return [
        path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if path.is_file()
    ]


def description(distribution: Distribution) -> str:
    """The long description: the body of the metadata, or the Description field of old ones."""
    metadata = distribution.metadata
    body = getattr(metadata, "get_payload", str)()
    field = metadata["Description"]  # None where there is no such field
    return (body if isinstance(body, str) else "").strip() or str(field or "").strip()
