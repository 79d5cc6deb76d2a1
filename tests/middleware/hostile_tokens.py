"""What attackers and broken issuers send in place of a good token, each with the answer it must get and why.

All of a case but its fault is as it should be, most often with the issuer's own signature, so that it is refused for
its fault alone; the reason, which only the log gets to know, proves that. `ACCEPTED` are neighbours that are good.
"""

from typing import Final

from tests.middleware.hostile.accepted import accepted
from tests.middleware.hostile.claims import names, scopes, several_issuers, times
from tests.middleware.hostile.forge import FRONTS, Case, Forge, Sent, front_settings
from tests.middleware.hostile.headers import headers
from tests.middleware.hostile.requests import requests
from tests.middleware.hostile.signatures import algorithms, signatures
from tests.middleware.hostile.texts import contents, forms

__all__ = ["ACCEPTED", "CASES", "FRONTS", "Case", "Forge", "Sent", "front_settings"]

CASES: Final[tuple[Case, ...]] = (
    *algorithms(),
    *signatures(),
    *forms(),
    *contents(),
    *headers(),
    *times(),
    *names(),
    *several_issuers(),
    *scopes(),
    *requests(),
)
ACCEPTED: Final[tuple[Case, ...]] = tuple(accepted())
