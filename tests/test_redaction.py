"""Personal data is replaced where contents are written down, and other numbers are not."""

from __future__ import annotations

import pytest

from llmasos.serving.redaction import redacted, redacted_all


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Ada.Lovelace+x@mail.example.co.uk, please", "write to [mail], please"),
        ("call +49 30 901820 or (030) 90182-0.", "call [phone] or [phone]."),
        ("call 0170/1234567 now", "call [phone] now"),
        ("555-123-4567", "[phone]"),
        ("card 4111 1111 1111 1111, thanks", "card [card], thanks"),
        ("card 5500-0000-0000-0004", "card [card]"),
        ("pay DE89 3704 0044 0532 0130 00 today", "pay [iban] today"),
        ("GB82WEST12345698765432", "[iban]"),
        ("order AB12 paid with GB82WEST12345698765432", "order AB12 paid with [iban]"),
        ("DE89 3704 0044 0532 0130 00 GB82 WEST 1234 5698 7654 32", "[iban] [iban]"),
        ("12 35 4111 1111 1111 1111 5500-0000-0000-0004", "12 35 [card] [card]"),
        ("from 192.168.0.17:8080", "from [ip]:8080"),
        ("at 2001:db8::ff00:42:8329 it", "at [ip] it"),
        ("我的邮箱是 li.lei@example.cn。", "我的邮箱是 [mail]。"),
    ],
)
def test_what_is_personal_is_replaced(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4567", "999.999.999.999", "order 4111111111111112", "1000000000000", "at 12:30:45 on 3.4.2026",
        "in 2026", "pi is 3.14159265358979", "DE00 3704 0044 0532 0130 00", "a@b", "17 * 23 = 391", "std::vector",
        "1,234,567 tokens",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redacted(text) == text


def test_every_text_of_a_row_is_looked_at() -> None:
    row = {"question": "who is a@example.com?", "rows": [["192.168.0.17", 5]], "b@example.com": None}
    assert redacted_all(row) == {"question": "who is [mail]?", "rows": [["[ip]", 5]], "[mail]": None}


def test_long_texts_take_linear_time() -> None:
    for text in (
        "1" * 100_000,
        "a" * 100_000,
        "a." * 50_000,
        "1 " * 50_000,
        "a@" * 50_000,
        "::" * 50_000,
        "ab12 " * 20_000,
        ("ab12" + "a" * 40 + " ") * 2_500,
    ):
        redacted(text)  # a pattern that backtracks would not come to an end
