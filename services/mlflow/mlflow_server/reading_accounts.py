"""Restrict the accounts of services that only read.

MLflow lets every account create experiments and registered models and gives it all permissions for them: an account of
a service could thus register a model and set a champion, which serving would load.
"""

import re

from flask import Response, request

from trainyard.contract import Account

READERS = frozenset({Account.SERVING, Account.DASHBOARD})
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SEARCH = re.compile(r"/(ajax-)?api/\d\.\d/mlflow/[a-z-]+/search")
"""Paths of the requests that read with a POST."""


def refuse_writes() -> Response | None:
    """Refuse a request of Flask's that writes as one of READERS; return None to let it go on to MLflow's own checks."""
    login = request.authorization
    if login is None or login.username not in READERS or request.method in READING_METHODS:
        return None
    if request.method == "POST" and SEARCH.fullmatch(request.path):
        return None
    return Response("This account may only read.", 403)
