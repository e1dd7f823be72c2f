"""E-mail addresses, public IP addresses and telephone numbers, replaced by a placeholder for each kind.

The placeholders are those of Dolma (Soldaini et al. 2024, arXiv:2402.00159): constants, unlike FineWeb's, which cycle
through several addresses and therefore depend on what a worker has read before. No placeholder matches a pattern here.

Personal data and code often look alike. Doubtful matches are left unchanged: docs/cleaning.md lists what the patterns
replace and what they leave. Each function returns the text and the number of replacements, as
`re.subn`.
"""

import ipaddress
import re
from collections.abc import Callable

EMAIL_PLACEHOLDER = "|||EMAIL_ADDRESS|||"
IP_PLACEHOLDER = "|||IP_ADDRESS|||"
PHONE_PLACEHOLDER = "|||PHONE_NUMBER|||"

_COUNTRIES = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bv bw by bz "
    "ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm "
    "fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is "
    "it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm "
    "mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr "
    "ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sj sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg "
    "th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw"
)
_GENERIC = (
    "com org net edu gov mil int info biz name pro aero asia coop jobs mobi museum tel travel academy agency app "
    "blog club cloud company consulting design dev digital email engineering global group health law life live "
    "media network news one online page science shop site solutions space store studio systems team tech "
    "technology today website work world xyz"
)

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+-])(?<![A-Za-z0-9_%+-]\.)"  # where a local part starts
    r"[A-Za-z0-9_](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_+-])?"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    rf"(?i:{'|'.join((*_GENERIC.split(), *_COUNTRIES.split()))}))"
    r"(?![A-Za-z0-9_-]|\.[A-Za-z0-9]+\(|\(|:[A-Za-z0-9_~/])"  # not `a@b.to(c)`, `git@host.com:path`
)
_EMAIL_HINT = re.compile(r"@(?<=[A-Za-z0-9_%+-]@)[A-Za-z0-9-]{1,63}\.")
_URL_LOGIN = re.compile(r"://[^\s/?#]*\Z")
_RESERVED_DOMAIN = re.compile(r"(?i)(?:\A|\.)example\.(?:com|net|org)\Z")

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(
    rf"(?<![\w.])(?<![A-Za-z][-/])(?:{_OCTET}\.){{3}}{_OCTET}"
    r"(?!\w|\.[0-9]|-(?![0-9]{1,3}\.[0-9]))",
    re.ASCII,  # Chinese puts no space between words and numbers
)
_MIN_IPV4_CHARACTERS = len("1.2.34.567")
"""Shorter addresses, of at most 6 digits, are left: most are version, section and object numbers; 1 address in 700."""
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}(?![\w:])", re.ASCII)
_IPV4_HINT = re.compile(r"\.[0-9]{1,3}\.[0-9]")
_IPV6_HINT = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]")
_VERSION_BEFORE = re.compile(
    r"(?i)(?:\b(?:v|ver\.?|versions?|releases?|rev\.?|revisions?|build|firmware|sections?|sec\.?|chapter|clause)[\s:=\"'(]*"
    r"|[=<>~!]=|§\s?|[~^])\Z"
)

_PHONE = re.compile(
    r"(?<![\w.+/=\\-])(?<!\)[ .-])(?:"
    # with a country code: groups of 2 to 4 digits, or 11 to 13 digits in one
    r"\+[1-9][0-9]{0,2}[ .-]?\([0-9]{1,4}\)[ .-]?[0-9]{2,4}(?:[ .-][0-9]{2,4}){1,3}"
    r"|\+[1-9][0-9]{0,2}[ .-][0-9]{1,4}(?:[ .-][0-9]{2,4}){1,4}"
    r"|\+(?:1[2-9]|[2-9][0-9])[0-9]{9,11}"
    # North America: (212) 555-0123, 212-555-0123, 212.555.0123
    r"|(?:1[ .-])?\([2-9][0-9]{2}\)[ .-]?[2-9][0-9]{2}[ .-][0-9]{4}"
    r"|(?:1([.-]))?[2-9][0-9]{2}([.-])[2-9][0-9]{2}\2[0-9]{4}"
    r")(?![\w:+/=]|[.,-][0-9])",
    re.ASCII,
)
_PLUS_HINT = re.compile(r"\+[1-9][0-9 .(-]")
_PHONE_HINT = re.compile(r"[2-9][0-9]{2}[ .-][0-9]{4}(?![0-9])")
_MIN_INTERNATIONAL_DIGITS = 9
_MAX_INTERNATIONAL_DIGITS = 15
"""ITU-T E.164: a number has at most 15 digits with its country code. A date has 8."""


def replace_emails(text: str) -> tuple[str, int]:
    """Replace e-mail addresses, except logins of URLs and those at example.com, .net and .org (RFC 2606)."""
    if not _EMAIL_HINT.search(text):
        return text, 0
    return _replace(text, pattern=_EMAIL, placeholder=EMAIL_PLACEHOLDER, is_meant=_is_email)


def replace_ip_addresses(text: str) -> tuple[str, int]:
    """Replace IP addresses that are public, as FineWeb does; version and section numbers are left."""
    num_v4 = num_v6 = 0
    if _IPV4_HINT.search(text):
        text, num_v4 = _replace(text, pattern=_IPV4, placeholder=IP_PLACEHOLDER, is_meant=_is_public_ipv4)
    if _IPV6_HINT.search(text):
        text, num_v6 = _replace(text, pattern=_IPV6, placeholder=IP_PLACEHOLDER, is_meant=_is_public_ipv6)
    return text, num_v4 + num_v6


def replace_phone_numbers(text: str) -> tuple[str, int]:
    """Replace telephone numbers: with a country code, or written as in North America."""
    if not (_PLUS_HINT.search(text) or _PHONE_HINT.search(text)):
        return text, 0
    return _replace(text, pattern=_PHONE, placeholder=PHONE_PLACEHOLDER, is_meant=_is_phone)


def _replace(
    text: str, *, pattern: re.Pattern[str], placeholder: str, is_meant: Callable[[re.Match[str]], bool]
) -> tuple[str, int]:
    pieces: list[str] = []
    end = 0
    for match in pattern.finditer(text):
        if is_meant(match):
            pieces += (text[end : match.start()], placeholder)
            end = match.end()
    return ("".join((*pieces, text[end:])), len(pieces) // 2) if pieces else (text, 0)


def _before(match: re.Match[str], *, num_characters: int) -> str:
    return match.string[max(0, match.start() - num_characters) : match.start()]


def _is_email(match: re.Match[str]) -> bool:
    return not (_RESERVED_DOMAIN.search(match[1]) or _URL_LOGIN.search(_before(match, num_characters=80)))


def _is_public_ipv4(match: re.Match[str]) -> bool:
    if len(match[0]) < _MIN_IPV4_CHARACTERS or _VERSION_BEFORE.search(_before(match, num_characters=24)):
        return False
    return _is_public(ipaddress.IPv4Address(match[0]))


def _is_public_ipv6(match: re.Match[str]) -> bool:
    try:
        return _is_public(ipaddress.IPv6Address(match[0]))
    except ValueError:
        return False


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not address.is_multicast


def _is_phone(match: re.Match[str]) -> bool:
    num_digits = sum(character.isdigit() for character in match[0])
    return not match[0].startswith("+") or _MIN_INTERNATIONAL_DIGITS <= num_digits <= _MAX_INTERNATIONAL_DIGITS
