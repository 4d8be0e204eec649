"""The changes of role, carried out: one at a time, each so that a crash between any two steps is taken up again.

    promote     applier → capture: the log begins at the replica's position in the new term; role file; writers go
    go_to       capture → applier: writers held, last commits logged, journal, role file; then whatever the primary says

While it changes hands the database is open and SQLite's write lock is held. What a deposed primary's log has beyond the
fork is kept when the new primary tells where that was (`keep_discarded`), also when it does so only after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import sys
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from walcast import audit
from walcast.archive import list_files
from walcast.discarded import Circumstances
from walcast.errors import ConfigError, Corrupt, Stopped, WalcastError
from walcast.filesystem import write_durably
from walcast.held import Held
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import StateDir, make_state_dir, open_state_file, state_dir
from walcast.terms import FOLLOWER, PRIMARY, Standing, TermStart, begun_with, first_txid, write_standing
from walcast.wire import Address
from walcast_follower.apply.page_owners import Written
from walcast_follower.apply.position_journal import Journal
from walcast_follower.bootstrap.overwrite_check import has_database
from walcast_follower.bootstrap.rebase import catch_up
from walcast_follower.following import FORKED, Following
from walcast_node.commands.progress import Progress
from walcast_node.failover import state as d
from walcast_node.failover.lost_transactions import missing_facts
from walcast_node.process.serving import Place, Serving
from walcast_primary.archiving.lineage import archive_end
from walcast_primary.database import Database
from walcast_primary.publish.served_database import Refused
from walcast_primary.recovery.divergent_log import ForkNotInLog, discard
from walcast_primary.recovery.resume import State
from walcast_primary.tenure import now_s
from walcast_primary.transaction_log.transaction_log import TransactionLog

if TYPE_CHECKING:
    from walcast_follower.apply.applier import Applier
    from walcast_node.failover.lease import Lease
    from walcast_node.failover.member import Member

log = logging.getLogger("walcast.failover")

CATCH_UP_S = 10.0
HEARTBEATS_S = 1.0
HEARTBEATS = 5  # in the time of a lease: what is left of a tenure is told by them
WAIT_S = 0.02
OPEN_S = 60.0
LOOK_S = 0.1
LATE_S = (60.0, 600.0)
ID_BYTES = 1024


def persistent_id(database: Path) -> str:
    """The same node keeps its id: made once, kept beside the database."""
    folder = state_dir(database)
    known = _read_id(folder)
    if not known:
        known = uuid.uuid4().hex[:12]
        make_state_dir(folder)
        write_durably(folder / "id", f"{known}\n".encode())
    return known


def _read_id(folder: Path) -> str:
    with suppress(FileNotFoundError), open_state_file(folder, "id") as file:
        return file.read(ID_BYTES).decode(errors="replace").strip()
    return ""


def forget_state(database: Path) -> None:
    """It never was a node's: leave nothing behind, unless another process has made it its own meanwhile."""
    with suppress(ConfigError):
        state = StateDir(database)
        shutil.rmtree(state.path, ignore_errors=True)
        state.close()


# To be the primary


async def open_primary(member: Member, held: Held | None = None, at: State | None = None, term: int = 0) -> Serving:
    """Capture, for the member's tenure; not on the air yet."""
    settings = member.host.settings
    standing = member.standing
    place = Place(member.tenure, max(term, standing.term), standing.history, held, at)
    serving = await Serving.open(
        member.settings.database,
        member.host.inodes,
        log_bytes=settings.log_bytes,
        log_age_s=settings.log_age_s,
        on_failure=member.failed,
        place=place,
        scrub_bytes_per_s=settings.scrub_bytes_per_s,
    )
    served = serving.served
    lease_s = member.leasing.lease_s
    if lease_s < math.inf:
        served.heartbeat_s = min(HEARTBEATS_S, lease_s / HEARTBEATS)
    served.switchover = member.switchover
    served.step_down = member.step_down
    return serving


async def on_air(member: Member) -> None:
    """Be the primary for everybody: followers, apps that write, the archive."""
    serving = member.serving
    assert serving is not None
    term = serving.served.log.term
    if member.standing.history or member.keeper is not None:
        before = member.standing.primary if member.keeper is None else str(member.address)  # it may have to be told
        stand(member, Standing(PRIMARY, term, before, member.standing.history, member.keeper is not None))
    member.handed_over = {}, -math.inf
    await member.host.put_on_air(serving)
    serving.database.loop.let_writers_go()
    member.shown.show()
    member.settled.set()
    if member.report is not None:
        facts = {"database": member.name, **{key: member.report[key] for key in ("term", "position", "missing")}}
        level = logging.INFO if member.report["known"] else logging.WARNING
        log.log(level, "promoted: this node is the primary now", extra=facts)
        member.promoted(member.report)
        member.report = None
    if not member.archiving:
        member.archiving = True
        member.spawn(partial(_archive, member, serving))


async def _archive(member: Member, serving: Serving) -> None:
    """Go on with the archive from where it is, which may be behind: apps need not wait for that."""
    written, member.written = member.written, None
    if written is not None and serving.archiver is not None:
        await asyncio.to_thread(_note_unarchived, member, serving, written)
    if member.serving is not serving:
        return
    serving.begin()
    for wait_s in LATE_S:  # what the one before had on its way
        await asyncio.sleep(wait_s)
        if member.serving is serving and serving.archiver is not None and member.standing.history:
            serving.archiver.look_again()


def stand(member: Member, standing: Standing) -> None:
    """Say what the node is, durably."""
    write_standing(state_dir(member.path), standing)
    before, member.standing = member.standing, standing
    if (before.role, before.term) != (standing.role, standing.term):
        now = {"role": standing.role, "term": standing.term, "primary": standing.primary}
        was = {"role_before": before.role, "term_before": before.term, "outcome": "written"}
        audit.record("role", f"node:{member.id}", database=member.name, **now, **was)


async def promote(member: Member, term: int) -> None:
    """Be the primary of `term`, from where this node stands. Raises when it cannot: then it must not be in the way."""
    if not await _may_begin(member, term):
        return
    if member.serving is not None and member.serving.served.log.term >= term:
        log.info("primary again", extra={"database": member.name, "term": term})
        await on_air(member)
        return
    if not await _replica_opened(member, term):
        return
    began_s = now_s()
    following = member.following
    offered = following is not None and following.was_offered
    held, at, history = await _stand_still(member, term)
    missing = missing_facts(following, at.position, offered=offered)
    begun = TermStart(term, at.position, first_txid(at.position.txid, term - at.term))
    history = begun_with(history, begun)
    before = str(following.where.client.primary) if following else ""
    member.standing = Standing(FOLLOWER, term, before, history, member.keeper is not None)
    member.archiving = False
    member.serving = await open_primary(member, held, at, term)
    member.report = {"term": term, "position": str(at.position), "txid": at.position.txid} | missing
    if not member.tenure.holds:
        fence(member)  # it was lost on the way; on the air when it is renewed
        return
    await on_air(member)
    log.debug("promoted in", extra={"database": member.name, "seconds": round(now_s() - began_s, 3)})


async def _may_begin(member: Member, term: int) -> bool:
    """Until the tenure begins: that of the primary before may not be over yet, and what it still sends is applied.
    False when the lease was lost again, or is of another term by now."""
    while member.keeper is not None:
        state = member.keeper.state
        if state.role is d.Role.FOLLOWER or state.term != term:
            return False
        if member.tenure.holds:
            break
        await asyncio.sleep(WAIT_S)
    return True


async def _replica_opened(member: Member, term: int) -> bool:
    """Until the replica that is here has been read and is ours to write to: a node that was started with the lease in
    its name is asked to be the primary before that. For a while, since nobody else can be it meanwhile. False when the
    lease was lost again."""
    following, until_s = member.following, now_s() + OPEN_S
    while following is not None and following.applier is None and has_database(member.path) and now_s() < until_s:
        keeper = member.keeper
        if keeper is not None and (keeper.state.role is d.Role.FOLLOWER or keeper.state.term != term):
            return False
        await asyncio.sleep(WAIT_S)
    return True


async def _stand_still(member: Member, term: int) -> tuple[Held, State, tuple[TermStart, ...]]:
    """End what this node does now: the open database, where it stands, and the terms that led there."""
    serving, following = member.serving, member.following
    if serving is not None:
        at = _state_of(serving)
        return await serving.release(member.host.inodes), at, member.standing.history
    applier = await following.release() if following is not None else None
    if following is None or applier is None or not applier.position:
        raise Stopped(f"{member.path}: cannot be the primary of term {term}: there is no replica yet")
    if not following.was_offered:
        await _catch_up(member, following, applier)
    member.following, member.written = None, applier.written
    at = State(applier.checksums, applier.position, applier.timestamp_ms, applier.term)
    try:
        # Everything applied is on disk then: this node's log begins here and could not bring it back.
        held = await asyncio.to_thread(applier.release, following.state)
    except BaseException:
        await asyncio.to_thread(applier.close)
        following.state.close()
        raise
    return held, at, _history(following, applier)


def _history(following: Following, applier: Applier) -> tuple[TermStart, ...]:
    """The terms that led to where this replica is. Of one that it has from the archive alone nobody said where it
    began: then nobody of an older term is known to be on this history, and what it loses must be kept."""
    known = max((begun.term for begun in following.history), default=1)
    if applier.term <= known:
        return following.history
    return (*following.history, TermStart(applier.term, Position(), 0))


def _state_of(serving: Serving) -> State:
    transactions = serving.served.log
    assert transactions.checksums is not None
    return State(transactions.checksums, transactions.position, transactions.timestamp_ms(), transactions.term)


async def _catch_up(member: Member, following: Following, applier: Applier) -> None:
    """What the archive has and the replica does not; for a while, a store that is away must not keep us."""
    if member.store is None:
        return
    keeping = following.circumstances(FORKED)
    working = asyncio.ensure_future(asyncio.to_thread(catch_up, member.store, applier, keeping))
    try:
        await asyncio.wait_for(asyncio.shield(working), CATCH_UP_S)
    except TimeoutError:
        # It cannot be interrupted, and must not go on while somebody else has the applier.
        await asyncio.wait([working])
    except (WalcastError, OSError) as error:
        log.warning("cannot catch up from the archive", extra={"error": str(error)})


def _note_unarchived(member: Member, serving: Serving, written: Written) -> None:
    """The pages that the archive misses are noted, so that it is taken on by these and not by a whole snapshot."""
    assert member.store is not None
    assert serving.archiver is not None
    try:
        end = archive_end(member.store, list_files(member.store))
    except (WalcastError, OSError) as error:
        log.warning("cannot tell how far the archive is", extra={"error": str(error)})
        return
    pages = written.after(end) if end is not None else None
    if end is not None and pages is not None:
        try:
            serving.archiver.missed(end, written.until, pages)
        except OSError as error:
            log.warning("cannot note what the archive misses", extra={"error": str(error)})


# Not to be it, for now or for long


def fence(member: Member) -> None:
    """Hold writers: the tenure is over, or has not begun."""
    serving = member.serving
    if serving is None:
        return
    try:
        serving.database.loop.hold_writers().add_done_callback(lambda future: future.exception())
    except WalcastError as error:
        log.error("cannot hold writers", extra={"database": member.name, "error": str(error)})  # noqa: TRY400
    member.shown.show()
    if member.name in member.host.names:
        serving.served.wake()  # streams end
        member.spawn(partial(member.host.set_fenced, member.name))
        log.error("fenced: writers are held until the lease can be renewed", extra={"database": member.name})


async def resume(member: Member) -> None:
    """The tenure goes on: nobody else was the primary meanwhile."""
    if member.serving is not None and member.tenure.holds:
        await on_air(member)
        log.warning("the lease is renewed: writers go on", extra={"database": member.name})


async def go_to(member: Member, lease: Lease) -> None:
    """Another node is the primary: follow it."""
    member.not_promoted(f"another node became the primary, at {lease.address}", lease.term)
    if member.serving is not None:
        await demote(member, lease.address)
    elif member.following is not None:
        member.host.refuse(member.name, refusal(member, lease.address))
        member.following.go_to(Address.parse(lease.address))


async def demote(member: Member, address: str, *, planned: bool = False) -> None:
    """Make way: what was committed here and is not there is kept once the new primary says what it has. `planned`: this
    node has handed over itself."""
    serving = member.serving
    assert serving is not None
    reason = f"another node is the primary, at {address}" if address else "another node is the primary"
    member.tenure.end(reason)
    await member.host.take_off_air(member.name, refusal(member, address))
    serving.served.wake()
    event = "handed over: this node follows now" if planned else "deposed: this node follows now"
    level = logging.INFO if planned else logging.WARNING
    log.log(level, event, extra={"database": member.name, "primary": address})
    captured = await asyncio.wrap_future(serving.database.loop.hold_writers())
    transactions = serving.served.log
    at, term = captured.position, transactions.term
    await asyncio.to_thread(serving.database.files.sync)  # the log, which a replay would need, is going to go
    await asyncio.to_thread(_name_position, member.path, term, at, transactions.timestamp_ms())
    stand(member, Standing(FOLLOWER, term, address, member.standing.history, member.keeper is not None))
    held = await serving.release(member.host.inodes)
    member.serving = None
    member.new_tenure()
    follow(member, [Address.parse(address)] if address else [], held)


def finish_log(path: Path) -> None:
    """A primary that ended without becoming a follower is to be one: bring its log and its database together, so that
    what only it had is told from what others have. In a thread. Where that cannot be, pages are compared."""
    folder = state_dir(path)
    if not (folder / "log" / "checksums").exists() or not has_database(path):
        return
    try:
        database = Database(path, path.stem)
        try:
            transactions = database.log
            if database.finish() and not _is_named(path, transactions.position):
                database.files.sync()
                _name_position(path, transactions.term, transactions.position, transactions.timestamp_ms())
        finally:
            database.stop()
    except (WalcastError, OSError, apsw.Error) as error:
        log.warning("the log of the primary that ran here cannot be finished", extra={"error": str(error)})


def _is_named(path: Path, position: Position) -> bool:
    """Does the journal name a state with this content? A term that began and published nothing has the content of the
    position before, and that name is the one that others know."""
    journal = Journal(state_dir(path))
    try:
        return journal.find(position.checksum) is not None
    finally:
        journal.close()


def _name_position(path: Path, term: int, position: Position, timestamp_ms: int) -> None:
    journal = Journal(state_dir(path))
    try:
        journal.append(term, position, timestamp_ms)
        journal.sync()
    finally:
        journal.close()


def follow(member: Member, addresses: list[Address] | tuple[Address, ...], held: Held | None = None) -> None:
    """Be a follower, of whoever is primary at one of these, or where it was last known."""
    known = _last_known(member)
    others = [a for a in (*member.settings.primaries, *known) if a not in addresses]
    where = member.whereabouts([*addresses, *others] or [member.address])
    following = Following(
        member.path,
        where,
        store=member.store,
        owner=member,
        held=held,
        replace=member.settings.replace and held is None,  # at the start, not of what this node was the primary of
        scrub_bytes_per_s=member.host.settings.scrub_bytes_per_s,
        mode=member.settings.database.mode,
        app_urls=member.host.settings.app_urls,
    )
    following.history, following.term = member.standing.history, member.standing.term
    following.progress = lambda: Progress("bootstrapping") if sys.stderr.isatty() else None
    member.run_follower(following)


def _last_known(member: Member) -> list[Address]:
    """Where the role file says that the primary is, if this node may connect to it: it may be long gone, or have been
    written under other settings, and is no reason not to start."""
    if not member.standing.primary:
        return []
    try:
        address = Address.parse(member.standing.primary)
        member.host.settings.tls.channel(address)
    except ConfigError as error:
        why = {"database": member.name, "error": str(error)}
        log.warning("cannot look for the primary where it was known last", extra=why)
        return []
    return [address]


def refusal(member: Member, address: str) -> Refused:
    """What this node says to followers while it is one itself."""
    where = f"; it is at {address}" if address else ""
    detail = f"{member.name!r}: this node is not the primary{where}"
    return Refused(pb.REFUSAL_KIND_NOT_PRIMARY, detail, primary=address)


def keep_discarded(member: Member, fork: Position) -> bool:
    """Of a deposed primary: what its log has after the fork. False when there is no log that tells; the pages that are
    overwritten must be kept then."""
    folder = state_dir(member.path) / "log"
    following = member.following
    if not (folder / "checksums").exists() or following is None or following.applier is None:
        return False
    transactions = TransactionLog.open(folder)
    try:
        if transactions.position != following.applier.position:
            return False
        why = "another node became the primary, and this one had transactions that it had not"
        begun = next((b for b in following.history if b.start == fork), None)
        told = Circumstances(
            member.path,
            why,
            str(following.where.client.primary),
            begun.term if begun else 0,
            member.store.url if member.store else "",
        )
        discard(transactions, fork, told)
    except (ForkNotInLog, Corrupt) as error:
        log.warning("the log does not tell what only this node had", extra={"error": str(error)})
        return False
    finally:
        transactions.close()
    return True


def forget_log(member: Member) -> None:
    """Once this replica is on the new primary's history, its own log is of no use. Out of the way it goes at once: this
    node may be promoted the next moment, and begin another one there."""
    folder = state_dir(member.path) / "log"
    with suppress(OSError):
        folder.rename(folder.with_name(f"log.old-{uuid.uuid4().hex[:8]}"))
    for old in folder.parent.glob("log.old-*"):
        member.spawn(partial(asyncio.to_thread, shutil.rmtree, old, ignore_errors=True))
