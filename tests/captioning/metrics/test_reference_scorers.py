"""Every metric against the reference scorers, on random and awkward captions and on such as people write.

CAPTIONING_EVALUATED names a file that `evaluate -o X.jsonl` wrote: its captions are scored as well.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.bleu import corpus_bleu
from captioning.metrics.cider import CiderD
from captioning.metrics.meteor import meteor
from captioning.metrics.rouge import rouge_l
from captioning.metrics.score import score_captions
from captioning.metrics.tokenize import ptb_tokenize
from tests.captioning.metrics.captions import random_corpus, written_corpus

Corpus = tuple[list[list[str]], list[list[list[str]]]]
#: One caption an image as text, and its references.
Texts = tuple[dict[str, str], dict[str, list[str]]]

EVALUATED = "CAPTIONING_EVALUATED"

AWKWARD: list[Corpus] = [
    ([[]], [[["a", "man"]]]),
    ([[]], [[[]]]),
    ([["a"]], [[["a"]]]),
    ([["a"]], [[["a", "dog"], ["a", "dog"]]]),
    ([["a", "man"]], [[["a", "man"], ["a", "man"]]]),
    ([["x"], ["a", "dog", "runs"]], [[["y"]], [["a", "dog", "runs"], ["a", "dog", "sits"]]]),
    ([["a"] * 30, ["a", "b"]], [[["a", "b", "c"]], [["a", "b"], ["b", "a"], []]]),
    # Closest reference length: one shorter and one longer by the same.
    ([["a", "b", "c", "d"]], [[["a", "b", "c", "d", "e"], ["a", "b", "c"]]]),
]


def evaluated() -> list[Texts]:
    """The captions of the file that the environment names, a corpus a decoding; none where it names none."""
    if EVALUATED not in os.environ:
        return []
    lines = [json.loads(line) for line in Path(os.environ[EVALUATED]).read_text(encoding="utf-8").splitlines()]
    corpora: dict[int, Texts] = {}
    for line in lines:
        captions, references = corpora.setdefault(line["beam_size"], ({}, {}))
        captions[line["key"]] = line["caption"]
        references[line["key"]] = line["references"]
    return list(corpora.values())


def tokenized(texts: Texts) -> Corpus:
    captions, references = texts
    return (
        [ptb_tokenize(caption) for caption in captions.values()],
        [[ptb_tokenize(each) for each in originals] for originals in references.values()],
    )


EVALUATED_TEXTS = evaluated()
WRITTEN = [written_corpus(seed) for seed in range(2)] + EVALUATED_TEXTS
CORPORA = AWKWARD + [random_corpus(seed) for seed in range(6)] + [tokenized(texts) for texts in WRITTEN]


def as_scored(corpus: Corpus) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    candidates, references = corpus
    originals = {image: [" ".join(each) for each in texts] for image, texts in enumerate(references)}
    return originals, {image: [" ".join(text)] for image, text in enumerate(candidates)}


def close(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return list(ours) == pytest.approx(list(theirs), rel=0, abs=1e-9)


@pytest.mark.parametrize("corpus", CORPORA)
def test_bleu(corpus: Corpus) -> None:
    theirs, _ = Bleu(4).compute_score(*as_scored(corpus), verbose=0)
    assert close(corpus_bleu(*corpus), theirs)


@pytest.mark.parametrize("corpus", CORPORA)
def test_rouge_l(corpus: Corpus) -> None:
    _, theirs = Rouge().compute_score(*as_scored(corpus))
    assert close([rouge_l(text, originals) for text, originals in zip(*corpus, strict=True)], theirs)


@pytest.mark.parametrize("corpus", [corpus for corpus in CORPORA if any(any(texts) for texts in corpus[1])])
def test_cider_d(corpus: Corpus) -> None:
    _, theirs = Cider().compute_score(*as_scored(corpus))
    scorer = CiderD(corpus[1])
    assert close([scorer.score(text, originals) for text, originals in zip(*corpus, strict=True)], theirs)


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


# Java reads its paraphrases for half a minute; a file that is asked for is always scored.
@needs_java
@pytest.mark.parametrize("texts", [pytest.param(WRITTEN[0], marks=pytest.mark.slow), *EVALUATED_TEXTS])
def test_meteor_is_that_of_its_jar_run_on_files(texts: Texts, tmp_path: Path) -> None:
    candidates, references = tokenized(texts)
    # The jar takes as many references a caption as its option says; one that comes twice changes nothing.
    count = max(map(len, references))
    padded = [[*originals, *[originals[-1]] * count][:count] for originals in references]
    (tmp_path / "captions").write_text("".join(" ".join(text) + "\n" for text in candidates), encoding="utf-8")
    (tmp_path / "references").write_text(
        "".join(" ".join(text) + "\n" for originals in padded for text in originals), encoding="utf-8"
    )
    jar = Path(next(iter(pycocoevalcap.__path__))) / "meteor" / "meteor-1.5.jar"
    locale = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    files = [str(tmp_path / "captions"), str(tmp_path / "references")]
    command = ["java", "-Xmx2G", *locale, "-jar", str(jar), *files, "-l", "en", "-norm", "-r", str(count)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = next(float(line.split()[-1]) for line in told.splitlines() if line.startswith("Final score:"))
    assert 0 < theirs < 1
    assert close([meteor(candidates, references)], [theirs])


@needs_java
@pytest.mark.parametrize("texts", WRITTEN)
def test_from_text_to_scores_as_the_coco_evaluation(texts: Texts) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions, references = texts
    as_coco = {image: [{"caption": each} for each in originals] for image, originals in references.items()}
    originals = PTBTokenizer().tokenize(as_coco)
    said = PTBTokenizer().tokenize({image: [{"caption": caption}] for image, caption in captions.items()})
    ours = score_captions(captions, references)
    bleu, _ = Bleu(4).compute_score(originals, said, verbose=0)
    rouge, _ = Rouge().compute_score(originals, said)
    cider, _ = Cider().compute_score(originals, said)
    theirs = [100 * each for each in (*bleu, rouge, cider)]
    assert close([*ours.bleu, ours.rouge_l, ours.cider_d], theirs)
