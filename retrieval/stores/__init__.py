"""Collections in engines that exist: LanceDB, Qdrant. `open_store` is where to begin."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lfm2_mm.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from retrieval.stores.seam import CandidateStore

ENGINES = {  # name: module, what must be installed, the extra that installs it
    "index": ("retrieval.stores.own", None, None),
    "lancedb": ("retrieval.stores.lance", "lancedb", "lancedb"),
    "qdrant": ("retrieval.stores.edge", "qdrant_edge", "qdrant"),
    "qdrant-server": ("retrieval.stores.server", "qdrant_client", "qdrant"),
}
KNOWN = "lancedb:FOLDER_OR_BUCKET, qdrant:FOLDER, qdrant:http://HOST:6333[/COLLECTION]"


def open_store(address: str, *, create: bool = False) -> CandidateStore:
    """The store at an address such as "lancedb:./my.lance" or "qdrant:http://localhost:6333".

    Raises BadInput for an unknown engine, MissingExtra where its library is not installed,
    IndexMissing where nothing is there and `create` is False.
    """
    engine, colon, place = address.partition(":")
    if not colon or not place or engine not in ("index", "lancedb", "qdrant"):
        raise BadInput(f"no store {address!r}; known: {KNOWN}")
    if engine == "qdrant" and place.startswith(("http:", "https:")):
        engine = "qdrant-server"
    module, needs, extra = ENGINES[engine]
    if needs and find_spec(needs) is None:
        raise MissingExtra(f"{address} needs {needs}: pip install 'lfm2-mm[{extra}]'")
    opened: CandidateStore = import_module(module).open_store(place, create=create)
    return opened


def __getattr__(name: str) -> Any:
    if name in ("Collection", "open_collection"):
        return getattr(import_module("retrieval.stores.collection"), name)
    if name == "copy":
        return import_module("retrieval.stores.copying").copy
    raise AttributeError(f"module 'retrieval.stores' has no attribute {name!r}")
