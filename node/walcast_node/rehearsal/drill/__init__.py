"""`walcast drill`: a failover rehearsed with real processes, and a report of what was promised and what happened.

facts.py        what a drill found: steps, promises, spans of roles, marks. Pure
ledger.py       rows: attempted, committed, acknowledged; pauses and rates of it. Pure
words.py        the report as text. Pure
picture.py      the timeline as SVG. Pure
page.py         the report as one HTML file. Pure
sql.py          what the load writes and readers check, in stock SQLite
app.py          the load and the readers, as processes
processes.py    how processes are started, heard, and ended
proxy.py        TCP in between, which can be cut
nodes.py        three walcast nodes, and their ways to the archive
watch.py        threads that look: roles, the lease, who can be written to, what is acknowledged
checks.py       copies, what is kept of what was lost, the archive
steps.py        the steps, one after the other
stage.py        what they share: bounded waits, measures
drill.py        from a folder to a result
running.py      the part that can be done to a set that serves users
"""
