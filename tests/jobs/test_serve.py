"""`serve` end to end: a process, Ray Serve, HTTP, and an end by signal."""

from pathlib import Path

import requests

from tests.jobs.served import served
from tests.tiny import square


def test_a_server_answers_and_ends_cleanly(tiny_captioner: Path) -> None:
    with served([str(tiny_captioner)], "--set", "limits.client_rate=0.001", "--set", "limits.client_burst=3") as server:
        assert "Only this machine can reach it" in "".join(server.printed)
        # The command's own health check.
        assert requests.get(f"{server.url}/-/healthz", timeout=60).status_code == 200
        assert requests.get(f"{server.url}/health", timeout=60).json() == {"status": "ok", "models": ["tiny"]}

        def ask(data: bytes) -> requests.Response:
            return requests.post(f"{server.url}/caption", files={"image": data}, timeout=60)

        answer = ask(square("red", "top", 1))
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"].startswith("tiny-")
        assert answer.json()["num_tokens"] > 0
        bad = ask(b"no image")
        assert (bad.status_code, bad.json()["error"]["class"]) == (422, "not_an_image")
        ask(square("red", "top", 2))
        # The address of the client reaches the gateway through Ray's own proxy.
        refused = ask(square("red", "top", 3))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert 'captioning_requests_total{status="200"} 2.0' in requests.get(f"{server.url}/metrics", timeout=60).text
        assert "<title>Captioning</title>" in requests.get(f"{server.url}/", timeout=60).text
        assert server.end() == 130
    # Ray prints the end of a server like a failure; that is suppressed.
    assert server.printed[-2:] == [
        "Stopping …\n",
        "Interrupted. The server has stopped; run the same command to start it again.\n",
    ]
    assert server.printed[-3].startswith("Press Ctrl-C")
