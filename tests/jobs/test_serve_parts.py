"""The parts of `serve` without Ray: batches, limits, requests, and the routes with a tiny captioner."""

import asyncio
import base64
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from captioning.captioner import load_captioner
from captioning.errors import UnfinishedError
from captioning.storage import StorageSettings
from jobs.__main__ import app
from jobs.serve import _answers, _watch
from jobs.serving.batcher import Batched, Batcher
from jobs.serving.limiter import RequestLimiter
from jobs.serving.replica import CaptionerReplica
from jobs.serving.request_errors import RequestError
from jobs.serving.requests import Options
from jobs.serving.settings import LimitSettings, ServeSettings
from jobs.serving.web import CaptionService, build_app
from tests.tiny import square

SETTINGS = ServeSettings(
    decode_processes=1, limits=LimitSettings(max_mb=1, max_pixels=4000, max_images=3, max_beam_size=5)
)


@pytest.fixture(scope="module")
def client(tiny_captioner: Path) -> Iterator[TestClient]:
    replica = CaptionerReplica(str(tiny_captioner), SETTINGS, threads=1)
    with TestClient(build_app(CaptionService({"tiny": Here(replica)}, SETTINGS))) as client:
        yield client
    replica.close()


class Here:
    """A `CaptionerClient` of a replica in this process."""

    def __init__(self, replica: CaptionerReplica) -> None:
        self._replica = replica
        self.caption = replica.caption

    async def about(self) -> dict[str, object]:
        return self._replica.about()


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def test_items_of_one_key_share_batches_and_others_do_not() -> None:
    ran: list[tuple[str, list[int]]] = []

    def run(key: str, items: list[int]) -> list[str]:
        ran.append((key, list(items)))
        return [f"{key}{item}" for item in items]

    async def ask() -> list[Batched[str]]:
        batcher: Batcher[str, int, str] = Batcher(run, size=3)
        return await asyncio.gather(*(batcher.submit("ab"[at % 2], at) for at in range(10)))

    found = asyncio.run(ask())
    assert [each.result for each in found] == [f"{'ab'[at % 2]}{at}" for at in range(10)]
    assert sorted(ran) == [("a", [0, 2, 4]), ("a", [6, 8]), ("b", [1, 3, 5]), ("b", [7, 9])]
    assert [each.batch_size for each in found] == [3, 3, 3, 3, 3, 3, 2, 2, 2, 2]


def test_a_batch_that_fails_fails_its_own_items_alone() -> None:
    def run(key: bool, items: list[int]) -> list[int]:
        if key:
            raise ValueError("wrong settings")
        return list(items)

    async def ask() -> list[object]:
        batcher: Batcher[bool, int, int] = Batcher(run, size=8)
        return await asyncio.gather(*(batcher.submit(at == 1, at) for at in range(3)), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert isinstance(second, ValueError)
    assert [first.result, third.result] == [0, 2]


def test_a_cancelled_item_is_not_run() -> None:
    ran: list[int] = []

    async def ask() -> None:
        batcher: Batcher[str, int, int] = Batcher(lambda key, items: ran.extend(items) or list(items), size=8)
        gone = asyncio.create_task(batcher.submit("a", 1))
        kept = asyncio.create_task(batcher.submit("a", 2))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await kept).result == 2

    asyncio.run(ask())
    assert ran == [2]


def test_requests_in_flight_are_limited() -> None:
    limiter = RequestLimiter(max_in_flight=1)
    with limiter.admit("a"), pytest.raises(RequestError) as refused, limiter.admit("b"):
        pass
    assert (refused.value.status, refused.value.error_class, refused.value.retry_after) == (503, "busy", 1)
    with limiter.admit("b"):
        assert limiter.in_flight == 1


def test_an_address_has_a_rate_of_its_own() -> None:
    now = [0.0]
    limiter = RequestLimiter(max_in_flight=10, rate=0.5, burst=2, clock=lambda: now[0])

    def ask(client: str) -> None:
        with limiter.admit(client):
            pass

    ask("a")
    ask("a")
    with pytest.raises(RequestError) as refused:
        ask("a")
    assert (refused.value.status, refused.value.retry_after) == (429, 2)
    ask("b")
    now[0] = 2.0
    ask("a")
    with pytest.raises(RequestError):
        ask("a")


def test_every_form_of_a_request_gives_the_captioners_answer(client: TestClient, tiny_captioner: Path) -> None:
    photo = square("red", "top", 3)
    captioner = load_captioner(str(tiny_captioner))
    pixels = captioner.preprocess.from_bytes(photo).pixels[None]
    said = captioner.caption_pixels(pixels, beam_size=3, num_captions=2)[0]
    encoded = base64.b64encode(photo).decode()
    wanted = {"beam_size": 3, "num_alternatives": 2}
    answers = [
        client.post("/caption", files={"image": ("a.jpg", photo)}, data=wanted),
        client.post("/caption", content=photo, headers={"Content-Type": "image/jpeg"}, params=wanted),
        client.post("/caption", json={"image": encoded, **wanted}),
        client.post("/caption", json={"image": f"data:image/jpeg;base64,{encoded}", **wanted}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["caption"], found["num_tokens"]) == (said.text, said.num_tokens)
        assert found["score"] == pytest.approx(said.score, abs=1e-4)
        assert [each["caption"] for each in found["alternatives"]] == [text for text, _ in said.alternatives]
        assert (found["width"], found["height"], found["attention"]) == (32, 32, None)
        assert set(found["timing"]) == {"decode_ms", "queue_ms", "model_ms", "total_ms", "batch_size"}


def test_attention_is_reported_when_asked_for(client: TestClient) -> None:
    answer = client.post(
        "/caption",
        files={"image": ("a.png", png(48, 24))},
        data={"attention": "true", "prompt": "a red", "max_new_tokens": 4},
    ).json()
    attention = answer["attention"]
    assert " ".join(attention["words"]) == answer["caption"]
    assert attention["words"][:2] == ["a", "red"]
    assert len(attention["weights"]) == len(attention["words"])
    assert all(sum(map(sum, grid)) == pytest.approx(1, abs=1e-3) for grid in attention["weights"])
    assert attention["box"] == [0, 0, 1, 1]


def test_several_images_have_a_result_each(client: TestClient) -> None:
    good = base64.b64encode(square("blue", "top", 1)).decode()
    answer = client.post("/caption", json={"images": [good, base64.b64encode(b"no image at all").decode(), good]})
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert first["caption"] == third["caption"]
    assert second["error"]["class"] == "not_an_image"


@pytest.mark.parametrize(
    ("request_", "status", "error_class"),
    [
        ({"files": {"image": ("a.jpg", b"")}}, 422, "empty"),
        ({"files": {"image": ("a.jpg", b"<html>")}}, 422, "not_an_image"),
        ({"files": {"image": ("a.jpg", square("red", "top", 1)[:400])}}, 422, "truncated"),
        ({"files": {"image": ("a.png", png(100, 50))}}, 422, "too_large"),
        ({"files": {"image": ("a.jpg", b"x" * (1 << 20) + b"x")}}, 413, "too_large"),
        ({"content": b"x" * (3 << 20), "headers": {"Content-Type": "image/jpeg"}}, 413, "too_large"),
        ({"json": {"images": [""] * 4}}, 413, "too_large"),
        ({"files": [("image", (f"{at}.png", png(9, 9))) for at in range(4)]}, 413, "too_large"),
        ({"json": {"images": []}}, 400, "request"),
        ({"json": {"beam_size": 2}}, 422, "request"),
        ({"json": {"image": "not base64!"}}, 422, "request"),
        ({"json": [1]}, 422, "request"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "request"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "request"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "request"),
        ({"files": {"image": ("a.png", png(9, 9))}, "data": {"beam_size": "6"}}, 422, "settings"),
        ({"files": {"image": ("a.png", png(9, 9))}, "data": {"beam_size": "no"}}, 422, "settings"),
        ({"files": {"image": ("a.png", png(9, 9))}, "data": {"beams": "3"}}, 422, "settings"),
        ({"files": {"image": ("a.png", png(9, 9))}, "data": {"num_alternatives": "5"}}, 422, "settings"),
        ({"files": {"image": ("a.png", png(9, 9))}, "data": {"model": "other"}}, 404, "model"),
    ],
)
def test_a_bad_request_is_a_clear_4xx(client: TestClient, request_, status: int, error_class: str) -> None:
    answer = client.post("/caption", **request_)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["class"] == error_class
    assert len(error["message"]) > 20


def test_refusals_name_what_a_request_can_change(client: TestClient) -> None:
    body = client.post("/caption", content=b"x" * (3 << 20), headers={"Content-Type": "image/jpeg"}).json()
    assert "larger than 1 MiB" in body["error"]["message"]
    few = client.post("/caption", files={"image": ("a.png", png(9, 9))}, data={"num_alternatives": "5"}).json()
    assert few["error"]["message"].startswith("In the decoding settings: num_alternatives is 5 and beam_size")


@pytest.mark.parametrize(
    ("allowed", "url", "error_class"),
    [
        (False, "https://example.org/a.jpg", "forbidden"),
        (True, "http://127.0.0.1:9/a.jpg", "forbidden"),
        (True, "http://[::1]:9/a.jpg", "forbidden"),
        (True, "file:///etc/passwd", "request"),
        (True, "/etc/passwd", "request"),
        (True, "s3://bucket/a.jpg", "request"),
    ],
)
def test_web_addresses_are_fetched_where_allowed_and_nothing_else(
    tiny_captioner: Path, allowed: bool, url: str, error_class: str
) -> None:
    class Never:
        def about(self):
            raise AssertionError("not asked")

        def caption(self, data, overrides, attention):
            raise AssertionError("nothing may have been read")

    settings = ServeSettings(storage=StorageSettings(allow_http=allowed))
    client = TestClient(build_app(CaptionService({"never": Never()}, settings)))
    (result,) = client.post("/caption", json={"urls": [url]}).json()["results"]
    assert result["error"]["class"] == error_class
    # Errors do not reveal where names resolve in the server's network.
    assert "127.0.0.1" not in result["error"]["message"]


def test_the_other_routes(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    (model,) = client.get("/models").json()["models"]
    assert (model["name"], model["kind"], model["attention"]) == ("tiny", "cnn_lstm", True)
    client.post("/caption", content=b"bad", headers={"Content-Type": "image/jpeg"})
    counted = client.get("/metrics").text
    assert 'captioning_requests_total{status="422"}' in counted
    assert 'captioning_images_total{model="tiny",outcome="not_an_image"}' in counted
    assert "captioning_request_seconds_bucket" in counted
    page = client.get("/")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    spec = client.get("/openapi.json").json()["paths"]["/caption"]["post"]
    assert set(spec["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    docs = client.get("/docs")
    assert docs.headers["content-security-policy"].startswith("default-src 'none'")
    assert all(name in docs.text for name in (*Options.model_fields, "http://testserver/caption", "/health", "503"))
    assert "://" not in docs.text.replace("http://testserver/", "")
    for name in client.get("/samples").json():
        assert client.get(f"/samples/{name}").content[:2] == b"\xff\xd8"
    assert client.get("/samples/none.jpg").status_code == 404


def test_a_port_in_use_is_reported_before_anything_starts(tiny_captioner: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--model", str(tiny_captioner), "--port", port])
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize("again", ["flickr-lstm", "captioning/assets/flickr-lstm"])
def test_a_captioner_given_twice_is_reported_before_anything_starts(again: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "flickr-lstm", "--model", again, "--port", "0"])
    assert result.exit_code == 2
    assert f"--model {again}: flickr-lstm-" in result.stderr


def test_a_server_that_no_longer_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Ray may be killed; the command must then end."""
    answers = iter([False, True, *[False] * 9])
    looks: list[float] = []
    monkeypatch.setattr("jobs.serve.time.sleep", looks.append)
    monkeypatch.setattr("jobs.serve._answers", lambda host, port: next(answers))
    with pytest.raises(UnfinishedError, match="not answered for 45 s"):
        _watch("0.0.0.0", 8000)
    assert len(looks) == 11
    monkeypatch.undo()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not _answers("127.0.0.1", nobody.getsockname()[1])


def test_a_captioner_that_is_not_there_is_reported_before_anything_starts() -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "no-such-captioner", "--port", "0"])
    assert result.exit_code == 2
    assert "no-such-captioner" in result.stderr
