"""Copies of published checkpoints: the hub's own cache on this disk, and filling it.

Knows repositories and files, nothing of what is in them. Weights enter the cache with the SHA-256
that the hub tells, and `refs/main` is written last, so its existence means a whole copy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lfm2_mm.address import checked_url
from lfm2_mm.errors import CheckpointDamaged, LfmError, NotAvailable, UnknownCheckpoint

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

log = logging.getLogger(__name__)

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "LICENSE*")  # never .bin, .pt, .py
LIKE = "https://hub.example"  # an HF_ENDPOINT, for messages
ANSWER_S = 5.0  # a hub that says nothing for so long is taken as not there
ATTEMPTS = 4  # at one file, when the connection breaks


@dataclass(frozen=True)
class Plan:
    """What a download will bring, told before it starts."""

    repo: str
    commit: str
    licence: str
    bytes: int  # of all wanted files
    present: int  # of these, bytes that are here already


Answer = TypeVar("Answer")
Announce = Callable[[Plan], None]
Progress = Callable[[int, int], None]  # bytes done, bytes of all


class Hub:
    """One hub and one cache folder, in the layout that huggingface_hub documents for its cache."""

    def __init__(self, cache: Path, endpoint: str | None = None) -> None:
        self.cache = cache
        self.endpoint = endpoint

    def folder(self, repo: str) -> Path:
        return self.cache / f"models--{repo.replace('/', '--')}"

    def snapshot(self, repo: str) -> Path | None:
        """The whole copy of `repo` in the cache; nothing is asked of the network."""
        try:
            commit = (self.folder(repo) / "refs" / "main").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        snapshot = self.folder(repo) / "snapshots" / commit
        return snapshot if commit.isalnum() and snapshot.is_dir() else None

    def remove(self, repo: str) -> int:
        """Delete the copy, half ones included; the bytes that became free (0: there was none)."""
        folder = self.folder(repo)
        size = size_of(folder)
        if folder.exists():
            (folder / "refs" / "main").unlink(missing_ok=True)  # first: no half copy is ever found
            shutil.rmtree(folder)
        return size

    def fetch(
        self,
        repo: str,
        licence: str | None = None,
        announce: Announce | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Download `repo`; a download that broke off goes on where it stopped.

        Raises NotAvailable when the hub does not answer or the disk is too small, UnknownCheckpoint
        when it has no such repository, CheckpointDamaged when bytes do not have their SHA-256,
        BadInput when the endpoint is no address.
        """
        info = self._info(repo)
        files = [f for f in info.siblings or [] if any(fnmatch(f.rfilename, p) for p in WANTED)]
        plan = self._plan(repo, info, files, licence)
        log.info("fetching %s: %d bytes, licence %s", repo, plan.bytes, plan.licence)
        if announce:
            announce(plan)
        self._check_space(plan)
        self._large_files(plan, files, progress)
        snapshot = self._rest(plan)
        if progress:
            progress(plan.bytes, plan.bytes)
        refs = self.folder(repo) / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main.part").write_text(plan.commit, encoding="ascii")
        os.replace(refs / "main.part", refs / "main")
        return snapshot

    def _info(self, repo: str) -> ModelInfo:
        if self.endpoint is not None:  # before the hub's own library reads it, as it is imported
            checked_url(self.endpoint, LIKE)
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint)
        with _translated(repo):
            return _within(
                2 * ANSWER_S,  # looking a host up knows no time limit of its own
                lambda: api.model_info(repo, files_metadata=True, timeout=ANSWER_S),
            )

    def _plan(
        self, repo: str, info: ModelInfo, files: list[RepoSibling], licence: str | None
    ) -> Plan:
        if info.sha is None or not any(f.rfilename == "config.json" for f in files):
            raise UnknownCheckpoint(f"{repo} on the hub holds no config.json: not a checkpoint")
        card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}
        told = licence or card.get("license_name") or card.get("license") or "not told by the hub"
        present = sum(size_of(p) for f in files for p in self._blobs(repo, f))
        total = sum(f.size or 0 for f in files)
        return Plan(repo, info.sha, str(told), total, min(present, total))

    def _blobs(self, repo: str, file: RepoSibling) -> tuple[Path, Path]:
        """Where a file's bytes lie when they are all there, and while they are not."""
        blob = self.folder(repo) / "blobs" / str(file.lfs.sha256 if file.lfs else file.blob_id)
        return blob, blob.with_name(blob.name + ".part")

    def _check_space(self, plan: Plan) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache).free
        if free < plan.bytes - plan.present:
            raise NotAvailable(
                f"{plan.repo} needs {megabytes(plan.bytes - plan.present)} and {self.cache} has "
                f"{megabytes(free)} free; make room, or set HF_HOME to another disk"
            )

    def _large_files(self, plan: Plan, files: list[RepoSibling], progress: Progress | None) -> None:
        """The weights. huggingface_hub starts a file again from its first byte; this does not."""
        from filelock import FileLock

        done = plan.present
        for file in (f for f in files if f.lfs):
            blob, part = self._blobs(plan.repo, file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(blob.with_name(blob.name + ".lock")):
                if blob.exists():
                    continue
                for got in self._stream(plan, file, part):
                    done += got
                    if progress:
                        progress(done, plan.bytes)
                _check_hash(part, blob.name, file.rfilename)
                os.replace(part, blob)

    def _stream(self, plan: Plan, file: RepoSibling, part: Path) -> Iterator[int]:
        """Append to `part` until it is whole, and yield the growth (negative: from the start)."""
        import httpx

        size = file.size or 0
        for attempt in range(ATTEMPTS):
            try:
                with _translated(plan.repo):
                    yield from self._request(plan, file.rfilename, part, size)
                    return
            except NotAvailable as error:
                broken = isinstance(error.__cause__, httpx.TransportError)
                if not broken or attempt + 1 == ATTEMPTS:
                    raise
                log.warning("%s: connection lost, going on (%s)", file.rfilename, error.__cause__)

    def _request(self, plan: Plan, name: str, part: Path, size: int) -> Iterator[int]:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        have = size_of(part)
        if have == size:
            return
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        url = hf_hub_url(plan.repo, name, revision=plan.commit, endpoint=self.endpoint)
        with get_session().stream(
            "GET", url, headers=headers, timeout=4 * ANSWER_S, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            goes_on = response.status_code == 206
            if have and not goes_on:
                yield -have
            with part.open("ab" if goes_on else "wb") as out:
                for block in response.iter_bytes():  # of no fixed size: nothing waits to be lost
                    out.write(block)
                    yield len(block)

    def _rest(self, plan: Plan) -> Path:
        """The small files, and the snapshot folder that gives all files their names."""
        from huggingface_hub import snapshot_download
        from tqdm import tqdm

        class Silent(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **(options | {"disable": True}))

        with _translated(plan.repo):
            return Path(
                snapshot_download(
                    plan.repo,
                    revision=plan.commit,
                    cache_dir=self.cache,
                    endpoint=self.endpoint,
                    allow_patterns=list(WANTED),
                    etag_timeout=ANSWER_S,
                    tqdm_class=Silent,
                )
            )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a folder, links not followed; 0 when there is none."""
    if path.is_dir():
        return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    return path.stat().st_size if path.is_file() else 0


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _check_hash(part: Path, sha256: str, name: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise CheckpointDamaged(f"{name} arrived with other bytes than the hub promised; try again")


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The answer of `call`, or TimeoutError; its thread never keeps the process alive."""
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    if error is not None:
        raise error
    return cast("Answer", answer)


@contextmanager
def _translated(repo: str) -> Iterator[None]:
    """Errors of the hub's client as ours, with the cause kept."""
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except LfmError:
        raise
    except errors.GatedRepoError as error:
        raise NotAvailable(
            f"{repo} is given out on request only: ask on its page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownCheckpoint(f"the hub has no {repo}, or keeps it private") from error
    except (httpx.HTTPError, errors.HfHubHTTPError, TimeoutError) as error:
        raise NotAvailable(f"the hub did not give {repo}: {_first_line(error)}") from error
    except OSError as error:
        raise NotAvailable(f"{repo} could not be stored: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
