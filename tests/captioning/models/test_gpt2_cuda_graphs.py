"""GPT-2 by CUDA graphs: the same captions as eager steps, and nothing in a step that a GPU could not capture.

On a CPU the steps run eagerly over the same memory. A fake GPU raises an error for whatever would wait for it.
"""

import gc
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from captioning.captioner import load_captioner
from captioning.decoding.cuda_graphs import capture
from captioning.decoding.sample import sample
from captioning.decoding.search import Hypothesis, decode
from captioning.decoding.settings import DecodingSettings
from captioning.errors import SettingsError
from captioning.models import gpt2_cuda_graphs
from captioning.models.base import Vocabulary
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.models.gpt2_cuda_graphs import CudaGraphGpt2Stepper, WorkspacePool
from captioning.models.prepared import prepared
from tests.captioning.models.clips import GPT2, make, sharpened, tiny

EOS = 11
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def model() -> ClipGpt2:
    few = Vocabulary(size=12, bos_id=11, eos_id=11)
    made = sharpened(make(tiny(gpt2={**GPT2, "tie_word_embeddings": False}), few, seed=2), 8)
    return made.double().requires_grad_(False)


def features(count: int, seed: int = 1) -> Tensor:
    return 8 * torch.randn(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(
    model: ClipGpt2, of: Tensor, settings: DecodingSettings, prompt: list[int] | None = None
) -> tuple[list[list[Hypothesis]], list[list[Hypothesis]]]:
    """Hypotheses decoded eagerly and by CUDA graphs."""
    model._cuda_graphs = False
    eager = decode(model.stepper(of, prompt), settings, eos_id=EOS)
    model.enable_cuda_graphs()
    stepper = model.stepper(of, prompt)
    assert isinstance(stepper, CudaGraphGpt2Stepper)
    return eager, decode(stepper, settings, eos_id=EOS)


def same(one: list[list[Hypothesis]], two: list[list[Hypothesis]]) -> bool:
    assert [[each.score for each in best] for best in one] == [
        [pytest.approx(each.score, abs=1e-5) for each in best] for best in two
    ]
    return [[each.tokens for each in best] for best in one] == [[each.tokens for each in best] for best in two]


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("prompt", [None, [5, 6, 7]])
def test_captions_are_those_of_eager_steps(model: ClipGpt2, beams: int, prompt: list[int] | None) -> None:
    """Batches of several sizes, one after the other in reused workspaces; images finish at different times."""
    settings = DecodingSettings(beam_size=beams, num_captions=beams, max_new_tokens=12)
    lengths = set()
    for number, count in enumerate((20, 3, 40, 1, 9)):
        eager, replayed = both(model, features(count, number), settings, prompt)
        assert same(eager, replayed)
        lengths |= {best[0].num_tokens for best in replayed}
    assert len(lengths) > 2


def test_a_caption_may_outgrow_its_workspace(model: ClipGpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_cuda_graphs, "_STEPS_AHEAD", 2)
    monkeypatch.setattr(gpt2_cuda_graphs, "_ENTRY_MULTIPLE", 4)
    assert same(*both(model, features(10), DecodingSettings(beam_size=4, max_new_tokens=14)))


def test_stale_nans_in_a_workspace_do_no_harm(model: ClipGpt2) -> None:
    settings = DecodingSettings(beam_size=3, max_new_tokens=8)
    eager, _ = both(model, features(8), settings)
    pool: WorkspacePool = prepared(model.gpt2, model._prepare)[0]
    [workspace] = pool._free.values()
    for tensor in (*workspace.caches, workspace.mask, workspace.states):
        tensor.fill_(float("nan"))
    assert same(eager, decode(model.stepper(features(8)), settings, eos_id=EOS))


def test_rows_are_selected_repeated_and_dropped(model: ClipGpt2) -> None:
    model.enable_cuda_graphs()
    found = []
    for cuda_graphs in (False, True):
        model._cuda_graphs = cuda_graphs
        stepper = model.stepper(features(3))
        stepper.start()
        stepper.advance(torch.tensor([5, 6, 7, 8]), [0, 0, 2, 1])
        states = [stepper.advance(torch.tensor([1, 2]), torch.tensor([3, 1]))]
        states.append(stepper.advance(torch.tensor([1, 2, 3, 4, 5]), torch.tensor([1, 0, 0, 1, 1])))
        states.append(stepper.advance(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 0], [3, 3]])))
        found.append(torch.cat([*states, stepper.start()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_captions_are_sampled_too(model: ClipGpt2) -> None:
    drawn = []
    for cuda_graphs in (False, True):
        model._cuda_graphs = cuda_graphs
        torch.manual_seed(3)
        drawn.append(sample(model.stepper(features(5)), count=3, max_new_tokens=10, eos_id=EOS))
    assert torch.equal(drawn[0], drawn[1])


def test_a_workspace_belongs_to_one_stepper_at_a_time(model: ClipGpt2) -> None:
    model.enable_cuda_graphs()
    pool: WorkspacePool = prepared(model.gpt2, model._prepare)[0]
    first, second = (model.stepper(features(4, seed)) for seed in (1, 2))
    assert isinstance(first, CudaGraphGpt2Stepper)
    assert isinstance(second, CudaGraphGpt2Stepper)
    for stepper in (first, second):
        stepper.start()
        stepper.advance(torch.tensor([[1, 2]] * 4), torch.arange(4)[:, None].expand(4, 2))
    assert first._workspace is not second._workspace
    assert not pool._free
    workspace = first._workspace
    del first, stepper
    gc.collect()
    third = model.stepper(features(2))
    assert isinstance(third, CudaGraphGpt2Stepper)
    third.start()
    third.advance(torch.tensor([[1, 2]] * 2), torch.arange(2)[:, None].expand(2, 2))
    assert third._workspace is workspace


def test_few_workspaces_are_kept(model: ClipGpt2) -> None:
    for beams in (2, 3, 4, 5):
        both(model, features(2), DecodingSettings(beam_size=beams, max_new_tokens=3))
    pool: WorkspacePool = prepared(model.gpt2, model._prepare)[0]
    assert sorted(pool._free) == [4, 5]


class Counted(TorchDispatchMode):
    """Counts operations: about the number of kernels that a GPU would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        self.count += not function.is_view
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def on_fake_gpu() -> Iterator[ClipGpt2]:
    """A model on a fake GPU, whose tensors have shapes and no values: reading a value raises an error."""
    model = make(tiny()).requires_grad_(False)
    with FakeTensorMode():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        is_parameter = tensors is module._parameters
                        tensors[name] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake
        yield model


def three_steps(model: ClipGpt2, count: int) -> Iterator[Tensor]:
    """States after each of three steps of so many images."""
    pool, lm_head = model._prepare(torch.float32)
    device = model.device
    prefix = torch.randn(count, 4, 16, device=device)
    stepper = CudaGraphGpt2Stepper(pool, lm_head, prefix, check_length=lambda length: None)
    yield stepper.start()
    images = torch.arange(count, device=device)[:, None]
    tokens = torch.zeros(count, 3, dtype=torch.long, device=device)
    for rows in (images.expand(-1, 3), images * 3 + tokens, images * 3 + tokens):
        yield stepper.advance(tokens, rows)


@torch.no_grad()
def test_no_step_waits_for_the_gpu(on_fake_gpu: ClipGpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[Callable[[], None]] = []
    monkeypatch.setattr(gpt2_cuda_graphs, "capture", lambda step, _: captured.append(step) or step)
    *_, states = three_steps(on_fake_gpu, 20)
    assert states.shape == (60, 16)
    assert states.device.type == "cuda"
    # One capture, two replays.
    assert len(captured) == 1


@torch.no_grad()
def test_a_step_is_few_operations_beside_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_cuda_graphs, "capture", lambda *_: lambda: None)
    model = make(tiny()).requires_grad_(False)
    operations = []
    steps = three_steps(model, 20)
    next(steps)
    next(steps)
    for _ in range(2):
        with Counted() as counted:
            next(steps)
        operations.append(counted.count)
    assert operations == [15, 15]


def test_without_a_gpu_a_step_runs_eagerly() -> None:
    ran = []
    step = capture(lambda: ran.append(1), torch.device("cpu"))
    step()
    step()
    assert ran == [1, 1]


def test_a_step_that_cannot_be_captured_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr("captioning.decoding.cuda_graphs._capture", fails)
    ran = []
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing$"):
        step = capture(lambda: ran.append(1), torch.device("cuda"))
    step()
    assert ran == [1]


def test_cuda_graphs_are_refused_where_they_cannot_be_used() -> None:
    with pytest.raises(SettingsError, match="cuda_graphs is for GPUs"):
        load_captioner("flickr-clip-gpt2", device="cpu", encoder="eager", cuda_graphs=True)
    with pytest.raises(SettingsError, match="cnn_lstm has no steps"):
        load_captioner("flickr-lstm", device="cpu", encoder="eager").model.enable_cuda_graphs()


@gpu
@pytest.mark.parametrize("beams", [1, 5])
def test_a_gpu_gives_the_same_captions_by_cuda_graphs(model: ClipGpt2, beams: int) -> None:
    settings = DecodingSettings(beam_size=beams, max_new_tokens=12)
    model.to("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, count in enumerate((20, 3, 40, 20)):
            assert same(*both(model, features(count, number).to("cuda"), settings))
