"""Where an image's file really is."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.image_jobs import locate_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "a.raw").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    return tmp_path / "images"


def locate(path: str | Path, *dirs: Path) -> dict[str, Any]:
    return locate_image({"path": str(path), "dirs": [str(folder) for folder in dirs]})


def test_locate_file_in_an_image_folder_gives_its_place(images: Path) -> None:
    assert locate(images / "sub" / "a.raw", images) == {"folder": str(images / "sub"), "name": "a.raw"}


def test_locate_through_links_within_gives_the_place_without_them(images: Path, tmp_path: Path) -> None:
    (images / "link").symlink_to("sub/a.raw")
    (tmp_path / "dir-link").symlink_to(images)
    found = {"folder": str(images / "sub"), "name": "a.raw"}
    assert locate(images / "link", images) == found
    assert locate(tmp_path / "dir-link" / "link", tmp_path / "dir-link") == found


def test_locate_file_that_is_also_outside_by_a_hard_link_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("secret")
    os.link(tmp_path / "keys.json", images / "keys.img")
    answer = locate(images / "keys.img", images)
    assert (answer["fault"], "another name" in answer["detail"]) == ("source_unreadable", True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("images/../secret", "in none of"),
        ("images/out", "in none of"),
        ("images/out-dir/secret", "in none of"),
        ("images-beside/a.raw", "in none of"),
        ("images", "in none of"),
        ("images/sub", "no regular file"),
        ("images/pipe", "no regular file"),
        ("images/missing", "is not there"),
        ("images/sub/a.raw/b", "is not there"),
        ("images/broken", "is not there"),
    ],
)
def test_locate_anything_else_is_refused(images: Path, tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "images-beside").mkdir()
    (tmp_path / "images-beside" / "a.raw").write_bytes(b"x")
    (images / "out").symlink_to(tmp_path / "secret")
    (images / "out-dir").symlink_to(tmp_path)
    (images / "broken").symlink_to("missing")
    os.mkfifo(images / "pipe")
    answer = locate(tmp_path / path, images)
    assert answer["fault"] == "source_unreadable"
    assert said in answer["detail"]


@pytest.mark.parametrize("path", ["a.raw", "", "images/a.raw", "/a\0b"])
def test_locate_no_absolute_path_is_refused(images: Path, path: str) -> None:
    assert "no absolute path" in locate(path, images)["detail"]


def test_locate_on_a_host_without_image_folders_is_refused(images: Path) -> None:
    assert "in none of" in locate(images / "sub" / "a.raw")["detail"]
