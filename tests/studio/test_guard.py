"""Only the studio's own page gets in."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from medstyle.studio.guard import Guard

TOKEN = "t" * 43


class Client:
    """Asks the application without a socket, and keeps its cookies."""

    def __init__(self, token: str | None) -> None:
        routes = [Route("/{rest:path}", lambda request: PlainTextResponse("in"), methods=["GET", "POST"])]
        self.app, self.cookies = Guard(Starlette(routes=routes), 5102, token), httpx.Cookies()

    def ask(self, method: str, path: str, headers: dict[str, str] | None) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1:5102", cookies=self.cookies
            ) as one:
                answer = await one.request(method, path, headers=headers)
                self.cookies = one.cookies
                return answer

        return asyncio.run(asked())

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.ask("GET", path, headers)

    def post(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.ask("POST", path, headers)


@pytest.fixture
def loopback() -> Client:
    return Client(None)


@pytest.fixture
def guarded() -> Client:
    return Client(TOKEN)


OWN = {"Origin": "http://127.0.0.1:5102"}


def test_the_page_gets_in_and_every_answer_has_the_policy(loopback):
    answer = loopback.get("/")
    assert answer.text == "in"
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert loopback.post("/", headers=OWN).text == "in"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5102", "127.0.0.1:80", ""])
def test_a_rebound_name_is_refused(loopback, host):
    assert loopback.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:80", "http://localhost:5102"]
)
def test_a_post_from_elsewhere_is_refused(loopback, origin):
    headers = {} if origin is None else {"Origin": origin}
    assert loopback.post("/api/sets", headers=headers).status_code == 403


def test_another_site_cannot_embed_a_result(loopback):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert loopback.get("/api/jobs/1/files/2", headers=headers).status_code == 403
    assert loopback.get("/", headers={**headers, "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/?token=", "/?token=wrong", f"/?token={TOKEN}x", f"/api/sets?token={TOKEN}", "/web/app.js"]
)
def test_without_the_token_nothing_is_shown(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.text != "in"
    assert "set-cookie" not in answer.headers


def test_the_token_becomes_a_cookie_that_no_script_reads(guarded):
    answer = guarded.get(f"/?token={TOKEN}")
    assert answer.text == "in"
    assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
    assert guarded.get("/web/app.js").text == "in"
    assert guarded.post("/", headers=OWN).text == "in"
    assert guarded.post("/", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_wrong_cookie_is_refused(guarded):
    assert guarded.get("/", headers={"Cookie": "medstyle_token_5102=wrong"}).status_code == 401
    assert guarded.get("/", headers={"Cookie": "medstyle_token_5102=;;=;\x01"}).status_code == 401
