"""Finding files: deterministic, each once, nothing hidden, no loop, every name kept as it is."""

import os
import socket
import sys
from pathlib import Path

import pytest

from lfm2_mm.errors import BadInput, Unreadable
from retrieval.documents import find_files, path_of, read, source_of

POSIX_NAMES = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux file systems take any bytes as a name"
)


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b.txt",
        "a/z.md",
        "a/b/c.py",
        "a.txt",
        ".hidden",
        ".git/config",
        "node_modules/x/y.js",
        "a/__pycache__/c.pyc",
        "myenv/pyvenv.cfg",
        "myenv/lib/x.py",
        "target/CACHEDIR.TAG",
        "target/x.rs",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text of " + name)
    return Path(os.path.realpath(tmp_path))


def names(tree, found):
    return [path.relative_to(tree).as_posix() for path in found]


def test_folders_are_walked_in_order_without_hidden_and_generated_ones(tree):
    assert names(tree, find_files([tree])) == ["a/b/c.py", "a/z.md", "a.txt", "b.txt"]


def test_what_is_named_is_always_taken_and_each_file_once(tree):
    asked = [tree / "a", tree / ".hidden", tree, tree / "b.txt", str(tree / "a" / ".." / "b.txt")]
    assert names(tree, find_files(asked)) == [".hidden", "b.txt", "a/b/c.py", "a/z.md", "a.txt"]
    assert names(tree, find_files([tree / "myenv"])) == ["myenv/lib/x.py", "myenv/pyvenv.cfg"]


def test_an_ignored_folder_is_passed_over(tree):
    assert names(tree, find_files([tree], ignore=[tree / "a"])) == ["a.txt", "b.txt"]


def test_a_missing_path_is_named_before_anything_is_found(tree):
    with pytest.raises(BadInput, match=r"missing\.txt: No such file"):
        next(find_files([tree, tree / "missing.txt"]))
    with pytest.raises(BadInput, match="null"):
        next(find_files(["nul\0byte"]))


def test_links_files_are_followed_folders_told_and_loops_end(tree):
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "a" / "self").symlink_to("self")
    (tree / "also.txt").symlink_to(tree / "b.txt")
    (tree / "gone.txt").symlink_to(tree / "nowhere")
    found = list(find_files([tree]))
    assert names(tree, found) == [
        "a/b/c.py",
        "a/loop",
        "a/self",
        "a/z.md",
        "a.txt",
        "b.txt",
        "gone.txt",
    ]
    reasons = {"loop": "a link to a folder", "self": "symbolic links", "gone.txt": "No such file"}
    for path in found:
        if path.name in reasons:
            with pytest.raises(Unreadable, match=reasons[path.name]):
                read(path)
    assert read(tree / "also.txt").source == source_of(tree / "b.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    monkeypatch.chdir(tmp_path)  # the path of a socket is limited to 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        for path in (tmp_path / "pipe.txt", tmp_path / "socket.txt", "/dev/zero"):
            with pytest.raises(Unreadable, match="not a regular file"):
                read(path)


def test_a_folder_that_may_not_be_listed_is_told(tree, without_rights):
    closed = tree / "a" / "b"
    without_rights(closed)
    found = list(find_files([tree]))
    assert names(tree, found)[0] == "a/b"
    with pytest.raises(Unreadable, match="Permission denied"):
        read(closed)


def test_a_file_that_may_not_be_read_is_told(tree, without_rights):
    without_rights(tree / "b.txt")
    with pytest.raises(Unreadable, match="Permission denied"):
        read(tree / "b.txt")


@pytest.fixture
def without_rights(tree):
    """Take all rights from a path, and those of the superuser from this process."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system knows no such rights")
    user, closed = os.geteuid(), []

    def close(path):
        closed.append((path, path.stat().st_mode))
        path.chmod(0)
        if user == 0:
            for parent in (tree, *tree.parents):
                if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                    parent.chmod(0o755)
            os.seteuid(65534)

    yield close
    os.seteuid(user)
    for path, mode in closed:
        path.chmod(mode)


@POSIX_NAMES
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name.txt", "plain name.txt"),
        (b"two\nlines.txt", r"two\x0alines.txt"),
        (b"latin \xe9.txt", r"latin \xe9.txt"),
        (b"back\\x0aslash.txt", r"back\x5cx0aslash.txt"),
        ("übung 日本語 👩‍👧.txt".encode(), "übung 日本語 👩‍👧.txt"),
        (b"esc\x1b[31m.txt", r"esc\x1b[31m.txt"),
        ("sep\u2028.txt".encode(), r"sep\xe2\x80\xa8.txt"),
        (b"a...txt", "a...txt"),
        (b"n" * 255, "n" * 255),
    ],
)
def test_any_name_becomes_printable_text_and_back(tmp_path, name, shown):
    folder = os.path.realpath(tmp_path)
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    path.write_text("text")
    assert list(find_files([folder])) == [path]
    document = read(path)
    assert document.source == f"{folder}/{shown}"
    assert document.source.encode("utf-8")
    assert "\n" not in document.title
    assert path_of(document.source) == path


def test_sources_are_absolute_and_resolved(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    assert read(Path("..") / "b.txt").source == (tree / "b.txt").as_posix()


def test_a_name_that_is_too_long_is_told_in_one_short_line():
    with pytest.raises(Unreadable, match="too long") as caught:
        read("x" * 5000)
    assert len(str(caught.value)) < 400


def test_a_folder_deeper_than_a_path_may_be_long(tmp_path):
    """Made from inside, since no single path reaches the end of it."""
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
    finally:
        os.chdir(here)
    found = list(find_files([tmp_path]))
    assert len(found) == 1
    with pytest.raises(Unreadable, match="too long"):
        read(found[0])
