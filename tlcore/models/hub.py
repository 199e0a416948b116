"""Whether the model hub answers at all, and which files it has of a model.

Owns the question asked before anything is wanted of the hub: huggingface_hub and datasets wait without limit, or retry for half
a minute, where a request has to fail within ten seconds. Called by `source.py` and by `data/reading.py`.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from functools import lru_cache

TIMEOUT_S = 5.0


def hub_answers() -> bool:
    """True when the hub (HF_ENDPOINT, through the usual proxy settings) gives any answer within `TIMEOUT_S`.

    An error status is an answer, and so is a certificate that this check does not know: the client itself will judge those.
    HF_HUB_OFFLINE=1 counts as no answer.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False


@lru_cache(maxsize=64)
def hub_files(model: str, revision: str) -> tuple[str, ...]:
    """Every file of a model on the hub, fetched or not; none where the hub cannot be asked, or refuses. Asked once per process."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client that this version has

    if not hub_answers():
        return ()
    try:
        found = HfApi().model_info(model, revision=revision, timeout=TIMEOUT_S).siblings or ()
    except (HTTPError, OSError):
        return ()
    return tuple(file.rfilename for file in found)
