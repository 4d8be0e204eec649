"""Who is the primary of a database with several nodes: decided purely, carried out by thin shells.

`decisions` decides; `lease` and `claims` are what nodes write for each other into the archive's store; `keeper` asks
the store and feeds the decisions; `member` is a database that changes its role in this process.
"""
