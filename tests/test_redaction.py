"""Passwords are seen however an address is written, and redacted wherever one is printed."""

from __future__ import annotations

import io
import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.redaction import Redactor, has_unescaped_at, holds_password, is_secret, literal, passwords_in

PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'<>${}&"), min_size=1)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("postgresql+psycopg://me:secret@host/db", True),
        ("postgresql+psycopg://me:p$w@host/db", True),
        ("postgresql://host/db?user=me&password=secret", True),
        ("postgresql://me:a/b@host/db", True),
        ("mysql+pymysql://me@host/db", False),
        ("postgresql://me:${oc.env:PASSWORD}@host/db", False),
        ("postgresql://me:${oc.env:PASSWORD,secret}@host/db", True),
        ('${oc.env:NAME,"postgresql://me:secret@host/db"}', True),
        ("${oc.env:OUTER,${oc.env:INNER,postgresql://me:secret@host/db}}", True),
        ("postgresql://me:${oc.env:A}${oc.env:B,}@host/db", False),
        ("${oc.env:RANKSEARCH_STORAGE}", False),
        ("sqlite:///outputs/ranksearch.db", False),
        ("see https://example.org:8080/a for me@example.org", False),
    ],
)
def test_a_password_is_seen_wherever_a_setting_may_hold_one(text: str, holds: bool) -> None:
    assert holds_password(text) == holds


@given(PASSWORDS)
def test_whatever_a_password_is_made_of_it_is_seen_and_hidden(password: str) -> None:
    for written in (password, quote(password, safe="")):
        url = f"postgresql+psycopg://me:{written}@host:1/db"
        assert written in passwords_in(url)
        hidden = Redactor()(f"cannot open {url}: refused")
        assert hidden == "cannot open postgresql+psycopg://***@host:1/db: refused"
        assert has_unescaped_at(url) == ("@" in written and "?" not in written[: written.index("@")])


@given(st.text("abcdefgh0123456789", min_size=4, max_size=12))
def test_known_passwords_are_hidden_in_records_and_their_tracebacks(password: str) -> None:
    stream, logger = io.StringIO(), logging.Logger("of a test")
    handler = logging.StreamHandler(stream)
    handler.addFilter(Redactor({password}))
    logger.addHandler(handler)
    try:
        raise ValueError(f"wrong: {password}!")
    except ValueError:
        logger.exception("with %s", f"<{password}>")
    said = stream.getvalue()
    assert password not in said.replace("Traceback", "")
    assert "ValueError: wrong: ***!" in said


def test_keys_that_are_named_as_secrets_hold_one_where_they_have_a_value_of_their_own() -> None:
    assert is_secret("password", "x")
    assert is_secret("api_key", "${oc.env:NAME,x}")
    assert is_secret("db_passwd", "x")
    assert not is_secret("password", "${oc.env:NAME}")
    assert not is_secret("password", None)
    assert not is_secret("path", "x")
    assert not is_secret("passes", "x")
    assert literal("a${oc.env:A,b}c${other}") == "abc"
