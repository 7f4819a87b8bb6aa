"""Texts without personal data: addresses of mail and network, phone numbers, cards and bank accounts are replaced.

What has check digits is checked, so that other long numbers stay. Names are not recognised: what is written down is
less personal, not anonymous.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any


def redacted(text: str) -> str:
    """Return a text with personal data replaced by what it was: "[mail]", "[phone]", "[card]", "[iban]", "[ip]"."""
    for pattern, name, is_one in _KINDS:
        text = _without(text, pattern, name, is_one)
    return text


def _without(text: str, pattern: re.Pattern[str], name: str, is_one: Callable[[str], bool]) -> str:
    """Replace what is found, or the longest beginning of it in whole words that is one; and look on behind that.

    Where it is none, what begins with its second word may be one.
    """
    out, at = [], 0
    while found := pattern.search(text, at):
        words = [gap.start() for gap in re.finditer("[ -]", found[0])]
        size = next((end for end in (len(found[0]), *reversed(words)) if is_one(found[0][:end])), 0)
        end = found.start() + (size or min(words, default=len(found[0])))
        out += [text[at : found.start()], f"[{name}]" if size else text[found.start() : end]]
        at = end
    return "".join([*out, text[at:]])


def redacted_all(value: Any) -> Any:
    """Return JSON types with every text redacted, also the names of fields."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_all(name): redacted_all(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_all(one) for one in value]
    return value


def _digits(text: str) -> str:
    return _OTHERS.sub("", text)


_OTHERS = re.compile("[^0-9]+")


def is_card(text: str) -> bool:
    """Say whether digits end in the check digit of payment cards (ISO/IEC 7812, Luhn)."""
    text = _digits(text)
    if not 13 <= len(text) <= 19 or len(set(text)) == 1:
        return False
    digits = [int(c) for c in text]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Say whether letters and digits are an account number with the right check digits (ISO 13616)."""
    whole = re.sub(r"[ -]", "", text).upper()
    if not 15 <= len(whole) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in whole[4:] + whole[:4])) % 97 == 1


def is_phone(text: str) -> bool:
    """Say whether it has as many digits as a phone number (ITU E.164), and is written like one."""
    if not 7 <= len(_digits(text)) <= 15:
        return False
    if re.fullmatch(r"[\d.]+\.[\d.]+", text):  # versions and decimals are written so too
        return bool(re.fullmatch(r"\d{3}\.\d{3}\.\d{4}|0\d+(?:\.\d+)+", text)) and not text.startswith("0.")
    return text.startswith(("+", "(", "0")) or len(re.findall(r"[ ./()-]+", text)) >= 2


def is_ip(text: str) -> bool:
    """Say whether it is an address of the internet protocol, 4 or 6."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


_KINDS: tuple[tuple[re.Pattern[str], str, Callable[[str], bool]], ...] = (
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{2,24}(?!\w)"), "mail", lambda _: True),
    (re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}(?!\w)"), "iban", is_iban),
    (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"), "ip", is_ip),
    (re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])"), "ip", is_ip),
    (re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), "card", is_card),
    (re.compile(r"(?<![\w.])(?<!\d[ -])(?:\+|\()?\d(?:[ ./()-]{0,3}\d){6,14}(?!\w|[ -]\d)"), "phone", is_phone),
)  # fmt: skip
