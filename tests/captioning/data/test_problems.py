from captioning.data.problems import Problems


def test_counts_and_shows_the_first_examples():
    problems = Problems()
    problems.add_all("empty captions", [f"results.csv:{line}" for line in range(2, 7)])
    problems.add("strange images", "a.jpg")
    assert problems.lines() == [
        "5 empty captions: results.csv:2, results.csv:3, results.csv:4, …",
        "1 strange images: a.jpg",
    ]


def test_merging_adds_counts_and_keeps_few_examples():
    problems, other = Problems(), Problems()
    problems.add("empty captions", "a:1")
    other.add_all("empty captions", ["b:1", "b:2", "b:3"])
    other.add("strange images", "c.jpg")
    problems.merge(other)
    assert problems.counts == {"empty captions": 4, "strange images": 1}
    assert problems.examples["empty captions"] == ["a:1", "b:1", "b:2"]
    assert other.examples["empty captions"] == ["b:1", "b:2", "b:3"]


def test_is_false_while_nothing_is_wrong():
    assert not Problems()
