"""The HTTP server for monitors and load balancers (`--http`).

`server.py` has the connections, `protocol.py` HTTP itself (uvicorn's), `app.py` what every request passes, `routes.py`
the table of what can be asked, `hosts.py` and `near.py` who is meant and who asks, `tls.py` the certificate.
"""
