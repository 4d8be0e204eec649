"""The planned hand-over, from both sides, and what an operator's `promote` does.

    primary   hold writers → everything captured → the follower has it on disk → the lease (or the role file) names the
              follower → offer → follow it
    follower  offer → primary of the next term → answer

Up to the moment at which the lease, or without one the primary's role file, names the follower, anything that goes
wrong lets writers go on as if nothing had happened. After it the place is the follower's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from walcast import wire
from walcast.errors import ConfigError, ProtocolViolation, Unavailable, WalcastError
from walcast.identifiers import check_identifier, printable
from walcast.lasting import outlast
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.terms import FOLLOWER, Standing, gaps_between, is_plausible_term
from walcast_follower.bootstrap.overwrite_check import has_database
from walcast_node.failover import announcer, primary_proof, role_changes
from walcast_node.failover import state as d
from walcast_primary.capture.capture_thread import Captured
from walcast_primary.publish.followers import Follower, Offer
from walcast_primary.publish.served_database import Refused, Served
from walcast_primary.tenure import now_s
from walcast_primary.transaction_log.transaction_log import Known

if TYPE_CHECKING:
    from walcast_follower.following import Following
    from walcast_node.failover.member import Member

log = logging.getLogger("walcast.failover")

TIMEOUT_S = 5.0
TIMEOUT_MOST_S = 60.0
DECIDE_S = 15.0
TAKE_OVER_S = 10.0
LOOK_S = 0.05
PROMOTE_S = 90.0
REPLICA_S = 20.0  # with PROMOTE_S less than the command waits
FAR_TXIDS = 10_000
KNOWN_MOST = 20
LAST_WORD_S = 10.0  # in which apps may ask whether what they have just committed is covered


# As the primary


async def hand_over(member: Member, request: pb.SwitchoverRequest) -> pb.SwitchoverReply:
    """Refused: nothing happened."""
    timeout_s = min(request.timeout_ms / 1000 or TIMEOUT_S, TIMEOUT_MOST_S)
    async with member.changing:
        serving = member.serving
        if serving is None or not member.tenure.holds:
            raise role_changes.refusal(member, member.standing.primary)
        served = serving.served
        follower = _target(served, request.to)
        loop = serving.database.loop
        until_s = time.monotonic() + timeout_s
        await _caught_up(served, follower, until_s)
        began_s = time.monotonic()
        captured = await _drained(served, follower, until_s)
        term = served.log.term + 1
        offer = follower.offer = Offer(asyncio.get_running_loop().create_future())
        try:
            await _give(member, follower, term)
        except BaseException:
            follower.offer = None
            if member.tenure.holds:
                loop.let_writers_go()
            raise
        last = {"term": term - 1, "position": str(captured.position), "followers": 1}
        member.handed_over = last, now_s() + LAST_WORD_S
        reply = await _offered(served, offer, term, captured)
        pause_us = int((time.monotonic() - began_s) * 1e6)
        await outlast(partial(role_changes.demote, member, follower.address, planned=True), member.path, "role")
    if not (reply is not None and reply.taken) and await _streams(member, term):
        pause_us = int((time.monotonic() - began_s) * 1e6)  # it found the lease before the offer
        reply = pb.HandOverReply(term=term, taken=True)
    if reply is None or not reply.taken:
        detail = printable(reply.detail) if reply is not None else "it does not answer"
        taken_later = "it does as soon as it runs again, or promote another one"
        advice = taken_later if member.keeper is not None else "promote it, or another one, with --force"
        raise Refused(
            pb.REFUSAL_KIND_NOT_PRIMARY,
            f"the place was given to {follower.id} at {follower.address}, which has not taken it yet: {detail}; "
            f"{advice}",
            primary=follower.address,
        )
    log.info("switched over", extra={"to": follower.id, "primary": follower.address, "pause_us": pause_us})
    return pb.SwitchoverReply(
        term=term,
        position=wire.position_message(captured.position, term - 1),
        primary=follower.address,
        pause_us=pause_us,
    )


def _target(served: Served, follower_id: str) -> Follower:
    known = sorted({f.id for f in served.followers.connected})
    found = served.followers.find(follower_id)
    if found is None:
        raise Refused(
            pb.REFUSAL_KIND_UNSPECIFIED,
            f"no follower {printable(follower_id)!r} is connected; there is: {', '.join(known[:KNOWN_MOST]) or 'none'}",
        )
    if not found.address:
        raise Refused(
            pb.REFUSAL_KIND_UNSPECIFIED, f"the follower {follower_id!r} is never to be promoted, or cannot be reached"
        )
    try:
        wire.Address.parse(found.address)
    except ConfigError as error:
        raise Refused(
            pb.REFUSAL_KIND_UNSPECIFIED, f"the follower {follower_id!r} cannot be reached: {error}"
        ) from error
    txid = served.log.position.txid
    behind = txid - found.applied_txid - gaps_between(served.history, found.applied_txid, txid)
    if behind > FAR_TXIDS:
        raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, f"the follower {follower_id!r} is {behind} transactions behind")
    return found


async def _caught_up(served: Served, follower: Follower, until_s: float) -> None:
    """The follower answers, and has on disk what is committed now, while writers go on: no writer waits for one that
    never acknowledges. Refused when it does not in time."""
    try:
        async with asyncio.timeout(until_s - time.monotonic()):
            await _durable(served, follower, served.log.position.txid)
    except TimeoutError:
        detail = (
            f"the follower {follower.id!r} did not confirm in time that it has everything on disk; nothing happened"
        )
        raise Refused(pb.REFUSAL_KIND_STOPPING, detail) from None
    except WalcastError as error:
        raise Refused(pb.REFUSAL_KIND_STOPPING, f"{error}; nothing happened") from error


async def _drained(served: Served, follower: Follower, until_s: float) -> Captured:
    """With writers held, everything committed is with the follower, on its disk; else writers go on, and Refused."""
    loop = served.database.loop

    def go_on() -> None:
        if served.database.tenure.holds:  # else this node is fenced by now
            loop.let_writers_go()

    try:
        async with asyncio.timeout(until_s - time.monotonic()):
            captured = await asyncio.wrap_future(loop.hold_writers())
            await _durable(served, follower, captured.position.txid)
    except TimeoutError:
        go_on()
        late = f"the follower {follower.id!r} did not have everything on disk in time"
        detail = f"{late}, or an app did not end its transaction"
        raise Refused(pb.REFUSAL_KIND_STOPPING, f"{detail}; nothing happened") from None
    except WalcastError as error:
        go_on()
        raise Refused(pb.REFUSAL_KIND_STOPPING, f"{error}; nothing happened") from error
    except BaseException:
        go_on()
        raise
    return captured


async def _durable(served: Served, follower: Follower, txid: int) -> None:
    waiting = asyncio.ensure_future(served.followers.until_durable(follower, txid))
    try:
        await asyncio.sleep(0)
        served.wake()  # have the stream ask for a reply
        await waiting
    finally:
        waiting.cancel()


async def _give(member: Member, follower: Follower, term: int) -> None:
    """Name the follower, for good: Refused when it was not."""
    if member.keeper is None:
        try:
            role_changes.stand(member, Standing(FOLLOWER, term - 1, follower.address, member.standing.history))
        except OSError as error:
            detail = f"what this node becomes cannot be written down: {error.strerror}; nothing happened"
            raise Refused(pb.REFUSAL_KIND_STOPPING, detail) from error
        member.tenure.end(f"handed over to {follower.address}", heir=follower.address)
        return
    member.handing = asyncio.get_running_loop().create_future()
    member.keeper.feed(d.HandOver(now_s(), follower.id, follower.address))
    try:
        async with asyncio.timeout(DECIDE_S):
            done = await member.handing
    except TimeoutError:
        detail = "the archive does not answer: it is not known yet who has the lease; writers are held until it is"
        raise Refused(pb.REFUSAL_KIND_FENCED, detail) from None
    finally:
        member.handing = None
    if not done:
        raise Refused(pb.REFUSAL_KIND_STOPPING, "the lease could not be handed over; nothing happened")
    member.tenure.end(f"handed over to {follower.address}", heir=follower.address)


async def _offered(served: Served, offer: Offer, term: int, captured: Captured) -> pb.HandOverReply | None:
    offer.message = pb.HandOver(term=term, position=wire.position_message(captured.position, term - 1))
    served.wake()
    try:
        async with asyncio.timeout(TAKE_OVER_S):
            return await offer.taken
    except TimeoutError:
        return None


async def _streams(member: Member, term: int) -> bool:
    """Is there a stream of the primary of `term`, within the time in which it was to take over?"""
    with suppress(TimeoutError):
        async with asyncio.timeout(TAKE_OVER_S):
            while not (member.following is not None and member.following.term >= term):
                await asyncio.sleep(LOOK_S)
            return True
    return False


# As the follower


async def take_over(member: Member, offer: pb.HandOver) -> pb.HandOverReply:
    """The primary has given everything, and its place."""
    if not member.settings.eligible:
        return pb.HandOverReply(term=offer.term, taken=False, detail="this follower is never to be promoted")
    seen = max(member.standing.term, member.following.term if member.following is not None else 0)
    if not (seen < offer.term and is_plausible_term(offer.term, seen)):
        detail = f"term {offer.term} is not believed: the newest term that this follower has seen is {seen}"
        log.error("a primary offers its place in an impossible term", extra={"term": offer.term, "newest_seen": seen})
        return pb.HandOverReply(term=offer.term, taken=False, detail=detail)
    promotion = member.expect_promotion()
    if member.keeper is not None:
        member.leasing.feed(ended=True)  # look at the lease now
    else:
        member.act(d.Promote(offer.term))
    try:
        async with asyncio.timeout(TAKE_OVER_S):
            await asyncio.shield(promotion)
    except (TimeoutError, WalcastError) as error:
        return pb.HandOverReply(term=offer.term, taken=False, detail=str(error) or "not in time")
    return pb.HandOverReply(term=offer.term, taken=True)


async def promote(member: Member, *, force: bool) -> dict[str, Any]:
    """What an operator asked for. ConfigError when it cannot be, Unavailable when it may be tried again."""
    if member.serving is None and not member.settings.eligible:
        raise ConfigError(f"{member.path}: this follower runs with --never-promote")
    if member.serving is None and member.unreachable:
        raise ConfigError(member.unreachable)
    following = await _replica(member)
    if force:
        await following.name_after_loss()  # a power failure may have taken the name of what it confirmed
    if following.applier is None or not following.applier.position:
        raise Unavailable(f"{member.path}: no primary was found yet that knows the state of this replica")
    promotion = member.expect_promotion()
    if not force:
        await _ask_primary(member, following.where.client.primary)
    elif member.keeper is not None:
        member.keeper.feed(d.Wanted(now_s()))
    else:
        known = following.history[-1].term if following.history else 0
        before = [*member.settings.primaries, *following.where.all]
        database = following.database or member.database_name
        term = max(following.applier.term, known, member.standing.term, 1) + 1
        member.act(d.Promote(term))
        member.spawn(partial(announcer.tell, member, before, term, database))
    try:
        async with asyncio.timeout(PROMOTE_S):
            return await asyncio.shield(promotion)
    except TimeoutError:
        keeper = member.keeper
        why = keeper.error if keeper is not None and keeper.error else "the lease could not be had"
        raise Unavailable(f"{member.path}: not promoted within {PROMOTE_S:.0f} s: {why}") from None


async def _replica(member: Member) -> Following:
    """What follows the primary, with its replica open: waits for the end of a start or of a promotion that is under
    way. ConfigError when this node is the primary, Unavailable when there is no replica."""
    until_s = now_s() + REPLICA_S
    while True:
        if member.serving is not None:
            raise ConfigError(f"{member.path}: this node is the primary" + ("" if member.tenure.holds else ", fenced"))
        following = member.following
        if following is not None and following.applier is not None:
            return following
        if not has_database(member.path) or now_s() >= until_s:
            raise Unavailable(f"{member.path}: there is no replica yet")
        await asyncio.sleep(role_changes.WAIT_S)


async def _ask_primary(member: Member, primary: wire.Address) -> None:
    """Have it hand over: nothing is lost then."""
    advice = "if it is gone for good, promote with --force"
    request = pb.SwitchoverRequest(database=member.database_name, to=member.id)

    def ask() -> pb.SwitchoverReply:
        with member.channel(primary) as channel:
            reply: pb.SwitchoverReply = rpc.ReplicationStub(channel).Switchover(request, timeout=TIMEOUT_MOST_S)
            return reply

    try:
        reply = await asyncio.to_thread(ask)
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
            raise ConfigError(
                f"the primary at {primary} does not take a change of role from this node: run "
                f"`walcast switchover {primary} --to {member.id}` as an operator, or give this node the role operate "
                "there"
            ) from error
        failure = member.host.credentials.failure(primary, code.name, error.details(), TIMEOUT_MOST_S)
        raise Unavailable(f"the primary at {failure}; {advice}") from error
    if reply.HasField("refusal"):
        raise Unavailable(f"the primary at {primary} does not hand over: {reply.refusal.detail}; {advice}")


def _newer(term: int, served: Served) -> pb.StepDownReply:
    """To a primary of an older term: it is the one that must make way."""
    refused = Refused(pb.REFUSAL_KIND_OLDER_TERM, f"term {term} is not newer than this node's")
    reply = pb.StepDownReply(refusal=refused.refusal, term=served.log.term)
    begun = next((begun for begun in served.history if begun.term == served.log.term), None)
    if begun is not None:
        reply.position.CopyFrom(wire.position_message(begun.start, begun.term))
    return reply


async def step_down(member: Member, request: pb.StepDownRequest) -> pb.StepDownReply:
    """Another node was promoted, in a set without a lease: it must prove that before anything is changed here."""
    if member.keeper is not None:
        raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, "the lease says who is the primary here")
    try:
        check_identifier("primary's address", request.primary)
        address = wire.Address.parse(request.primary)
    except (ConfigError, ProtocolViolation) as error:
        raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, str(error)) from error
    async with member.changing:
        serving = member.serving
        if serving is None:
            raise role_changes.refusal(member, member.standing.primary)
        transactions, start = serving.served.log, wire.position_of(request.position)
        seen = max(transactions.term, member.standing.term)
        if not is_plausible_term(request.term, seen):
            facts = {"primary": request.primary, "term": request.term, "newest_seen": seen}
            log.error("a node says that it is the primary of an impossible term", extra=facts)
            detail = f"term {request.term} is not believed: the newest term that this node has seen is {seen}"
            raise Refused(pb.REFUSAL_KIND_UNSPECIFIED, detail)
        if request.term <= transactions.term:
            facts = {"primary": request.primary, "term": request.term, "own_term": transactions.term}
            log.error("another node says that it is the primary: there are two", extra=facts)
            return _newer(request.term, serving.served)
        if start and start.txid <= transactions.position.txid and transactions.knows(start) is Known.DIVERGED:
            detail = f"the term began at {start}, which is not on this node's history: another database's?"
            raise Refused(pb.REFUSAL_KIND_DIVERGED, detail)
        await primary_proof.check_primary(member, serving.served, address, request.term)
        await outlast(partial(role_changes.demote, member, request.primary), member.path, "role")
    return pb.StepDownReply(term=request.term)
