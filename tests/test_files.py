"""Folders that are replaced whole: only what an earlier run of ours left, and never an input."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from anycharv_core.errors import UserError
from anycharv_core.files import (
    MANIFEST,
    atomic_folder,
    atomic_path,
    check_owned,
    file_digest,
    intact,
    owned_folder,
)


def fill(folder: Path, names: list[str], text: str = "new", inputs: tuple[Path, ...] = ()) -> None:
    with owned_folder(folder, inputs) as temporary:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_a_folder_of_ours_is_replaced_with_what_it_held(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, ["a.txt", "person_1/b.txt"], "old")
    fill(out, ["a.txt", "person_2/c.txt"])
    assert content(out) == {"a.txt": "new", "person_2/c.txt": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    named = json.loads((out / MANIFEST).read_text())["files"]
    assert named["a.txt"] == {"bytes": 3, "sha256": file_digest(out / "a.txt").hex()}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    for each in (owned_folder, atomic_folder):
        (out := tmp_path / each.__name__).mkdir()
        with each(out) as temporary:
            (temporary / "a").touch()
        assert (out / "a").exists()


def foreign_file(out: Path) -> str:
    (out / "person_photos").mkdir()
    (out / "person_photos" / "mum.jpg").write_text("dear", encoding="utf-8")
    return "person_photos/mum.jpg"


def changed_file(out: Path) -> str:
    (out / "a.txt").write_text("own", encoding="utf-8")
    return "a.txt"


def linked_file(out: Path) -> str:
    (out.parent / "kept.txt").write_text("old", encoding="utf-8")
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(out.parent / "kept.txt")
    return "a.txt"


def linked_folder(out: Path) -> str:
    (out.parent / "photos").mkdir()
    (out / "photos").symlink_to(out.parent / "photos")
    return "photos"


def torn_manifest(out: Path) -> str:
    (out / MANIFEST).write_text('{"files"', encoding="utf-8")
    return MANIFEST


def wrong_manifest(out: Path) -> str:
    (out / MANIFEST).write_text('{"files": ["a.txt"]}', encoding="utf-8")
    return "a.txt"


def no_manifest(out: Path) -> str:
    (out / MANIFEST).unlink()
    return "a.txt"


@pytest.mark.parametrize(
    "change",
    [foreign_file, changed_file, linked_file, linked_folder, torn_manifest, wrong_manifest, no_manifest],
)
def test_whatever_the_manifest_does_not_name_stays(tmp_path: Path, change) -> None:
    out = tmp_path / "out"
    fill(out, ["a.txt"], "old")
    name = change(out)
    before = content(out)
    with pytest.raises(UserError) as caught:
        fill(out, ["a.txt"])
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert content(out) == before
    assert not list(tmp_path.glob(".writing-*"))


def test_what_appears_while_the_folder_is_being_made_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, ["a.txt"], "old")
    with pytest.raises(UserError, match=r"late\.txt"), owned_folder(out) as temporary:
        (temporary / "a.txt").touch()
        (out / "late.txt").write_text("late", encoding="utf-8")
    assert content(out) == {"a.txt": "old", "late.txt": "late"}


def test_no_input_is_replaced_under_any_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, ["person_1/clip.mp4", "masks/0.png"], "old")
    (tmp_path / "link").symlink_to(out / "person_1" / "clip.mp4")
    (tmp_path / "way").symlink_to(out)
    for given in (
        out,
        out / "masks",
        out / "person_1" / "clip.mp4",
        tmp_path / "link",
        tmp_path / "way" / "masks",
    ):
        with pytest.raises(UserError, match=r"would be replaced; choose a new folder"):
            fill(out, ["a.txt"], inputs=(given,))
    assert content(out) == {"person_1/clip.mp4": "old", "masks/0.png": "old"}
    fill(tmp_path / "way", ["a.txt"], inputs=(tmp_path / "elsewhere.mp4",))
    assert content(out) == {"a.txt": "new"} and (tmp_path / "way").is_symlink()


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, ["a.txt"], "old")
    with pytest.raises(KeyboardInterrupt), owned_folder(out) as temporary:
        (temporary / "a.txt").touch()
        raise KeyboardInterrupt
    assert content(out) == {"a.txt": "old"} and [path.name for path in tmp_path.iterdir()] == ["out"]
    check_owned(out)


def test_an_atomic_folder_replaces_nothing(tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "file"
    fill(out, ["a.txt"], "old")
    file.touch()
    with pytest.raises(UserError, match="is not empty"), atomic_folder(out):
        pass
    for each in (atomic_folder, owned_folder):
        with pytest.raises(UserError, match="not a folder"), each(file):
            pass
    assert content(out) == {"a.txt": "old"} and file.exists()


def test_a_folder_is_intact_only_while_it_is_as_it_was_written(tmp_path: Path) -> None:
    assert not intact(tmp_path / "none") and not intact(tmp_path)
    for change in (foreign_file, changed_file, linked_file, torn_manifest, wrong_manifest, no_manifest):
        (place := tmp_path / change.__name__).mkdir()
        fill(place / "out", ["a.txt"], "old")
        assert intact(place / "out")
        change(place / "out")
        assert not intact(place / "out")
    fill(tmp_path / "out", ["a.txt"])
    (tmp_path / "out" / "a.txt").unlink()
    assert not intact(tmp_path / "out")


def test_a_read_only_disk_is_named_even_though_nothing_can_be_removed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a disk refuses to remove files that were never there, too."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".writing-1"))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(UserError, match="that disk is read-only"), atomic_path(tmp_path / "result.mp4"):
        pytest.fail("it was written to")
