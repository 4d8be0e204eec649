"""Power cuts at random moments under load, and what must hold after each.

A *life* is two hosts, each with a disk of its own, and with luck a third disk for the archive; a few cuts, then the
next life. The rules:

* A row is confirmed when `barrier(followers=1)` returned after its commit, in the term of the commit. Whatever loses
  its power, it is in the primary, the follower and the archive afterwards, and on the follower's disk before walcast
  runs there again.
* A reader on a host that keeps its power never steps back, and no reader sees half a transaction.
* `discarded/` stays empty, but for what is documented: an app wrote before walcast ran, or a promotion, forced
  or by itself, left transactions behind that nobody had confirmed.
* The archive restores to what the primary is. It need not where two nodes were primaries for a moment, after a
  promotion by force in a set without a lease: the one that came back may have archived its own history behind the
  other's.
* A follower does not take a lost tail of its own for an edit.

After a cut every process of the host is killed, the disk is mounted again, and walcast is started before the app. In
`wrote` the app commits first: what walcast's log had beyond that must be in `discarded/`.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.forks import Forks
from support.nodes import poll
from support.power_cut import ORDERED, WRITEBACK, Disk
from support.power_cut_hosts import Fault, Host, free_address, wait_level, wait_whole
from support.power_cut_ledger import Broken, Ledger, create, image, rows
from support.writers import pause

from walcast import ltx
from walcast.errors import WalcastError
from walcast.primary import Primary
from walcast.restore import restore
from walcast.store import open_store

MODES = ("NORMAL", "FULL", "OFF", "EXTRA")
PAIR = ("both", "primary", "follower", "checkpoint", "bootstrap", "switchover", "promotion", "wrote")
ARCHIVED = ("archive", "everything", *PAIR)
LEASED = ("primary", "both", "away", "alone", "follower", "archive", "switchover", "everything")
FORCED = ("promotion", "switchover", "away", "alone")  # after which what was not confirmed may be left behind
CUTS_A_LIFE = 8
LEASE_S = 1.0
LEVEL_S = 30.0
ACKS_S = 20.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a life is like; of its seed alone."""

    seed: int
    synchronous: str
    topology: str
    page_size: int
    options: str
    autocheckpoint: int
    writeback: float
    given_ids: bool

    @classmethod
    def of(cls, seed: int, topology: str = "", synchronous: str = "") -> Setting:
        rng = random.Random(f"life {seed}")
        drawn = cls(
            seed,
            MODES[seed % len(MODES)],
            rng.choice(("pair", "pair", "archived", "leased")),
            rng.choice((1024, 4096, 4096, 16384)),
            rng.choice((ORDERED, ORDERED, WRITEBACK)),
            rng.choice((0, 10, 100, 1000)),
            rng.choice((0, 10, 100, 400)),
            rng.random() < 0.5,
        )
        changes = {"topology": topology or drawn.topology, "synchronous": synchronous or drawn.synchronous}
        return cls(**{name: changes.get(name, getattr(drawn, name)) for name in cls.__slots__})

    @property
    def kinds(self) -> tuple[str, ...]:
        return {"pair": PAIR, "archived": ARCHIVED, "leased": LEASED}[self.topology]


@dataclass
class Counts:
    """Of a campaign. `faults`: seed, number of the round, kind, and what was wrong."""

    cuts: Counter[tuple[str, str]] = field(default_factory=Counter)
    confirmed: int = 0
    lost: int = 0
    steps_back: int = 0
    documented: int = 0
    contested: int = 0
    lives: int = 0
    seconds: float = 0.0
    faults: list[tuple[Setting, int, str, str]] = field(default_factory=list)

    def line(self) -> str:
        """All of it in one line."""
        kinds: Counter[str] = Counter()
        modes: Counter[str] = Counter()
        for (kind, mode), count in self.cuts.items():
            kinds[kind] += count
            modes[mode] += count
        wrong = Counter(f"{kind}/{setting.synchronous}" for setting, _, kind, _ in self.faults)
        return (
            f"{self.cuts.total()} cuts in {self.lives} lives, {self.seconds:.0f} s: {self.confirmed} rows confirmed, "
            f"{self.lost} lost, {self.steps_back} steps back ({self.documented} more documented), "
            f"{self.contested} archives of two primaries, "
            f"{len(self.faults)} faults {dict(wrong)}; {dict(kinds)}; {dict(modes)}"
        )


class Life:
    """Two hosts from their first start to their last cut."""

    def __init__(self, stack: ExitStack, forks: Forks, folder: Path, setting: Setting, counts: Counts) -> None:
        self.setting = setting
        self.counts = counts
        self.rng = random.Random(f"rounds {setting.seed}")
        self.outside = folder / "outside"
        self.outside.mkdir(parents=True)
        self.link = self.outside / "archive"
        self.archive: Disk | None = None
        if setting.topology != "pair":
            self.archive = self._disk(stack, folder / "c")
            self.link.symlink_to(self.archive.path)
        self.ledger = Ledger(self.outside)
        self.hosts = [self._host(stack, forks, folder / id_) for id_ in ("a", "b")]
        self.cut_now: list[Host] = []
        self.promised_txid = 0
        self.contested = False
        self._lines: dict[Path, int] = {}
        self._cut_s: dict[Path, float] = {}
        a, b = self.hosts
        a.arguments = ["primary", str(a.db), *([str(self.link)] if self.archive else []), *self._flags(a)]
        b.arguments = self._as_follower(b)
        create(a.db, setting.page_size)
        a.disk.sync()  # the app is older than the first cut
        a.start()
        assert poll(lambda: a.facts()["role"] == "primary", LEVEL_S), a.last_words()
        b.start()
        self.settle("start")

    def _as_follower(self, host: Host) -> list[str]:
        told = ",".join(host.address for host in self.hosts)
        arguments = ["follower", str(host.db), "--primary", told, *self._flags(host)]
        return [*arguments, "--archive", str(self.link)] if self.archive else arguments

    def _disk(self, stack: ExitStack, path: Path) -> Disk:
        made = Disk(path, path.parent, self.setting.options)
        stack.callback(made.close)
        return made

    def _host(self, stack: ExitStack, forks: Forks, path: Path) -> Host:
        options = {"synchronous": self.setting.synchronous, "autocheckpoint": self.setting.autocheckpoint}
        options |= {"seed": f"{self.setting.seed}{path.name}", "pause_s": self.rng.choice((0.0, 0.002, 0.01))}
        made = Host(path.name, self._disk(stack, path), self.outside, forks, free_address(), app_options=options)
        stack.callback(made.end)
        stack.callback(lambda: made.writeback.stop() if made.writeback else None)
        return made

    def _flags(self, host: Host) -> list[str]:
        flags = ["--listen", host.address, "--name", "app", "--json", "--log-format", "json"]
        flags += ["--id", host.id] if self.setting.given_ids else []
        flags += ["--auto-failover", "--lease-time", str(LEASE_S)] if self.setting.topology == "leased" else []
        return flags

    # A round

    def round(self, kind: str) -> None:
        """One disturbance with a cut, or several; all is whole again afterwards."""
        primary, follower = wait_whole(self.hosts)
        self._wait_confirmed()
        for host in self.hosts:
            if host.writeback is None:
                host.keep_writing_back(random.Random(self.rng.random()), self.setting.writeback)
        if self.rng.random() < 0.1:
            primary.disk.sync()
        pause(self.rng.random() * 0.3)
        if self.archive is not None:
            self.promised_txid = ((primary.facts().get("archive") or {}).get("txid")) or 0
        self.cut_now = []
        getattr(self, f"_{kind}")(primary, follower)
        self.settle(kind)
        self.cut_now = []

    def _wait_confirmed(self) -> None:
        self.ledger.look()
        before = self.ledger.confirmations

        def some() -> bool:
            self.ledger.look()
            return self.ledger.confirmations >= before + 3

        if not poll(some, ACKS_S, 0.005):
            raise Fault(f"no row is confirmed any more: {[host.facts() for host in self.hosts]}")

    def cut(self, *hosts: Host, kind: str) -> None:
        """The power of these hosts goes at once; it is back at once, but nothing is started."""
        mixed = list(hosts)
        self.rng.shuffle(mixed)
        for host in mixed:
            host.freeze()
        for host in mixed:
            if host.reader is not None:
                self._cut_s[host.report] = time.monotonic() - 0.001
            host.disk.cut()
        for host in mixed:
            host.end()
        for host in mixed:
            host.back()
        self.cut_now += [host for host in mixed if host not in self.cut_now]
        self.counts.cuts[kind, self.setting.synchronous] += 1

    def _again(self, *hosts: Host, kind: str) -> None:
        """Cut them again while they start, now and then."""
        while self.rng.random() < 0.4:
            for host in hosts:
                host.keep_writing_back(random.Random(self.rng.random()), self.setting.writeback * 2)
                host.start()
            pause(self.rng.choice((0.03, 0.1, 0.3)) * self.rng.random())
            self.cut(*hosts, kind=kind)

    # What loses its power, and when

    def _primary(self, primary: Host, follower: Host) -> None:
        self.cut(primary, kind="primary")
        self._again(primary, kind="primary start")

    def _follower(self, primary: Host, follower: Host) -> None:
        self.cut(follower, kind="follower")
        self._check_disk(follower)
        self._again(follower, kind="follower start")

    def _both(self, primary: Host, follower: Host) -> None:
        self.cut(primary, follower, kind="both")
        self._check_disk(follower)
        self._again(primary, follower, kind="both start")

    def _everything(self, primary: Host, follower: Host) -> None:
        """All three."""
        assert self.archive is not None
        self._cut_archive()
        self._both(primary, follower)
        self._archive_back()

    def _archive(self, primary: Host, follower: Host) -> None:
        """The archive's, and with luck the lease's: the nodes go on. Now and then a node's at the same time."""
        self._cut_archive()
        self.counts.cuts["archive", self.setting.synchronous] += 1
        hosts = self.rng.choice(([], [], [primary], [follower]))
        if hosts:
            self.cut(*hosts, kind="archive and one")
        self._archive_back()

    def _cut_archive(self) -> None:
        assert self.archive is not None
        with ExitStack() as stack:  # an upload that is under way must not be told that it is durable
            for host in self.hosts:
                stack.enter_context(host.frozen())
            self.archive.cut()
        pause(self.rng.random() * 0.05)
        self._lead(self.link.with_name("nowhere"))  # what is below a mount that is gone is not the archive

    def _archive_back(self) -> None:
        assert self.archive is not None
        self.archive.back()
        self._check_archive(self.promised_txid)
        self._lead(self.archive.path)

    def _lead(self, to: Path) -> None:
        new = self.link.with_name("archive.new")
        new.symlink_to(self.link if to.name == "nowhere" else to)  # a link to itself fails whatever is done with it
        new.replace(self.link)

    def _checkpoint(self, primary: Host, follower: Host) -> None:
        """While the WAL is checkpointed and restarts."""
        assert primary.app is not None
        primary.app.signal(signal.SIGUSR1)
        pause(self.rng.random() * 0.03)
        hosts = self.rng.choice(([primary], [primary, follower]))
        self.cut(*hosts, kind="checkpoint")
        self._again(*hosts, kind="checkpoint start")

    def _bootstrap(self, primary: Host, follower: Host) -> None:
        """While a follower gets its first copy."""
        primary.stop_app()  # what it confirms meanwhile would be confirmed by nobody who lasts
        follower.writeback.stop() if follower.writeback else None
        follower.writeback = None
        follower.wipe()
        follower.arguments = self._as_follower(follower)  # it may have been the first primary
        self._forget_readers()
        follower.start()
        if self.rng.random() < 0.7:
            primary.start_app()
        pause(self.rng.random() * self.rng.choice((0.05, 0.2)))
        hosts = self.rng.choice(([follower], [follower], [primary], [primary, follower]))
        self.cut(*hosts, kind="bootstrap")
        if hosts == [follower]:
            self._again(follower, kind="bootstrap start")

    def _switchover(self, primary: Host, follower: Host) -> None:
        """While the primary hands over."""
        asked = threading.Thread(target=follower.promote, daemon=True)
        asked.start()
        pause(self.rng.random() * self.rng.choice((0.02, 0.1)))
        hosts = self.rng.choice(([follower], [primary], [primary, follower]))
        self.cut(*hosts, kind="switchover")
        asked.join(LEVEL_S)

    def _promotion(self, primary: Host, follower: Host) -> None:
        """The primary's host is away, an operator promotes the follower, and that one is cut, too."""
        self.cut(primary, kind="primary")
        asked = threading.Thread(target=follower.promote, kwargs={"force": True}, daemon=True)
        asked.start()
        pause(self.rng.random() * self.rng.choice((0.02, 0.1)))
        if self.rng.random() < 0.8:
            self.cut(follower, kind="promotion")
            self._check_disk(follower)
        asked.join(LEVEL_S)

    def _away(self, primary: Host, follower: Host) -> None:
        """The primary's host comes back only after another one has taken over by itself, which may be cut, too."""
        self.cut(primary, kind="away")
        if self.rng.random() < 0.3:
            pause(LEASE_S * 2 * self.rng.random())
            self.cut(follower, kind="away")
            self._check_disk(follower)
            follower.start()
        self._wait_takeover(follower)

    def _alone(self, primary: Host, follower: Host) -> None:
        """Both lose their power, and only the follower comes back: it has what was confirmed, and takes over."""
        self.cut(primary, follower, kind="alone")
        self._check_disk(follower)
        follower.start()
        self._wait_takeover(follower)

    def _wait_takeover(self, follower: Host) -> None:
        if not poll(lambda: follower.facts()["role"] == "primary", LEVEL_S):
            raise Fault(f"nobody takes over: {follower.facts()}\n{follower.last_words()}")

    def _wrote(self, primary: Host, follower: Host) -> None:
        """An app commits before walcast runs again."""
        hosts = self.rng.choice(([primary], [primary, follower]))
        self.cut(*hosts, kind="wrote")
        with suppress(Broken, sqlite3.Error):  # after synchronous=OFF there may be no database to write to
            primary.rows_on_disk()
            primary.write_alone(f"{self.setting.seed} {self.counts.cuts.total()}")

    # What must hold

    def settle(self, kind: str) -> None:
        """Start what does not run, wait until all is whole, and check everything."""
        early = self.rng.random() < 0.5
        for host in self.hosts:
            if not host.running:
                host.start()
            torn = self.setting.synchronous == "OFF" and host in self.cut_now  # until walcast has replayed its log
            if early and not torn and host.db.exists() and host.db.stat().st_size:
                host.start_reader()
        primary, follower = self._whole(kind)
        for host in self.hosts:
            host.stop_app()
        self._check_copies(primary, follower, kind)
        if self.archive is not None and (kind in ("archive", "everything") or self.rng.random() < 0.3):
            self._check_drained(primary)
        for host in self.hosts:
            host.start_reader()
        primary.start_app()

    def _whole(self, kind: str) -> tuple[Host, Host]:
        """As an operator sees to it: two followers of each other, after a hand-over that was cut, need one."""
        if kind in ("switchover", "promotion") and self.setting.topology != "leased":

            def roles() -> list[str]:
                return [host.facts()["role"] for host in self.hosts]

            if poll(lambda: "" not in roles(), LEVEL_S) and not poll(lambda: "primary" in roles(), 1.0, 0.02):
                most = max(self.hosts, key=lambda host: host.facts()["txid"])
                most.promote(force=True)
        return wait_whole(self.hosts)

    def _check_copies(self, primary: Host, follower: Host, kind: str) -> None:
        barrier(primary)
        wait_level(primary, follower)
        self.counts.confirmed += self.ledger.look()
        with primary.reading() as one, follower.reading() as other:
            chain = _sound(primary, lambda: rows(one))
            _sound(follower, lambda: rows(other))
            if image(one) != image(other):
                raise Fault("the follower is at the primary's position and not the same bytes")
            strangers = [text for (text,) in one.execute("SELECT said FROM strangers")]
        kept = {host.id: host.new_discarded() for host in self.hosts}
        wrong = [f"an app says: {line}" for line in self.ledger.wrong[:3]]
        wrote = [text for host in self.hosts for text in host.strangers]
        for host in self.hosts:
            if host.strangers:
                host.catch_up_with_the_clock()
            host.strangers.clear()  # the next cut may take them back, as `wrote` allows
        if missing := [text for text in wrote if text not in strangers]:
            self.counts.lost += len(missing)
            wrong.append(f"what an app wrote before walcast ran again is gone: {missing}")
        for check in (
            lambda: self._check_confirmed(chain, kept, kind),
            lambda: self._check_kept(kept, kind),
            lambda: self._check_readers(kept, kind),
        ):
            try:
                check()
            except Fault as fault:  # the others are to be counted, too
                wrong.append(str(fault))
        if wrong:
            raise Fault("; ".join(wrong))

    def _check_confirmed(self, chain: dict[int, str], kept: dict[str, list[Path]], kind: str) -> None:
        missing = self.ledger.missing(chain)
        if kind == "wrote":  # documented, if it is kept
            folders = [folder for found in kept.values() for folder in found]
            words = kept_bytes(folders)
            dropped = [seq for seq in missing if self.ledger.confirmed[seq].encode() not in words]
            if not dropped:
                self.ledger.forget(missing, chain)
                return
            self.counts.lost += len(dropped)
            raise Fault(f"{len(dropped)} confirmed rows are in no folder of discarded/: {dropped[:5]}; {folders}")
        if missing:
            self.counts.lost += len(missing)
            raise Fault(f"{len(missing)} of {len(self.ledger.confirmed)} confirmed rows are lost: {missing[:5]} …")

    def _check_kept(self, kept: dict[str, list[Path]], kind: str) -> None:
        for host in self.hosts:
            events = host.said()
            if any(e["event"].startswith("the archive has another history") for e in events) and not self.contested:
                self.contested = kind in FORCED  # two primaries for a moment, and no lease says whose it is
                self.counts.contested += self.contested
            edited = [e for e in events if e["event"].startswith("the replica was changed by others")]
            if kind not in FORCED and kind != "wrote" and edited:
                raise Fault(f"{host.id} takes what a cut left for somebody's edit")
            if not kept[host.id] or kind in FORCED or self.setting.topology == "leased" or self.contested:
                continue  # of a contested archive a follower may get the other primary's history first
            if kind != "wrote":
                raise Fault(f"{host.id} has discarded something: {[path.name for path in kept[host.id]]}")

    def _check_readers(self, kept: dict[str, list[Path]], kind: str) -> None:
        wrong: list[str] = []
        for path in sorted(self.outside.glob("*.reader")):
            for line in self._new_lines(path):
                at_s, what, *rest = line.split()
                host = path.name.partition(".")[0]
                gone_s = self._cut_s.get(path, math.inf)  # it lived on for a moment, on a disk that was gone
                if what == "at" or float(at_s) > gone_s:
                    continue
                left = rest[0] in self.ledger.abandoned  # also by a follower that catches up over that later
                if what != "wrong" and (left or kind == "wrote" or kept[host]):
                    self.counts.documented += 1
                    continue
                self.counts.steps_back += what != "wrong"
                wrong.append(f"a reader on {host}: {what} {' '.join(rest)}")
        if wrong:
            raise Fault("; ".join(wrong[:3]))

    def _new_lines(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._lines.get(path, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._lines[path] = self._lines.get(path, 0) + len(whole)
        return whole.decode().splitlines()

    def _forget_readers(self) -> None:
        for path in self.outside.glob("*.reader"):
            self._new_lines(path)

    def _check_disk(self, host: Host) -> None:
        """What is confirmed is on the disk of the follower that confirmed it, before anything runs there again."""
        self.counts.confirmed += self.ledger.look()
        missing = self.ledger.missing(_sound(host, host.rows_on_disk))
        if missing:
            self.counts.lost += len(missing)
            raise Fault(f"{len(missing)} confirmed rows are not on {host.id}'s disk after the cut: {missing[:5]} …")

    # The archive

    def _check_drained(self, primary: Host) -> None:
        """It restores to what the primary is."""
        if self.contested:
            return

        def drained() -> bool:
            facts = primary.facts()
            return bool(facts.get("archive")) and facts["archive"]["txid"] == facts["txid"]

        if not poll(drained, LEVEL_S, 0.02):
            raise Fault(f"the archive does not catch up: {primary.facts()}")
        restored = self._restore()
        with primary.reading() as db:
            now = image(db)
        if restored.read_bytes()[96:] != now[96:] or restored.read_bytes()[:24] != now[:24]:
            raise Fault("the archive restores to something else than the primary")

    def _check_archive(self, promised_txid: int) -> None:
        """It has at least what the primary said that it has."""
        assert self.archive is not None
        if not promised_txid or self.contested:
            return
        with closing(open_store(str(self.archive.path))) as store:
            try:
                report = restore(store, self.outside / "promised.db", force=True)
            except WalcastError as error:
                raise Fault(f"the archive cannot be restored after the cut: {error}") from error
        if report.plan[-1].max_txid < promised_txid:
            raise Fault(f"the archive said TXID {promised_txid}, and has {report.plan[-1].max_txid} after the cut")

    def _restore(self) -> Path:
        assert self.archive is not None
        target = self.outside / "restored.db"
        with closing(open_store(str(self.archive.path))) as store:
            try:
                restore(store, target, force=True)
            except WalcastError as error:
                raise Fault(f"the archive cannot be restored: {error}") from error
        return target


def _sound(host: Host, read: Callable[[], dict[int, str]]) -> dict[int, str]:
    try:
        return read()
    except (Broken, sqlite3.Error) as error:
        raise Fault(f"the database of {host.id}: {type(error).__name__}: {error}") from error


def barrier(primary: Host) -> None:
    """Everything that was committed is confirmed."""

    def asked() -> bool:
        try:
            Primary(primary.db).barrier(followers=1, timeout=2.0)
        except WalcastError:
            return False
        return True

    if not poll(asked, LEVEL_S, 0.01):
        raise Fault(f"no barrier of {primary.id} returns: {primary.facts()}")


def kept_bytes(folders: list[Path]) -> bytes:
    """All pages that these folders of `discarded/` keep."""
    found = bytearray()
    for folder in folders:
        for file in sorted(folder.glob("*.ltx")):
            _, pages, _ = ltx.decode_file(file.read_bytes())
            for page in pages:
                found += page.data
    return bytes(found)


def run_life(forks: Forks, folder: Path, setting: Setting, counts: Counts, kinds: list[str], cuts: int) -> None:
    """Rounds until there were `cuts`, or a fault, which goes to `counts`."""
    number, kind, began = 0, "start", counts.cuts.total()
    counts.lives += 1
    with ExitStack() as stack:
        try:
            life = Life(stack, forks, folder, setting, counts)
            while counts.cuts.total() - began < cuts:
                if number % len(kinds) == 0:
                    life.rng.shuffle(kinds)
                kind = kinds[number % len(kinds)]
                number += 1
                life.round(kind)
        except Fault as fault:
            counts.faults.append((setting, number, kind, str(fault)))
        except Exception:  # noqa: BLE001 - the other lives are to be lived, too; this one counts as a fault
            counts.faults.append((setting, number, kind, f"the campaign itself failed:\n{traceback.format_exc()}"))


def campaign(
    forks: Forks,
    folder: Path,
    seed: int,
    *,
    cuts: int,
    seconds: float,
    kinds: tuple[str, ...] = (),
    topology: str = "",
    synchronous: str = "",
    keep: bool = bool(os.environ.get("WALCAST_CUTS_KEEP")),
) -> Counts:
    """Lives of the seeds from `seed` on, until there were so many cuts or the time is over."""
    counts = Counts()
    began_s = time.monotonic()
    while counts.cuts.total() < cuts and time.monotonic() - began_s < seconds:
        setting = Setting.of(seed + counts.lives, topology, synchronous)
        some = [kind for kind in setting.kinds if not kinds or kind in kinds] or list(setting.kinds)
        faults = len(counts.faults)
        where = folder / f"life-{setting.seed}"
        run_life(forks, where, setting, counts, some, min(CUTS_A_LIFE, cuts - counts.cuts.total()))
        if len(counts.faults) > faults:
            _, number, kind, words = counts.faults[-1]
            print(f"WALCAST_SEED={setting.seed} round {number} {kind}: {words}\n    {setting}", flush=True)
        if not (keep and len(counts.faults) > faults):
            shutil.rmtree(where, ignore_errors=True)
    counts.seconds = time.monotonic() - began_s
    return counts
