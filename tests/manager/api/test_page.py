"""The page: who gets it, its files under their hash, and the headers that fence it in."""

import asyncio
from pathlib import Path

import pytest

from manager.api.page import Page
from tests.manager.api.conftest import Api

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
    " trusted-types stowage-worker"
)


async def test_browser_gets_the_page_with_the_address_of_its_files(api: Api, page: Page) -> None:
    answer = await api.call("GET", "/", role=None, headers=BROWSER)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    base = f"/ui/{page.digest}"
    assert answer.body.decode() == f'<link href="{base}/app.css"><script src="{base}/js/main.js"></script>\n'
    assert (answer.headers["Cache-Control"], answer.headers["Vary"]) == ("no-cache", "Accept")


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
async def test_others_get_a_few_words_that_name_the_page(api: Api, accept: str) -> None:
    answer = await api.call("GET", "/", role=None, headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "browser" in answer.body.decode()
    assert (answer.headers["Cache-Control"], answer.headers["Vary"]) == ("no-store", "Accept")


@pytest.mark.parametrize(
    ("path", "content_type", "content"),
    [
        ("app.css", "text/css; charset=utf-8", "a {}\n"),
        ("icon.svg", "image/svg+xml", "<svg/>\n"),
        ("js/main.js", "text/javascript; charset=utf-8", 'export const words = "größer";\n'),
    ],
)
async def test_file_is_kept_by_browsers_for_good(
    api: Api, page: Page, path: str, content_type: str, content: str
) -> None:
    answer = await api.call("GET", f"/ui/{page.digest}/{path}", role=None)
    assert (answer.status, answer.body.decode()) == (200, content)
    assert answer.headers["Content-Type"] == content_type
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"


async def test_page_and_files_bear_the_headers_that_fence_them_in(api: Api, page: Page) -> None:
    for path in ("/", f"/ui/{page.digest}/js/main.js"):
        headers = (await api.call("GET", path, role=None, headers=BROWSER)).headers
        assert headers.getall("Content-Security-Policy") == [POLICY]  # type: ignore[attr-defined]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert (headers["Cross-Origin-Resource-Policy"], headers["Referrer-Policy"]) == ("same-origin", "no-referrer")
        assert "camera=()" in headers["Permissions-Policy"]


async def test_page_is_apart_from_its_openers_where_the_browser_says_that_it_can_be(api: Api) -> None:
    fetched = await api.call("GET", "/", role=None, headers=BROWSER | {"Sec-Fetch-Mode": "navigate"})
    assert fetched.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    plain = await api.call("GET", "/", role=None, headers=BROWSER)
    assert "Cross-Origin-Opener-Policy" not in plain.headers


async def test_answers_of_the_api_may_load_nothing(api: Api) -> None:
    for path, role in (("/v1/hosts", "viewer"), ("/v1/hosts", None), ("/", None), ("/ui/0/app.css", None)):
        answer = await api.call("GET", path, role=role)
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_head_has_the_headers_without_the_content(api: Api, page: Page) -> None:
    for path in ("/", f"/ui/{page.digest}/js/main.js"):
        whole = await api.call("GET", path, role=None, headers=BROWSER)
        head = await api.call("HEAD", path, role=None, headers=BROWSER)
        assert (head.status, head.body) == (200, b"")
        for name in ("Content-Length", "Content-Type", "Cache-Control", "Content-Security-Policy"):
            assert head.headers[name] == whole.headers[name]


async def test_other_address_is_404_and_not_kept(api: Api, page: Page) -> None:
    for path in (
        "/ui/0000000000000000/app.css",
        f"/ui/{page.digest}/nothing.js",
        f"/ui/{page.digest}/js",
        f"/ui/{page.digest}/index.html",
        f"/ui/{page.digest}/notes.txt",
        f"/ui/{page.digest}/APP.CSS",
    ):
        answer = await api.call("GET", path, role=None)
        answer.problem(404, "not_found")
        assert answer.headers["Cache-Control"] == "no-store"
    (await api.call("GET", f"/ui/{page.digest}/app.css?v=2", role=None)).problem(400, "invalid_field")


@pytest.mark.parametrize(
    "path",
    [
        "../beside.js", "%2e%2e/beside.js", "..%2fbeside.js", "%2e%2e%2fbeside.js", "js/../../beside.js", "%2e%2e%5cbeside.js",
        "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "js/%00main.js", "main.js%00", "%c0%ae%c0%ae/beside.js",
        "../../manager/ui/../../beside.js",
    ],
)  # fmt: skip
async def test_path_that_leads_out_of_the_folder_finds_nothing(api: Api, page: Page, path: str) -> None:
    """Sent as it stands, for clients tidy such paths up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(f"GET /ui/{page.digest}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] in (b"400", b"401", b"404"), answer
    assert b"c4n4ry" not in answer


def test_digest_changes_with_each_content_and_name(tmp_path: Path) -> None:
    digests: set[str] = set()
    for name, content in (("a.js", "1"), ("a.js", "2"), ("b.js", "2"), ("b.js", "")):
        for old in tmp_path.iterdir():
            old.unlink()
        (tmp_path / "index.html").write_text("")
        (tmp_path / name).write_text(content)
        digests.add(Page.read(tmp_path).digest)
    assert len(digests) == 4
    assert all(len(digest) == 16 for digest in digests)


def test_folder_without_a_page_gives_none(tmp_path: Path) -> None:
    page = Page.read(tmp_path / "nothing")
    assert (page.index, page.files) == (None, {})
