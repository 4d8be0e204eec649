"""The transaction log to the archive, and the archive kept in shape.

archiver.py             the thread that uploads what was committed
merging.py              several entries of the log as one file
snapshot.py             the database, or the pages that differ, as one file, exact and without blocking a writer
unarchived_pages.py     what the log let go of before it was archived
lineage.py              whether the log continues the history that the archive ends with
overtaken.py            an archive that another primary went on with while this one was away
ownership.py            to which database an archive belongs
object_writer.py        writes an object, never over another one
catalogue.py            what the archive holds
compaction_schedule.py  the policy: what is due, what may go. Pure
compaction.py           several files into one, and reading a file back
retention.py            deletes
quarantine.py           moves files of a history that ended out of the way of restores
upkeep.py               the thread that does what is due
upkeep_attempt.py       one round of it, which is left behind when its store hangs
backoff.py              when a duty that failed is tried again
tenured_store.py        a store that changes nothing unless the node may act as the primary now
"""
