"""Self-critical training: gradient, baseline, rewards, and that it learns."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captioning.data.preprocess import Preprocess
from captioning.data.shards import ShardSet, iterate_shard
from captioning.metrics.cider import CiderD
from captioning.metrics.tokenize import ptb_tokenize
from captioning.models.base import PAD_TARGET
from captioning.models.cnn_lstm import CnnLstm
from captioning.storage import Location
from captioning.training.batches import Batch
from captioning.training.objectives.reward import END, CiderReward, has_immediate_repeat, train_split_cider
from captioning.training.objectives.self_critical import SelfCritical, SelfCriticalSettings, without_dropout
from tests.captioning.decoding.fakes import LogitsStepper
from tests.tiny import CAPTIONS, PREPROCESS, tiny_model, tiny_settings, tiny_tokenizer, write_tiny_shards

TOKENIZER = tiny_tokenizer()
SQUARES = CiderD([[[*ptb_tokenize(caption), END]] for caption in CAPTIONS])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 12, "val": 2})


@pytest.fixture(scope="module")
def batch(shards: ShardSet) -> Batch:
    """Three images with one to three captions each."""
    samples = [next(iterate_shard(shards.location, "train-000000.tar", [at])) for at in range(3)]
    preprocess = Preprocess(PREPROCESS)
    captions = [[*TOKENIZER.encode(text), TOKENIZER.eos_id] for sample in samples for text in sample.captions]
    return Batch(
        tuple(sample.key for sample in samples),
        torch.stack([torch.from_numpy(preprocess.from_bytes(sample.image).pixels) for sample in samples]),
        torch.tensor(captions),
        torch.tensor([at for at, sample in enumerate(samples) for _ in sample.captions]),
        tuple(sample.captions for sample in samples),
    )


class WordReward:
    """Rewards words of a caption, and records its inputs."""

    def __init__(self, worth: dict[str, float]) -> None:
        self.worth = worth
        self.asked: list[list[str | None]] = []

    def __call__(
        self, keys: Sequence[str], candidates: Sequence[Sequence[str | None]], references: Sequence[Sequence[str]]
    ) -> Tensor:
        self.asked = [list(texts) for texts in candidates]
        return torch.tensor([[self.value(text) for text in texts] for texts in candidates])

    def value(self, text: str | None) -> float:
        return 0.0 if text is None else sum(self.worth.get(word, 0.1) for word in text.split())


class RecordedSamples(SelfCritical):
    """Records the samples of its last step."""

    def _sample(self, model: object, features: object) -> Tensor:
        self.samples = super()._sample(model, features)  # type: ignore[arg-type]
        return self.samples


def objective(max_new_tokens: int = 5, **settings: object) -> RecordedSamples:
    made = RecordedSamples(
        SelfCriticalSettings(**settings),  # type: ignore[arg-type]
        TOKENIZER,
        SQUARES,
        max_new_tokens=max_new_tokens,
    )
    made.reward = WordReward({"square": 3.0, "red": 1.0})
    return made


def gradients(model: CnnLstm) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_gradient_is_that_of_reinforce_with_the_others_as_baseline(batch: Batch, temperature: float) -> None:
    model = tiny_model(tiny_settings(tune_from="all"))
    critical = objective(samples=4, temperature=temperature)
    torch.manual_seed(3)
    critical.loss(model, batch).total.backward()
    found = gradients(model)

    # The same computed one caption at a time, step by step.
    model.zero_grad()
    total = torch.zeros(())
    for image in range(3):
        rows = critical.samples[4 * image : 4 * image + 4].tolist()
        rewards = [critical.reward.value(text_of(row)) for row in rows]  # type: ignore[attr-defined]
        for at, row in enumerate(rows):
            others = rewards[:at] + rewards[at + 1 :]
            advantage = rewards[at] - sum(others) / 3
            stepper = LogitsStepper(model.stepper(model.encode(batch.pixels[image : image + 1])))  # type: ignore[index]
            logits, said = stepper.start(), [token for token in row if token != PAD_TARGET]
            for step, token in enumerate(said):
                scaled = logits[0] / temperature
                allowed = torch.ones(model.vocab_size, dtype=torch.bool)
                allowed[list(TOKENIZER.banned_ids)] = False
                total = total - advantage * (scaled[token] - scaled[allowed].logsumexp(0)) / 5
                if step + 1 < len(said):
                    logits = stepper.advance(torch.tensor([token]), [0])
    total.backward()
    expected = gradients(model)
    assert found.keys() == expected.keys()
    assert float(found["bias"].abs().max()) > 0.01
    for name, gradient in found.items():
        scale = float(expected[name].abs().max())
        assert float((gradient - expected[name]).abs().max()) <= 1e-4 * scale + 1e-7, name


def text_of(row: list[int]) -> str | None:
    return TOKENIZER.decode(row[: row.index(TOKENIZER.eos_id)]) if TOKENIZER.eos_id in row else None


def test_captions_of_one_advantage_teach_nothing(batch: Batch) -> None:
    """The baseline is per image: an image with higher rewards than others gives no gradient for that."""
    model = tiny_model(tiny_settings(tune_from="all"))
    critical = objective()
    critical.reward = lambda keys, candidates, references: torch.tensor([[9.0] * 5, [0.0] * 5, [4.0] * 5])
    critical.loss(model, batch).total.backward()
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients(model).values())


def test_when_to_end_is_learned(batch: Batch) -> None:
    """If all samples are EOS or a word and EOS, only EOS has a gradient."""
    model = tiny_model()
    with torch.no_grad():
        model.embed.weight.zero_()
        model.bias.fill_(-40)
        word = TOKENIZER.encode("square")[0]
        model.bias[[TOKENIZER.eos_id, word]] = 0
    critical = objective(samples=16, max_new_tokens=2)
    critical.reward = lambda keys, candidates, references: torch.tensor(
        [[float(text == "") for text in texts] for texts in candidates]
    )
    critical.loss(model, batch).total.backward()
    assert model.bias.grad is not None
    # The empty caption has a reward, so EOS becomes likelier; truncated samples have none, so the word becomes rarer.
    assert float(model.bias.grad[TOKENIZER.eos_id]) < -0.01
    assert float(model.bias.grad[word]) > 0.01


def test_a_model_raises_its_own_reward(batch: Batch) -> None:
    model = tiny_model()
    critical = SelfCritical(SelfCriticalSettings(), TOKENIZER, SQUARES, max_new_tokens=8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    torch.manual_seed(0)
    # A little cross entropy first: self-critical training cannot start from nonsense.
    for _ in range(8):
        optimizer.zero_grad()
        scored = model(model.encode(batch.pixels), batch.captions, batch.image_index)  # type: ignore[arg-type]
        torch.nn.functional.cross_entropy(scored.logits, batch.captions.flatten()).backward()
        optimizer.step()

    rewards = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = critical.loss(model, batch)
        (loss.total / critical.units(batch)).backward()
        optimizer.step()
        rewards.append(loss.metrics["reward"] / critical.units(batch))
    before, after = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert before < 4
    assert after > before + 3


def test_units_and_facts(batch: Batch) -> None:
    model = tiny_model(tiny_settings(dropout=0.5)).train()
    critical = objective(samples=6, max_new_tokens=4)
    loss = critical.loss(model, batch)
    samples, reward = critical.samples, critical.reward
    assert isinstance(reward, WordReward)
    assert critical.units(batch) == 18 == len(samples)
    assert [[text_of(row) for row in samples[6 * at : 6 * at + 6].tolist()] for at in range(3)] == reward.asked
    facts = loss.metrics
    assert facts["length"] == int((samples != PAD_TARGET).sum())
    assert facts["cut"] == sum(text is None for texts in reward.asked for text in texts) > 0
    assert facts["distinct"] == sum(len(set(texts)) for texts in reward.asked)
    assert facts["reward"] == pytest.approx(sum(reward.value(text) for texts in reward.asked for text in texts))
    assert -18 * 5 < facts["log_prob"] < 0
    assert facts["loss"] == pytest.approx(float(loss.total.detach()))
    assert model.training
    assert model.dropout.training


def test_dropout_is_off_and_the_recurrence_can_still_be_differentiated() -> None:
    model = tiny_model(tiny_settings(dropout=0.5)).train()
    with without_dropout(model):
        assert not model.training
        assert not model.dropout.training
        assert model.lstm.training  # cuDNN refuses gradients otherwise
    assert model.dropout.training


def test_under_autocast_every_weight_has_its_gradient(batch: Batch) -> None:
    """Sampling first casts the weights without gradients; those casts must not be used again."""
    model = tiny_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = objective().loss(model, batch).total
    total.backward()
    assert gradients(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_share_of_cross_entropy(batch: Batch) -> None:
    model = tiny_model()
    totals = []
    for weight in (0.0, 0.25):
        critical = objective(samples=4, cross_entropy_weight=weight)
        torch.manual_seed(5)
        totals.append(float(critical.loss(model, batch).total.detach()))
    plain = 0.0
    for image, texts in enumerate(batch.references):
        features = model.encode(batch.pixels[image : image + 1])  # type: ignore[index]
        tokens = torch.tensor([[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in texts])
        logits = model(features, tokens, torch.zeros(len(texts), dtype=torch.long)).logits
        loss = torch.nn.functional.cross_entropy(logits, tokens.flatten(), reduction="sum")
        plain += 4 * float(loss.detach()) / len(texts) / 5
    assert totals[1] == pytest.approx(0.75 * totals[0] + 0.25 * plain, rel=1e-4)


REFERENCES = (("a red square at the top", "the red square"), ("two dogs run",))


def test_the_reward_is_cider_with_the_end_as_a_word() -> None:
    found = CiderReward(SQUARES)(
        ["x", "y"], [["a red square at the top", "two"], ["a dog", "two dogs run"]], REFERENCES
    )

    def words(text: str) -> list[str]:
        return [*text.split(), END]

    expected = [
        [SQUARES.score(words(text), [words(reference) for reference in references]) for text in texts]
        for texts, references in zip(
            (["a red square at the top", "two"], ["a dog", "two dogs run"]), REFERENCES, strict=True
        )
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[1, 1] == pytest.approx(10)


def test_an_ending_in_the_midst_costs() -> None:
    """With plain CIDEr-D "… and a" would cost nothing, as all its words are in the references."""
    reference = "a dog and a cat and a man"
    scorer = CiderD([[[*text.split(), END]] for text in (reference, *CAPTIONS)])
    whole, dangling = CiderReward(scorer)(["x"], [["a dog and a man", "a dog man and a"]], [[reference]])[0]
    assert dangling < 0.6 * whole


def test_flawed_captions_earn_nothing() -> None:
    reward = CiderReward(SQUARES)
    flawed = [None, "", "a red red square", "a red a red square"]
    found = reward(["x"], [[*flawed, "a red square"]], REFERENCES[:1])[0]
    assert found[:4].tolist() == [0, 0, 0, 0]
    assert found[4] > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a dog a cat", False), ("a a", True), ("in a in a hat", True), ("man in man on man", False), ("", False)],
)
def test_immediate_repeats(text: str, expected: bool) -> None:
    assert has_immediate_repeat(text.split()) == expected


def test_bleu_adds_to_the_reward() -> None:
    texts = [["a red square at the top", "two"]]
    plain = CiderReward(SQUARES)(["x"], texts, REFERENCES[:1])[0]
    more = CiderReward(SQUARES, bleu_weight=2.0)(["x"], texts, REFERENCES[:1])[0]
    assert more[0] - plain[0] == pytest.approx(2)
    assert 0 <= more[1] - plain[1] < 0.7


def test_what_fits_another_image_earns_less() -> None:
    references = (*REFERENCES, ("a red kite at the top",))
    texts = [["a red square at the top", "the square"], ["two dogs run", "a red kite"], ["a red kite", None]]
    plain = CiderReward(SQUARES)(["x", "y", "z"], texts, references)
    less = CiderReward(SQUARES, between_weight=0.5)(["x", "y", "z"], texts, references)

    def words(text: str) -> list[str]:
        return [*text.split(), END]

    kite = SQUARES.score(words("a red square at the top"), [words(references[2][0])])
    assert kite > 0.1
    assert less[0, 0] == pytest.approx(float(plain[0, 0]) - 0.5 * kite)
    # No other image has two dogs; a reward is never below that of a truncated caption.
    assert less[1].tolist() == [plain[1, 0], 0]
    assert less[2, 1] == 0


def test_the_references_of_few_images_are_kept_and_rewards_do_not_depend_on_it() -> None:
    texts = [["a red square", "two dogs sit"], ["a red square", "two dogs"]]
    bounded, whole = CiderReward(SQUARES, max_cached_images=1), CiderReward(SQUARES)
    for _ in range(2):
        assert torch.equal(bounded(["x", "y"], texts, REFERENCES), whole(["x", "y"], texts, REFERENCES))
    # The references of x are cached; those of y are read again.
    changed = (("something else",), ("something else",))
    first, second = bounded(["x", "y"], texts, changed)
    assert first[0] > 1
    assert second.tolist() == [0, 0]


def test_frequencies_are_counted_once_for_these_shards(shards: ShardSet, tmp_path: Path) -> None:
    place = Location.parse(str(tmp_path / "run")) / "frequencies.json.gz"
    counted = train_split_cider(shards)
    written = train_split_cider(shards, place)
    assert counted.num_images == 12
    assert counted.document_frequency["square"] == 12
    assert counted.document_frequency[f"top {END}"] == counted.document_frequency["top"] > 1
    stripped = ShardSet(Location.parse(str(tmp_path)), shards.dataset, shards.identity, shards.splits)
    read = train_split_cider(stripped, place)  # there are no tars to count again
    for each in (written, read):
        assert (each.document_frequency, each.num_images) == (counted.document_frequency, 12)


def test_frequencies_of_other_shards_or_damaged_ones_are_counted_again(shards: ShardSet, tmp_path: Path) -> None:
    place = Location.parse(str(tmp_path)) / "frequencies.json.gz"
    other = write_tiny_shards(tmp_path / "other", {"train": 5})
    train_split_cider(other, place)
    assert train_split_cider(shards, place).num_images == 12
    place.write_bytes(place.read_bytes()[:50])
    assert train_split_cider(shards, place).num_images == 12
    assert CiderD.from_bytes(place.read_bytes()).num_images == 12
