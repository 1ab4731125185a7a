"""Names become whole folders or clear errors; broken downloads go on; writing is atomic."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from lfm2_mm import checkpoint, hub, registry, weights
from lfm2_mm.errors import BadInput, CheckpointDamaged, NotAvailable, UnknownCheckpoint
from tests.hub import COMMIT, Repository, serve

REPO = "LiquidAI/LFM2-350M"
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint folder of two tiny tensors."""
    return checkpoint.write(tmp_path / "ours", TENSORS, {"model_type": "lfm2"})


def sharded(folder: Path, **changes: object) -> Path:
    """A folder of two shards, with `changes` made to the weight map."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weight_map: dict[str, object] = {}
    for number, (key, tensor) in enumerate(TENSORS.items()):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({key: tensor}, folder / name)
        weight_map[key] = name
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": weight_map | changes}))
    return folder


# ---- names ----------------------------------------------------------------------------------


def test_a_local_folder_is_taken_as_it_is(folder: Path) -> None:
    assert checkpoint.locate(folder) == folder
    assert checkpoint.locate(str(folder)) == folder


def test_a_local_folder_that_is_not_whole_names_what_is_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointDamaged, match=r"config\.json missing"):
        checkpoint.locate(folder)


def test_a_registered_name_is_not_taken_by_an_unrelated_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LFM2-350M").mkdir()
    with pytest.raises(NotAvailable):
        checkpoint.locate("LFM2-350M", offline=True)
    checkpoint.write(tmp_path / "LFM2-350M", TENSORS, {})
    assert checkpoint.locate("LFM2-350M", offline=True) == Path("LFM2-350M")


@pytest.mark.parametrize(
    "name", ["../x", "a\nb", "", "\0", "x" * 9_999, "~nobody/x/y", "LFM2-360M"]
)
def test_hostile_and_mistyped_names_are_unknown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UnknownCheckpoint):
        checkpoint.locate(name)


def test_pickles_are_refused_by_name(folder: Path) -> None:
    (folder / weights.SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointDamaged, match="can run code"):
        checkpoint.locate(folder)


def test_a_missing_projection_is_noticed(folder: Path) -> None:
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Dense", "type": "x.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointDamaged, match=r"1_Dense/model\.safetensors missing"):
        checkpoint.locate(folder)
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / weights.SINGLE).write_bytes(save({"linear.weight": torch.ones(5, 3)}))
    assert checkpoint.locate(folder) == folder
    assert weights.count_parameters(folder) == 7 + 15


@pytest.mark.parametrize("path", ["../1_Dense", "/etc", "a/b"])
def test_a_projection_outside_of_the_folder_is_refused(folder: Path, path: str) -> None:
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Dense"}]))
    with pytest.raises(CheckpointDamaged, match="outside"):
        checkpoint.locate(folder)


# ---- the environment ------------------------------------------------------------------------


def test_every_variable_has_its_effect() -> None:
    caches = Path("~/.cache").expanduser()
    assert checkpoint.settings({}) == checkpoint.Settings(
        False, caches / "huggingface" / "hub", None, caches / "lfm2-mm"
    )
    assert checkpoint.settings({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/huggingface/hub")
    assert checkpoint.settings({"XDG_CACHE_HOME": "/x"}).home == Path("/x/lfm2-mm")
    assert checkpoint.settings({"LFM2_MM_HOME": "/l"}).home == Path("/l")
    assert checkpoint.settings({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}).cache == Path("/h/hub")
    assert checkpoint.settings({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}).cache == Path("/c")
    assert checkpoint.settings({"HF_ENDPOINT": "http://e"}).endpoint == "http://e"
    for said in ("1", "true", "YES", "on"):
        assert checkpoint.settings({"HF_HUB_OFFLINE": said}).offline
    assert not checkpoint.settings({"HF_HUB_OFFLINE": "0"}).offline


# ---- tensors --------------------------------------------------------------------------------


def test_tensors_are_read_as_written_from_one_file_and_from_shards(
    folder: Path, tmp_path: Path
) -> None:
    for place in (folder, sharded(tmp_path / "shards")):
        assert checkpoint.tensor_keys(place) == sorted(TENSORS)
        read = dict(checkpoint.read_tensors(place))
        assert all(torch.equal(read[k], t) and read[k].dtype == t.dtype for k, t in TENSORS.items())
        assert len(read) == len(TENSORS) and weights.count_parameters(place) == 7


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b"x",
        lambda b: b[: len(b) // 2],
        lambda b: b[:7],
        lambda b: b"",
        lambda b: struct.pack("<Q", 1 << 60) + b[8:],
        lambda b: struct.pack("<Q", 3) + b[8:],
        lambda b: b[:8] + b"x" + b[9:],
        lambda b: b"PK\x03\x04" + b[4:],
        lambda b: struct.pack("<Q", 9) + b'{"a": {} }'[:9],
        lambda b: struct.pack("<Q", 2) + b"[]",
    ],
)
def test_damaged_weights_are_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    file = folder / weights.SINGLE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointDamaged, match=weights.SINGLE):
        list(checkpoint.read_tensors(folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "shards")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointDamaged, match=r"model-00002-of-00002\.safetensors missing"):
        checkpoint.locate(folder)
    with pytest.raises(CheckpointDamaged, match="model-00002"):
        checkpoint.tensor_keys(folder)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a\\b", "c:x", "", 7, "\0"])
def test_a_shard_outside_of_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    folder = sharded(tmp_path / "shards", b=shard)
    with pytest.raises(CheckpointDamaged, match="not a file of this folder"):
        checkpoint.locate(folder)


def test_shards_and_their_index_must_agree(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "shards", c="model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointDamaged, match="do not agree on c"):
        checkpoint.tensor_keys(folder)


# ---- writing --------------------------------------------------------------------------------


def test_write_replaces_a_checkpoint_as_a_whole(folder: Path) -> None:
    extra = {"1_Dense/config.json": {"bias": False}, "note.txt": "é\n", "x.bin": b"\0"}
    checkpoint.write(folder, {"c": TENSORS["b"]}, {"n": 1}, extra)
    assert checkpoint.tensor_keys(folder) == ["c"]
    assert json.loads((folder / "1_Dense" / "config.json").read_text()) == {"bias": False}
    assert (folder / "note.txt").read_bytes() == "é\n".encode()
    checkpoint.write(folder, TENSORS, {})
    assert not (folder / "note.txt").exists()
    assert os.listdir(folder.parent) == [folder.name]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(folder: Path) -> None:
    shared = {"x": TENSORS["b"], "y": TENSORS["b"]}  # safetensors refuses one storage, two names
    with pytest.raises(RuntimeError):
        checkpoint.write(folder, shared, {"new": True})
    assert checkpoint.tensor_keys(folder) == sorted(TENSORS)
    assert os.listdir(folder.parent) == [folder.name]


def test_write_spares_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    checkpoint.write(tmp_path / "mine", TENSORS, {})  # an empty folder may be filled
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BadInput, match="photos"):
        checkpoint.write(tmp_path / "photos", TENSORS, {})
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


# ---- the hub --------------------------------------------------------------------------------


@pytest.fixture
def remote(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A hub on this machine that has LFM2-350M, and an empty cache."""
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    files |= {"tokenizer.json": b"{}", "run_me.py": b"boom", "pytorch_model.bin": b"boom"}
    files |= {"model.safetensors": save({"w": torch.zeros(300_000)}), "LICENSE": b"be good"}
    repository = Repository(REPO, files)
    with serve(repository) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield repository


def test_fetch_tells_first_then_brings_what_is_safe(remote: Repository) -> None:
    plans: list[hub.Plan] = []
    steps: list[tuple[int, int]] = []

    def announce(plan: hub.Plan) -> None:
        plans.append(plan)
        assert not remote.bodies_sent()

    path = checkpoint.fetch(
        "LFM2-350M", announce=announce, progress=lambda *step: steps.append(step)
    )
    wanted = {n: b for n, b in remote.files.items() if not n.endswith((".py", ".bin"))}
    assert {p.name: p.read_bytes() for p in path.iterdir()} == wanted
    size = sum(map(len, wanted.values()))
    assert plans == [hub.Plan(REPO, COMMIT, "LFM Open License v1.0", size, 0)]
    assert steps == sorted(steps) and steps[-1] == (size, size)
    asked = len(remote.asked)
    assert checkpoint.locate("liquidai/lfm2-350m") == checkpoint.fetch("LFM2-350M") == path
    assert len(remote.asked) == asked, "what is here is not asked for again"


def test_the_cache_is_the_one_that_other_programs_use(remote: Repository) -> None:
    from huggingface_hub import try_to_load_from_cache

    path = checkpoint.fetch("LFM2-350M")
    cache = checkpoint.settings().cache
    for name in ("config.json", "model.safetensors"):
        assert try_to_load_from_cache(REPO, name, cache_dir=cache) == str(path / name)


def test_cached_and_remove(remote: Repository) -> None:
    assert checkpoint.cached() == []
    path = checkpoint.fetch("LFM2-350M")
    (row,) = checkpoint.cached()
    assert (row.name, row.path) == ("LFM2-350M", path) and row.bytes > 1_200_000
    assert checkpoint.remove("LFM2-350M") == row.bytes
    assert checkpoint.cached() == []
    with pytest.raises(NotAvailable, match="nothing to remove"):
        checkpoint.remove("LFM2-350M")
    with pytest.raises(BadInput, match="comes with the package"):
        checkpoint.remove("nano-colbert")


def test_a_broken_download_is_gone_on_with(remote: Repository) -> None:
    size, cut = len(remote.files["model.safetensors"]), 250_000
    remote.break_after = cut
    with pytest.raises(NotAvailable, match="bundled"):
        checkpoint.fetch("LFM2-350M")
    assert checkpoint.cached() == []
    got = cut * hub.ATTEMPTS
    assert remote.bodies_sent()[-1] == f"model.safetensorsbytes={got - cut}-"
    remote.break_after, remote.asked = None, []
    steps: list[int] = []
    path = checkpoint.fetch("LFM2-350M", progress=lambda done, _: steps.append(done))
    assert f"model.safetensorsbytes={got}-" in remote.bodies_sent() and steps[0] > got
    assert (path / "model.safetensors").stat().st_size == size
    assert dict(checkpoint.read_tensors(path))["w"].shape == (300_000,)


def test_a_server_without_ranges_starts_the_file_again(remote: Repository) -> None:
    remote.break_after, remote.ranges = 250_000, False
    with pytest.raises(NotAvailable):
        checkpoint.fetch("LFM2-350M")
    remote.break_after = None
    steps: list[int] = []
    path = checkpoint.fetch("LFM2-350M", progress=lambda done, _: steps.append(done))
    assert dict(checkpoint.read_tensors(path))["w"].shape == (300_000,)
    assert steps[-2] <= steps[-1], "bytes of the lost part are not counted"


def test_other_bytes_than_promised_are_not_kept(remote: Repository, monkeypatch) -> None:
    true_etag, name = remote.entry("model.safetensors"), "model.safetensors"
    remote.files[name] = remote.files[name][:-1] + b"\x01"
    entry = remote.entry
    monkeypatch.setattr(remote, "entry", lambda n: true_etag if n == name else entry(n))
    with pytest.raises(CheckpointDamaged, match="other bytes"):
        checkpoint.fetch("LFM2-350M")
    assert checkpoint.cached() == []


def test_a_copy_left_half_by_another_program_is_completed(remote: Repository) -> None:
    path = checkpoint.fetch("LFM2-350M")
    blob = (path / "model.safetensors").resolve()
    (path / "model.safetensors").unlink()
    blob.unlink(missing_ok=True)
    with pytest.raises(NotAvailable, match="not on this machine"):
        checkpoint.locate("LFM2-350M", offline=True)
    assert (checkpoint.locate("LFM2-350M") / "model.safetensors").is_file()


def test_a_disk_that_is_too_small_is_told_before_the_download(
    remote: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: _Full())
    with pytest.raises(NotAvailable, match=r"needs 1\.2 MB .* 0\.1 MB free"):
        checkpoint.fetch("LFM2-350M")
    assert not remote.bodies_sent()


class _Full:
    free = 100_000


def test_a_foreign_hub_id_is_fetched_with_its_own_licence(remote: Repository) -> None:
    remote.repo = "someone/some-colbert"
    plans: list[hub.Plan] = []
    path = checkpoint.fetch("someone/some-colbert", announce=plans.append)
    assert plans[0].licence == "apache-2.0" and (path / "config.json").is_file()


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (503, NotAvailable, "503"),
        (404, UnknownCheckpoint, "hub has no"),
        (500, NotAvailable, "500"),
    ],
)
def test_answers_of_a_hub_that_has_it_not(
    remote: Repository, status: int, error: type[Exception], says: str
) -> None:
    remote.status = status
    if status == 404:
        remote.status, remote.repo = 200, "LiquidAI/another"
    with pytest.raises(error, match=says) as caught:
        checkpoint.locate("LFM2-ColBERT-350M")
    assert str(caught.value).isprintable()


def test_offline_names_what_is_bundled(remote: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotAvailable, match=r"nano-colbert.*lfm2-mm fetch LFM2-ColBERT-350M"):
        checkpoint.locate("LFM2-ColBERT-350M", offline=True)
    with pytest.raises(NotAvailable, match="--model echo"):
        checkpoint.locate("LFM2-350M", fetch=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotAvailable, match="offline"):
        checkpoint.fetch("LFM2-350M")
    assert remote.asked == []


def test_a_hub_that_says_nothing_is_given_up_within_seconds(
    monkeypatch: pytest.MonkeyPatch, remote: Repository
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "ANSWER_S", 0.5)
        started = time.monotonic()
        with pytest.raises(NotAvailable, match="did not give LiquidAI/LFM2-350M"):
            checkpoint.locate("LFM2-350M")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("endpoint", ["http://[bad", "nonsense", "ftp://x", "http://h:99999"])
def test_an_endpoint_that_is_no_address_is_told(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(BadInput, match="is no server's address"):
        checkpoint.fetch("LFM2-350M")


def test_a_gigabyte_of_zeros_is_no_configuration(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    with pytest.raises(CheckpointDamaged, match="more than 64 MiB"):
        weights.read_json(folder / "config.json")
    with pytest.raises(CheckpointDamaged, match="larger than 64 MiB"):
        checkpoint.locate(folder)


def test_a_closed_door_is_told(monkeypatch: pytest.MonkeyPatch, remote: Repository) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotAvailable, match="refused"):
        checkpoint.locate("LFM2-350M")


# ---- what is bundled ------------------------------------------------------------------------


def test_the_bundled_checkpoint_is_here_whole_small_and_counted() -> None:
    row = registry.find("nano-colbert")
    folder = checkpoint.locate("nano-colbert", offline=True)
    assert folder == checkpoint.fetch("nano-colbert", offline=True)
    assert hub.size_of(folder) <= 10_000_000
    assert (folder / "MODEL_CARD.md").is_file(), "the model card"
    stored = dict(checkpoint.read_tensors(folder)) | dict(
        checkpoint.read_tensors(folder / "1_Dense")
    )
    assert checkpoint.parameters(row) == sum(tensor.numel() for tensor in stored.values())
