"""Let in the studio's own page alone: by host, origin and token; set the headers of answers."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # NiiVue has its font in a data URL
        "media-src 'self' blob:",
        "connect-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuse what does not come from the studio's own page.

    Args:
        app: the application behind it.
        port: part of the names of cookies, because browsers share them between ports.
        token: None on a loopback address, where the header ``Host`` is checked instead: it is the
            attacker's in a DNS rebinding.
    """

    def __init__(self, app: ASGIApp, port: int, token: str | None) -> None:
        self.app, self.token, self.cookie = app, token, f"medstyle_token_{port}"
        self.hosts = {f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in LOOPBACK}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        given = request.query_params.get("token") if scope["path"] == "/" else None
        known = self.token is not None and given is not None and _same(given, self.token)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if known:
                    headers.append("Set-Cookie", cookie(self.cookie, given or "", request))
            await send(message)

        refused = self._refusal(request, known)
        answer: ASGIApp = self.app if refused is None else PlainTextResponse(refused[1], refused[0])
        await answer(scope, receive, guarded)

    def _refusal(self, request: Request, known: bool) -> tuple[int, str] | None:
        headers, method = request.headers, request.method
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is None and host.lower() not in self.hosts:
            return 421, "this address is not the studio's; open the link that it printed"
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "another site may not use the studio"
        if method not in ("GET", "HEAD") and (origin is None or urlsplit(origin).netloc.lower() != host.lower()):
            return 403, "another site may not use the studio"
        if self.token is None or known:
            return None
        if not _same(request.cookies.get(self.cookie, ""), self.token):
            return 401, "the token is missing or wrong; open the link that the studio printed"
        return None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def cookie(name: str, value: str, request: Request) -> str:
    """Return the header that sets a cookie which no script and no other site can use."""
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"
