from pathlib import Path

import pytest

from captioning.data.texts import read_captions
from captioning.errors import InputError
from captioning.storage import Location


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", "A dog, running\n\n  A cat \n"),
        ("captions.txt", 'image,caption\n1.jpg,"A dog, running"\n2.jpg,A cat\n'),
        ("captions.txt", "image_name| comment_number| comment\n1.jpg| 0| A dog, running\n1.jpg| 1| A cat\n"),
        ("captions.csv", 'image,caption\n1.jpg,"A dog, running"\n2.jpg,A cat\n'),
    ],
)
def test_a_line_is_a_caption_unless_the_first_one_names_columns(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_captions(Location.parse(str(tmp_path / name))) == ["A dog, running", "A cat"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,caption,split\na.jpg,to learn,train\nb.jpg,kept for the end,test\nc.jpg,kept to judge,val\n"),
        (
            "a.json",
            '{"images": [{"filename": "a.jpg", "split": "restval", "sentences": [{"raw": "to learn"}]},'
            ' {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "kept for the end"}]}]}',
        ),
    ],
)
def test_what_a_captioner_is_judged_by_is_not_learned(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_captions(Location.parse(str(tmp_path / name))) == ["to learn"]
    (tmp_path / name).write_text(text.replace("restval", "val").replace(",train\n", ",val\n"))
    with pytest.raises(InputError, match="splits other than train"):
        read_captions(Location.parse(str(tmp_path / name)))


def test_a_table_without_a_header_is_no_list_of_captions(tmp_path: Path) -> None:
    (tmp_path / "results.txt").write_text("a.jpg|0|a dog\nb.jpg|0|a cat\n")
    assert read_captions(Location.parse(str(tmp_path / "results.txt"))) == ["a dog", "a cat"]
