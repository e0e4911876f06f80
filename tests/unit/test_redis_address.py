"""URLs of Redis: single servers, sentinels, clusters; and what is said of those that are none."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.settings import load_settings
from stream_app.stores.redis_address import RedisAddress, parse_redis_url
from stream_app.stores.redis_client import place

KEPT = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h:1/2", RedisAddress("single", tls=False)),
        ("rediss://h", RedisAddress("single", tls=True)),
        ("unix:///run/redis.sock", RedisAddress("single", tls=False)),
        ("redis+sentinel://a/s", RedisAddress("sentinel", False, (("a", 26379),), "s")),
        ("rediss+sentinel://a:1,b/my%20s/4", RedisAddress("sentinel", True, (("a", 1), ("b", 26379)), "my s", 4)),
        ("redis+sentinel://[::1]:3/s", RedisAddress("sentinel", False, (("::1", 3),), "s")),
        ("redis+cluster://a, b:7", RedisAddress("cluster", False, (("a", 6379), ("b", 7)))),
        ("rediss+cluster://a/0", RedisAddress("cluster", True, (("a", 6379),))),
    ],
)  # fmt: skip
def test_forms(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "starts with redis://"),
        ("h:6379", "starts with redis://"),
        ("http://h", "starts with redis://"),
        ("unix+sentinel://h/s", "starts with redis://"),
        ("redis+sentinels://h/s", "starts with redis://"),
        ("redis+single://h", "starts with redis://"),
        ("redis://h:port", "port is not a number"),
        ("redis+sentinel://h:26379", "service's name is missing"),
        ("redis+sentinel://h/s/x", "database behind the service's name is not a number"),
        ("redis+sentinel://h/s/1?x=2", "options after [?] are for single servers"),
        ("redis+sentinel://h,,i/s", "number 2 of the hosts is not host:port"),
        ("redis+sentinel:///s", "number 1 of the hosts"),
        ("redis+cluster://h:0", "number 1 of the hosts"),
        ("redis+cluster://h:65536", "number 1 of the hosts"),
        ("redis+cluster://h:1/3", "has no databases"),
    ],
)
def test_what_is_no_url_of_redis_is_said_why(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_redis_url(url)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+sentinel", "redis+cluster", "redis"])
@given(username=st.text(max_size=8), password=st.text(min_size=1, max_size=12))
def test_names_and_passwords_of_any_characters(scheme: str, username: str, password: str) -> None:
    try:
        user, word = quote(username, safe=""), quote(password, safe="")
    except UnicodeEncodeError:  # a half of a character is no text
        return
    address = parse_redis_url(f"{scheme}://{user}:{word}@h:1/{'0' if 'sentinel' not in scheme else 's/0'}")
    assert (address.username, address.password) == (username or None, password)
    assert repr(address) == repr(parse_redis_url(f"{scheme}://h:1/{'0' if 'sentinel' not in scheme else 's/0'}"))


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+sentinel", "rediss+cluster", "http"])
@given(rest=st.text(alphabet="ab:/@,[]?#%1 ", max_size=20), place=st.integers(0, 20))
def test_whatever_is_wrong_no_part_of_it_is_shown(scheme: str, rest: str, place: int) -> None:
    said = ""
    try:
        parse_redis_url(f"{scheme}://{rest[:place]}{KEPT}{rest[place:]}")
    except ValueError as error:
        said = f"{error!r}{error.__cause__!r}"
    assert KEPT not in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"redis://u:{KEPT}@h:7/1", "Redis at h:7"),
        (f"unix://u:{KEPT}@/run/r.sock", "Redis at /run/r.sock"),
        (f"redis+sentinel://u:{KEPT}@a,b:1/shop", "Redis 'shop' of the sentinels a:26379, b:1"),
        (f"redis+cluster://u:{KEPT}@a,b:1", "Redis Cluster at a:6379, b:1"),
    ],
)
def test_where_it_is_said_for_people(url: str, said: str) -> None:
    assert place(load_settings(redis=url)) == said
