import json

import pytest

from captioning.data.annotations import Annotation, read_annotations, read_splits
from captioning.data.problems import Problems
from captioning.errors import InputError

KARPATHY = {
    "dataset": "flickr30k",
    "images": [
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A dog, running."}, {"raw": "It runs"}]},
        {"filename": "2.jpg", "split": "val", "sentences": [{"raw": 'A "cat" sits.'}, {"tokens": ["a", "cat"]}]},
    ],
}
CAPTIONS = {"1.jpg": ("A dog, running.", "It runs"), "2.jpg": ('A "cat" sits.', "a cat")}

BARS = """image_name| comment_number| comment
1.jpg| 0| A dog, running.
1.jpg| 1| It runs
2.jpg| 0| A "cat" sits.
2.jpg| 1| a cat
"""
COMMAS = """image,caption
1.jpg,A dog, running.
1.jpg,It runs
2.jpg,A "cat" sits.
2.jpg,a cat
"""
QUOTED = """image,caption
1.jpg,"A dog, running."
1.jpg,It runs
2.jpg,"A ""cat"" sits."
2.jpg,a cat
"""
NUMBERED = """image_name,comment_number,comment
1.jpg,0, A dog, running.
1.jpg,1, It runs
2.jpg,0, A "cat" sits.
2.jpg,1, a cat
"""
HEADERLESS = BARS.partition("\n")[2]


def read(text, dataset="flickr30k"):
    problems = Problems()
    data = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    return read_annotations(dataset, data, problems, where="file"), problems


@pytest.mark.parametrize("layout", [BARS, COMMAS, QUOTED, NUMBERED, HEADERLESS, KARPATHY, BARS.replace("\n", "\r\n")])
def test_every_layout_of_flickr30k_gives_the_same_captions(layout):
    annotations, problems = read(layout)
    assert {a.image: a.captions for a in annotations} == CAPTIONS
    assert not problems


@pytest.mark.parametrize("layout", [COMMAS, QUOTED, COMMAS.replace(",", "\t", 1).replace("jpg,", "jpg\t"), BARS])
def test_csv_takes_any_table(layout):
    annotations, problems = read(layout, "csv")
    assert {a.image: a.captions for a in annotations} == CAPTIONS
    assert not problems


def test_a_byte_order_mark_is_no_part_of_the_header():
    assert read(b"\xef\xbb\xbf" + COMMAS.encode())[0] == read(COMMAS)[0]
    assert read(b"\xef\xbb\xbf" + json.dumps(KARPATHY).encode())[0] == read(KARPATHY)[0]


def test_a_word_that_another_layout_has_for_a_key_decides_nothing():
    words = ["handwritten", "annotations", "split", "sentences"]
    image = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A page", "tokens": words}]}
    assert read({"images": [image]}, "coco")[0][0].captions == ("A page",)
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "sentences"}]}
    assert read(coco, "coco")[0][0].captions == ("sentences",)


def test_half_a_character_is_replaced():
    annotations, problems = read({"images": [{"filename": "1.jpg", "sentences": [{"raw": "a dog \ud83d runs"}]}]})
    assert annotations[0].captions == ("a dog \ufffd runs",)
    assert "an incomplete character" in problems.lines()[0]


def test_problems_in_a_table_are_reported_with_their_lines():
    annotations, problems = read(
        "image_name| comment_number| comment\n"
        "1.jpg| 0| A  dog . \n"
        "1.jpg| 1|   \n"
        "2.jpg| 4   A dog runs across the grass .\n"
        "\n"
        "nothing at all\n"
        "| 0| An image is missing\n"
        "3.jpg| 0|\n"
    )
    assert [(a.image, a.captions) for a in annotations] == [
        ("1.jpg", ("A dog .",)),
        ("2.jpg", ("A dog runs across the grass .",)),
    ]
    assert problems.examples == {
        "captions with stray spaces, tidied": ["file:2"],
        "empty captions, skipped": ["file:3", "file:8"],
        "lines with a missing bar, repaired": ["file:4"],
        "lines without an image or a caption, skipped": ["file:6"],
        "captions without an image name, skipped": ["file:7"],
        "images without a usable caption, skipped": ["3.jpg"],
    }


def test_bytes_that_are_not_utf8_are_replaced_and_reported():
    annotations, problems = read(b"image,caption\n1.jpg,a caf\xe9\n2.jpg,caf\xc3\xa9\n")
    assert [a.captions for a in annotations] == [("a caf\ufffd",), ("café",)]
    assert problems.examples == {"lines that are not UTF-8, invalid bytes replaced": ["file:2"]}


def test_a_quoted_caption_may_run_over_lines_and_numbers_stay_right():
    annotations, problems = read('image,caption\n1.jpg,"A dog,\nrunning."\n2.jpg,\n', "csv")
    assert [a.captions for a in annotations] == [("A dog, running.",)]
    assert problems.examples["empty captions, skipped"] == ["file:4"]


def test_a_quote_that_is_never_closed_is_a_plain_character():
    annotations, _ = read('image,caption\n1.jpg,"Go, he says\n2.jpg,A "cat"\n3.jpg,"Go" he says\n', "csv")
    assert [a.captions for a in annotations] == [('"Go, he says',), ('A "cat"',), ('"Go" he says',)]


def test_a_table_may_have_other_columns_and_a_split():
    annotations, _ = read('id,caption,split,filename\n7,"A dog, running",val,1.jpg\n8,A cat,,2.jpg\n', "csv")
    assert [(a.image, a.captions, a.split) for a in annotations] == [
        ("1.jpg", ("A dog, running",), "val"),
        ("2.jpg", ("A cat",), None),
    ]


def test_karpathys_coco_layout_gives_paths_ids_and_restval_as_train():
    image = {
        "filepath": "val2014",
        "filename": "COCO_1.jpg",
        "cocoid": 17,
        "split": "restval",
        "sentences": [{"raw": "A"}],
    }
    annotations, _ = read({"images": [image]}, "coco")
    assert annotations == [Annotation("val2014/COCO_1.jpg", "17", ("A",), "train")]


def test_problems_in_karpathys_layout_are_reported():
    images = [
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": ""}, {"raw": "A dog"}, {}, None]},
        {"split": "train", "sentences": []},
        {"filename": "2.jpg", "split": "train"},
        {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "Again"}]},
    ]
    annotations, problems = read({"images": images, "sentences": []})
    assert [(a.image, a.captions) for a in annotations] == [("1.jpg", ("A dog", "Again"))]
    assert problems.counts == {
        "empty captions, skipped": 3,
        "images without a file name, skipped": 1,
        "images listed twice, their captions merged": 1,
        "images without a usable caption, skipped": 1,
    }


def test_coco_annotations_are_joined_with_their_images():
    coco = {
        "images": [{"id": 5, "file_name": "5.jpg"}, {"id": 6, "file_name": "6.jpg"}, {"id": 7}],
        "annotations": [
            {"image_id": 5, "caption": "A dog\n"},
            {"image_id": 9, "caption": "Of no image"},
            {"image_id": 5, "caption": "It runs"},
            {"image_id": 5},
        ],
    }
    annotations, problems = read(coco, "coco")
    assert annotations == [Annotation("5.jpg", "5", ("A dog", "It runs"))]
    assert problems.examples == {
        "images without an id or a file name, skipped": ["file: images[2]"],
        "captions with stray spaces, tidied": ["file: annotations[0]"],
        "captions of images that are not listed, skipped": ["file: annotations[1]"],
        "empty captions, skipped": ["file: annotations[3]"],
        "images without a usable caption, skipped": ["6.jpg"],
    }


@pytest.mark.parametrize(
    ("dataset", "text", "message"),
    [
        ("flickr8k", BARS, "Unknown dataset 'flickr8k'.*flickr30k, coco, csv"),
        ("flickr30k", "", "empty"),
        ("flickr30k", "image,caption\n1.jpg,\n", "no usable caption(.|\n)*1 empty captions.*file:2"),
        ("flickr30k", '{"annotations": [], "images": []}', "prepare coco"),
        ("csv", json.dumps(KARPATHY), "prepare flickr30k or coco"),
        ("coco", BARS, "prepare flickr30k or csv"),
        ("flickr30k", '{"images": 3, "sentences": 4}', "no list of objects 'images'"),
        ("flickr30k", '{"images": [{"sentences": [', "not valid JSON.*downloaded completely"),
        ("coco", '{"something": 1}', "neither Karpathy's JSON"),
        ("csv", "name,words\na,b\n", "no columns.*'name,words'.*image,caption"),
        ("csv", "image,words\na,b\n", "no columns.*'image,words'"),
        ("csv", "just text\n", "no columns"),
        ("csv", "image,caption\n".encode("utf-16-le"), "not UTF-8"),
    ],
)
def test_what_cannot_be_used_at_all_is_an_input_error(dataset, text, message):
    with pytest.raises(InputError, match=message):
        read(text, dataset)


def test_splits_come_from_karpathys_json():
    assert read_splits(json.dumps(KARPATHY).encode(), where="file") == {"1.jpg": "train", "2.jpg": "val"}


@pytest.mark.parametrize("text", [BARS, '{"images": [{"filename": "1.jpg", "sentences": []}]}'])
def test_a_splits_file_without_splits_is_refused(text):
    with pytest.raises(InputError, match="split"):
        read_splits(text.encode(), where="file")
