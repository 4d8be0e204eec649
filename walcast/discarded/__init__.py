"""What only a deposed node had, kept aside before the new primary's history replaces it.

    app.db-walcast/discarded/<min txid>-<max txid>-term<term>/
        <min txid>-<max txid>.ltx    one or more, each a complete LTX file with database checksums
        summary.json                 what, when, why, which tables
        summary.txt                  the same for a person, and how to look at the data

Two kinds. *Transactions*: the log's own entries after the fork, which apply to the database as it was there. A *before
image*, where no log tells them apart: one file with the pages that the new history overwrote or cut off, as they
were; it applies to the database as it is right after, and its checksums say so.

A folder is there whole and durable or not at all, and never deleted by walcast. The same state is not kept twice.

    folder.py        a folder on disk: written, found, listed
    summary.py       what its files hold, counted as they are written, in bounded memory
    words.py         summary.txt
    trees.py         which table or index each page belongs to
    rebuilding.py    the files over a database, proven: `python -m walcast.discarded FOLDER BASE OUT`
"""

from walcast.discarded.folder import Discarded, Saving, find_discarded, list_discarded
from walcast.discarded.rebuilding import rebuild
from walcast.discarded.summary import Circumstances, Kind, Summary
from walcast.discarded.trees import Trees, trees_of

__all__ = [
    "Circumstances",
    "Discarded",
    "Kind",
    "Saving",
    "Summary",
    "Trees",
    "find_discarded",
    "list_discarded",
    "rebuild",
    "trees_of",
]
