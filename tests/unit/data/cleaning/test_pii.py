import ipaddress
import random
import sysconfig
from pathlib import Path

import pytest

from chinchilla_ds.data.cleaning.pii import (
    EMAIL_PLACEHOLDER,
    IP_PLACEHOLDER,
    PHONE_PLACEHOLDER,
    replace_emails,
    replace_ip_addresses,
    replace_phone_numbers,
)


@pytest.mark.parametrize(
    "email",
    [
        *(
            "bob@corp.com",
            "first.last+tag@mail.corp.co.uk",
            "BOB@CORP.COM",
            "a_b-c%d@x-y.io",
            "12345@163.com",
            "q@q.dev",
        ),
        *("owner-freebsd-isp@FreeBSD.ORG", "x@a.b.c.d.edu", "j.m@firma.de"),
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "<{}>", "mail to {}.", "mailto:{}", "({}, me)", "我的邮箱{}谢谢", "a|{}|b", "...{}?", "é{}"]
)
def test_emails_are_replaced(email: str, around: str) -> None:
    assert replace_emails(around.format(email)) == (around.format(EMAIL_PLACEHOLDER), 1)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "bob@example.com",
            "you@mail.example.org",
            "git@github.com:org/repo.git",
            "https://user:secret@host.com/path",
        ),
        *(
            "ssh://git@host.com/x",
            "a@b.T",
            "q@k.to(device)",
            "x@self.weight",
            "@pytest.mark.parametrize",
            "actions/checkout@v4",
        ),
        *(
            "lodash@4.17.21",
            "python@3.11.rb",
            "icon@2x.png",
            "a @ b.com",
            "user@localhost",
            "u@h.example",
            "@bob on x.com",
            "@",
        ),
        *("bob@corp", "bob@.com", "x@y@", "k@corp.comet", "$foo@bar.baz"),
    ],
)
def test_what_only_looks_like_an_email_stays(text: str) -> None:
    assert replace_emails(text) == (text, 0)


def test_an_email_within_a_url_is_replaced() -> None:
    text = "https://host.com/unsubscribe?mail=bob@corp.com&x=1"
    assert replace_emails(text) == (f"https://host.com/unsubscribe?mail={EMAIL_PLACEHOLDER}&x=1", 1)


@pytest.mark.parametrize(
    "around", ["{}", "[{}]", "from {}.", "http://{}:8080/x", "{}/24", "ip={}, x", "host ({})", "地址{}在", "{}\n"]
)
def test_public_ipv4_addresses_are_replaced_and_no_others(around: str) -> None:
    generator = random.Random(7)
    replaced = 0
    for _ in range(300):
        address = ipaddress.IPv4Address(generator.choice([generator.getrandbits(32)] * 3 + [0xC0A80001]))
        is_public = address.is_global and not address.is_multicast and sum(c.isdigit() for c in str(address)) > 6
        expected = IP_PLACEHOLDER if is_public else str(address)
        assert replace_ip_addresses(around.format(address)) == (around.format(expected), int(is_public))
        replaced += is_public
    assert 100 < replaced < 250


def test_ranges_of_addresses_are_replaced_whole() -> None:
    expected = f"{IP_PLACEHOLDER}-{IP_PLACEHOLDER}, {IP_PLACEHOLDER}"
    assert replace_ip_addresses("93.184.216.34-93.184.216.99, 93.184.217.1") == (expected, 3)


@pytest.mark.parametrize("address", ["2a00:1450:4001:81b::200e", "2606:2800:220:1:248:1893:25c8:1946", "2A00:1450::1"])
@pytest.mark.parametrize("around", ["{}", "[{}]", "at {} now", "{}/64", "http://[{}]:80/"])
def test_public_ipv6_addresses_are_replaced(address: str, around: str) -> None:
    assert replace_ip_addresses(around.format(address)) == (around.format(IP_PLACEHOLDER), 1)


@pytest.mark.parametrize(
    "text",
    [
        *("8.8.8.8", "1.2.3.4", "v10.20.30.40", "version 91.10.44.124", "Version: 91.10.44.124", "foo==91.10.44.124"),
        *(
            "foo>=91.10.44.124",
            "lib-91.10.44.124",
            "91.10.44.124rc1",
            "91.10.44.124-beta",
            "Chrome/91.10.44.124",
            "2.5.29.37",
        ),
        *(
            "1.3.6.1.4.1.311.60",
            "91.0.4472.124",
            "section 12.13.14.15",
            "§ 12.13.14.15",
            "12.13.14.256",
            "012.13.14.15",
        ),
        *(
            "192.168.0.1",
            "10.0.0.1",
            "127.0.0.1",
            "169.254.10.20",
            "203.0.113.77",
            "239.255.255.250",
            "x.93.184.216.34",
        ),
        *("2001:db8::1", "fe80::1", "::1", "std::vector<int>", "x[::2]", "2024:05:17 10:11:12", "aa:bb:cc:dd:ee:ff"),
        *("20:30:40", "3fff::", "2abc::def::1", "2606:2800:220:1:248:1893:25c8:1946:1", "use 2000::into"),
    ],
)
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert replace_ip_addresses(text) == (text, 0)


@pytest.mark.parametrize(
    "number",
    [
        *("212-555-0123", "212.555.0123", "(212) 555-0123", "(212)555-0123", "1-212-555-0123", "1 (212) 555-0123"),
        *(
            "+1 212 555 0123",
            "+1-212-555-0123",
            "+1 (212) 555-0123",
            "+12125550123",
            "+44 20 7946 0958",
            "+49 (0)30 123 456",
        ),
        *("+33 1 23 45 67 89", "+86 138 0013 8000", "+919876543210", "+47 22 12 34 56"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "call {}.", "tel:{}", "({})", "{}, or", "Tel. {}\n", "电话{}。"])
def test_phone_numbers_are_replaced(number: str, around: str) -> None:
    assert replace_phone_numbers(around.format(number)) == (around.format(PHONE_PLACEHOLDER), 1)


@pytest.mark.parametrize(
    "text",
    [
        *("2125550123", "1700000000", "3.14159265358979", "1e+10000000", "x+12125550123", "2024-01-31", "+2021-01-02"),
        *(
            "+20-01-2021",
            "31.12.1999",
            "1990-1995",
            "555 555 5555",
            "978-3-16-148410-0",
            "4111 1111 1111 1111",
            "212-555-01234",
        ),
        *(
            "f(212) 555-0123",
            "12:30+01:00",
            "2024-01-01T10:00:00+0100",
            "+1",
            "+ 1 2 3",
            "112-555-0123",
            "212-555.0123",
        ),
        *("0x212-555-0123", "+281474976710656", "+10011010010", "a-212-555-0123", "192.168.100.200", "10.212.555.0123"),
        *("#define N (212)", "[212, 555, 1234]", "v212.555.0123.4", "123e4567-e89b-12d3-a456-426614174000"),
    ],
)
def test_what_only_looks_like_a_phone_number_stays(text: str) -> None:
    assert replace_phone_numbers(text) == (text, 0)


def test_numbers_dates_and_versions_stay() -> None:
    generator = random.Random(11)

    def number(low: int, high: int) -> int:
        return generator.randint(low, high)

    makers = (
        lambda: f"{number(1900, 2099)}-{number(1, 12):02}-{number(1, 28):02} {number(0, 23):02}:{number(0, 59):02}",
        lambda: f"{number(1, 28):02}.{number(1, 12):02}.{number(1900, 2099)}",
        lambda: f"{number(1, 12)}/{number(1, 28)}/{number(1900, 2099)}",
        lambda: f"v{number(0, 300)}.{number(0, 300)}.{number(0, 300)}.{number(0, 300)}",
        lambda: f"{number(0, 30)}.{number(0, 30)}.{number(0, 30)}",
        lambda: f"package=={number(0, 300)}.{number(0, 200)}.{number(0, 200)}.{number(0, 200)}",
        lambda: repr(generator.uniform(-1e6, 1e6)),
        lambda: str(number(-(10**18), 10**18)),
        lambda: f"{number(0, 10**9):,}",
        lambda: f"0x{generator.getrandbits(64):x}",
        lambda: (
            f"array[{number(0, 999)}:{number(0, 999)}] + {number(0, 10**6)} - ({number(0, 999)}) * 1e+{number(0, 99)}"
        ),
        lambda: f"{number(1900, 2099)}-{number(1900, 2099)}",
    )
    for _ in range(500):
        text = " ".join(generator.choice(makers)() for _ in range(20))
        for replace in (replace_emails, replace_ip_addresses, replace_phone_numbers):
            assert replace(text) == (text, 0)


def test_the_source_code_of_this_python_keeps_everything_that_is_not_an_address() -> None:
    """Whatever is replaced in real code holds an @ with a dot after it, or four numbers; most files hold neither."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    num_changed = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        for replace, placeholder, needed in (
            (replace_emails, EMAIL_PLACEHOLDER, "@"),
            (replace_ip_addresses, IP_PLACEHOLDER, "."),
            (replace_phone_numbers, PHONE_PLACEHOLDER, "555"),
        ):
            after = replace(text)[0].split("\n")
            changed = [(old, new) for old, new in zip(lines, after, strict=True) if old != new]
            assert all(needed in old and placeholder in new for old, new in changed), (path, changed)
            num_changed += len(changed)
    assert 10 < num_changed < 200


@pytest.mark.parametrize("replace", [replace_emails, replace_ip_addresses, replace_phone_numbers])
def test_placeholders_stay(replace: object) -> None:
    text = f"{EMAIL_PLACEHOLDER} {IP_PLACEHOLDER}-{PHONE_PLACEHOLDER}@{IP_PLACEHOLDER}.com +{PHONE_PLACEHOLDER}"
    assert callable(replace)
    assert replace(text) == (text, 0)
