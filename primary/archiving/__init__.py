"""The log → the archive, and the archive kept in shape.

archiver.py      the thread that uploads what was committed
merging.py       log entries → one file
snapshot.py      the database, or the pages that differ, as one file, exact and without blocking a writer
unarchived.py    what the log let go of before it was archived
joining.py       does the log go on from where the archive ends?
putting.py       writing an object, never over another
catalogue.py     what the archive holds
levels.py        the policy: what is due, what may go. Pure
compaction.py    several files → one; reading a file back
retention.py     deleting
upkeep.py        the thread that does what is due
"""
