from pathlib import Path

import pytest

from captioning.data.texts import read_captions
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
