"""Bodies that are forms, or something else than an image."""

from __future__ import annotations

import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime import ImageError
from visionad_runtime.web.access import AccessPolicy, is_loopback, normalize_host, parse_host
from visionad_runtime.web.forms import form_file, hint

NAMES = st.text(st.characters(blacklist_categories=["C", "Z"], blacklist_characters='"\\/;'), min_size=1)


@given(st.binary(max_size=300), NAMES, st.text("0123456789abcXYZ-'", min_size=1, max_size=60))
def test_a_form_gives_the_bytes_that_were_sent(data: bytes, name: str, boundary: str) -> None:
    boundary = boundary.strip("'-") or "b"
    if f"\r\n--{boundary}".encode() in b"\r\n" + data:
        return
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    found = form_file(body, f'multipart/form-data; boundary="{boundary}"')
    assert found.data == data
    assert found.name == name


@given(
    st.binary(max_size=400), st.sampled_from(["multipart/form-data; boundary=b", "multipart/form-data; boundary=", "x"])
)
def test_any_body_is_read_or_refused(body: bytes, content_type: str) -> None:
    for data in (body, b"--b\r\n" + body, b"--b\r\n\r\n" + body + b"\r\n--b--"):
        try:
            form_file(data, content_type)
        except ImageError as exc:
            assert str(exc)
        hint(data, content_type)


def form(parameter: str) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="f"; {parameter}\r\n\r\n'
    return head.encode("utf-8", "surrogatepass") + b"x\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("filename*=UTF-8''M%C3%BCller.png", "Müller.png"), ("filename*=iso-8859-1'en'M%FCller.png", "Müller.png"),
        ("filename*0*=UTF-8''M%C3%BC; filename*1=ller.png", "Müller.png"), ("filename*=other''a.png", "a.png"),
    ],
)  # fmt: skip
def test_names_may_be_encoded(parameter: str, name: str) -> None:
    assert form_file(form(parameter), "multipart/form-data; boundary=b").name == name


@pytest.mark.parametrize(
    "value",
    ["*=idna''a.png", "*=undefined''a", "*=punycode''%ff", "*=a%00b''a", "*0=a; {0}*=b", f"*{'9' * 5000}=a"],
    ids=["idna", "undefined", "punycode", "nul", "numbered and not", "a long number"],
)  # fmt: skip
def test_parameters_that_are_encoded_amiss_are_refused(value: str) -> None:
    with pytest.raises(
        ImageError, match=r"parameter filename cannot be read in 'form-data; .*UTF-8''|header size exceeded"
    ):
        form_file(form("filename" + value.format("filename")), "multipart/form-data; boundary=b")
    with pytest.raises(ImageError, match="parameter boundary cannot be read"):
        form_file(form('filename="a.png"'), "multipart/form-data; boundary" + value.format("boundary"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "*", "*0", "*0*", "*1", "*1*", "*²", "*-1"]),
            st.text("abu%0f'\";=*-8\\ü \0", max_size=12),
        ),
        max_size=4,
    )
)
def test_any_parameter_is_read_or_refused(values: list[tuple[str, str]]) -> None:
    text = "; ".join(f"filename{mark}={value}" for mark, value in values)
    for body, content_type in (
        (form(text), "multipart/form-data; boundary=b"),
        (b"", text.replace("filename", "boundary")),
    ):
        try:
            form_file(body, content_type)
        except ImageError as exc:
            assert str(exc)


@given(st.binary(min_size=40, max_size=300))
def test_wrappings_are_named(data: bytes) -> None:
    text = base64.b64encode(data)
    for body, kind in (
        (text, "base64"), (base64.urlsafe_b64encode(data), "base64"), (base64.encodebytes(data), "base64"),
        (b"data:image/png;base64," + text, "a data URL"), (gzip.compress(data), "gzip"),
        (json.dumps({"image": text.decode()}).encode(), "JSON"), (b'"' + text + b'"', "JSON"),
    ):  # fmt: skip
        said = hint(body, "")
        assert said is not None and kind in said
    for image in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM\x00\x00", b"II*\x00"):
        assert hint(image + data, "application/x-www-form-urlencoded") is None


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("Localhost", "localhost", None), ("localhost.:80", "localhost", 80), ("[0:0:0:0:0:0:0:1]:8000", "::1", 8000),
        ("[::ffff:10.0.0.1]", "10.0.0.1", None), ("[fe80::1%25eth0]:1", "fe80::1", 1), ("a_b-c.example:", "a_b-c.example", None),
    ],
)  # fmt: skip
def test_hosts_have_one_spelling(text: str, host: str, port: int | None) -> None:
    assert parse_host(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":80", ".", "a:b", "a:123456", "::1", "[a", "a]", "a@b", "a/b", "a\tb", "ä", "a,b", "[::1]x"]
)
def test_malformed_hosts(text: str) -> None:
    assert parse_host(text) is None


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parsed = parse_host(text)
    assert parsed is None or parsed.host
    is_loopback(normalize_host(text))


def test_allowed_names() -> None:
    policy = AccessPolicy("0.0.0.0", ["Bücher.example", "::2"], ["https://line.example/"])
    assert {"0.0.0.0", "xn--bcher-kva.example", "::2", "line.example"} <= policy.hosts
    assert AccessPolicy().hosts == {"127.0.0.1"}
