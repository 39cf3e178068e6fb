"""`data:` URLs are read strictly and within the cap."""

import base64

import pytest

from agentflow.artifacts import SourceRefused, inline
from agentflow.artifacts.inline import decode, is_inline


@pytest.mark.parametrize(
    ("url", "told", "content"),
    [
        ("data:,", "text/plain", b""),
        ("data:,a%20b%00", "text/plain", b"a b\0"),
        ("DATA:image/png;base64,AAEC", "image/png", b"\0\1\2"),
        ("data:text/plain;charset=utf-8;BASE64,YQ==", "text/plain;charset=utf-8", b"a"),
        ("data:;base64,YQ%3D%3D", "text/plain", b"a"),
        ("data:;charset=utf-8,a,b", "text/plain;charset=utf-8", b"a,b"),
    ],
)
def test_a_data_url_is_its_bytes(url: str, told: str, content: bytes) -> None:
    assert is_inline(url)
    assert decode(url, 10) == (told, content)


@pytest.mark.parametrize(
    "url",
    [
        "data:text/plain",
        "data:" + "a" * 2000 + ",a",
        "data:;base64,YQ",
        "data:;base64,YQ=",
        "data:;base64,YQ==YQ==",
        "data:;base64,Y Q==",
        "data:;base64,YQ==\n",
        "data:;base64,Y_-=",
        "data:;base64,%",
        "data:,%zz",
        "data:,%a",
        "data:,ä",
        "data:;base64,ä",
        "data:;base64,%ff%ff%ff%ff",
    ],
)
def test_what_does_not_belong_is_refused(url: str) -> None:
    with pytest.raises(SourceRefused):
        decode(url, 1000)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 100])
def test_the_cap_is_exact(size: int) -> None:
    coded = base64.b64encode(b"x" * size).decode()
    escaped = "".join(f"%{byte:02x}" for byte in coded.encode())
    for url in (f"data:;base64,{coded}", f"data:;base64,{escaped}", "data:," + "%78" * size):
        assert decode(url, size)[1] == b"x" * size
        if size:
            with pytest.raises(SourceRefused, match="more than"):
                decode(url, size - 1)


def test_the_size_is_judged_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "_base64", None)
    monkeypatch.setattr(inline, "_percent", None)
    for url in ("data:;base64," + "AAAA" * 1000, "data:," + "a" * 3000):
        with pytest.raises(SourceRefused, match="more than"):
            decode(url, 2000)
