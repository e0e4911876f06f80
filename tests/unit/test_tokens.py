"""Tokens of a token endpoint: asked for when they are needed, shared, and nothing of a secret in what is said."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import pytest
from aiokafka.errors import KafkaConnectionError

from stream_app.delivery.tokens import ClientCredentials
from tests.token_endpoint import TokenEndpoint, token_endpoint

SECRET = "hunter2 s3cret:&%"  # noqa: S105 - with what has to be encoded in a form


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenEndpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with token_endpoint() as answering:
        answering.clients["tail race"] = SECRET
        yield answering


@pytest.fixture
def secrets() -> list[str]:
    """The client secret as it is now: the last one."""
    return [SECRET]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(endpoint: TokenEndpoint, secrets: list[str], clock: Clock) -> ClientCredentials:
    return ClientCredentials(
        url=endpoint.url,
        client_id="tail race",
        secret=lambda: secrets[-1],
        scope="kafka",
        context=ssl.create_default_context,
        clock=clock,
    )


async def test_a_token_is_asked_for_with_the_grant_and_the_scope(provider: ClientCredentials, endpoint: TokenEndpoint):
    assert await provider.token() == "token-0"
    assert endpoint.asked == [{"grant_type": ["client_credentials"], "scope": ["kafka"]}]


async def test_connections_share_a_token_until_four_fifths_of_its_life(
    provider: ClientCredentials, endpoint: TokenEndpoint, clock: Clock
):
    assert await asyncio.gather(*(provider.token() for _ in range(5))) == ["token-0"] * 5
    clock.now += 239
    assert await provider.token() == "token-0"
    clock.now += 1
    assert await provider.token() == "token-1"
    assert len(endpoint.asked) == 2


async def test_a_token_whose_life_is_not_told_is_for_one_connection(
    provider: ClientCredentials, endpoint: TokenEndpoint
):
    endpoint.lives_s = None
    assert [await provider.token(), await provider.token()] == ["token-0", "token-1"]


async def test_another_secret_means_another_token(
    provider: ClientCredentials, endpoint: TokenEndpoint, secrets: list[str]
):
    assert await provider.token() == "token-0"
    endpoint.clients["tail race"] = "rotated"
    assert await provider.token() == "token-0", "the old one lives on"
    secrets.append("rotated")
    assert await provider.token() == "token-1"


async def test_a_refusal_says_where_and_why_and_nothing_of_the_secret(
    provider: ClientCredentials, endpoint: TokenEndpoint
):
    endpoint.clients.clear()
    with pytest.raises(KafkaConnectionError, match=r"/token refused: HTTP 401, invalid_client") as caught:
        await provider.token()
    assert "hunter2" not in str(caught.value) + repr(provider)
    endpoint.clients["tail race"] = SECRET
    assert await provider.token() == "token-0", "it is asked again at the next connection"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"access_token": ""}',
        b'{"access_token": 7}',
        b'{"access_token": "t", "expires_in": "x"}',
    ],
)
async def test_an_answer_that_is_none_is_an_error_that_does_not_show_it(
    provider: ClientCredentials, endpoint: TokenEndpoint, body: bytes
):
    endpoint.raw = (200, {}, body)
    with pytest.raises(KafkaConnectionError, match=r"answered without an access_token$"):
        await provider.token()


async def test_a_redirect_is_not_followed_for_the_secret_would_go_along(
    provider: ClientCredentials, endpoint: TokenEndpoint
):
    with token_endpoint() as elsewhere:
        elsewhere.clients["tail race"] = SECRET
        endpoint.raw = (307, {"Location": elsewhere.url}, b"")
        with pytest.raises(KafkaConnectionError, match="HTTP 307"):
            await provider.token()
        assert not elsewhere.asked


async def test_an_endpoint_that_is_away_is_as_a_broker_that_is_away(clock: Clock):
    nowhere = ClientCredentials(
        url="http://127.0.0.1:1/token",
        client_id="c",
        secret=lambda: SECRET,
        scope=None,
        context=ssl.create_default_context,
        clock=clock,
    )
    with pytest.raises(KafkaConnectionError, match="does not answer"):
        await nowhere.token()
