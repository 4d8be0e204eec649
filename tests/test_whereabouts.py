"""Where the primary may be: what the operator has given counts for more than what nodes have named."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from walcast.errors import ConfigError, Unavailable
from walcast.wire import Address
from walcast_follower.subscribe.primary_locator import Whereabouts

GIVEN, NAMED, FAR = Address("127.0.0.1", 1), Address("127.0.0.1", 2), Address("192.0.2.7", 3)


def connect(address: Address) -> Any:
    if not address.is_loopback:
        raise ConfigError(f"{address} is not on this machine")

    async def close() -> None: ...

    return SimpleNamespace(primary=address, is_outdated=False, close=close)


def test_an_address_that_a_node_named_is_not_given_though_it_is_tried_first() -> None:
    async def run() -> None:
        where = Whereabouts([NAMED, GIVEN], connect, [GIVEN])
        assert (await where.turn()).primary == NAMED
        assert not where.is_given
        where.forget_told()
        where.failed()
        assert (await where.turn()).primary == GIVEN
        assert where.is_given

    asyncio.run(run())


def test_an_address_that_a_node_named_and_that_may_not_be_tried_is_passed_over() -> None:
    async def run() -> None:
        where = Whereabouts([NAMED, FAR, GIVEN], connect, [GIVEN])
        where.failed()
        with pytest.raises(Unavailable):
            await where.turn()
        assert (await where.turn()).primary == GIVEN
        where = Whereabouts([GIVEN, FAR], connect)
        where.failed()
        with pytest.raises(ConfigError):
            await where.turn()

    asyncio.run(run())
