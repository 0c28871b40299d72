"""What this machine may reach: repositories of the hub, a login to Weights & Biases, the right time."""

from __future__ import annotations

import netrc
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Literal

State = Literal["ok", "warn", "fail"]
Outcome = tuple[State, str, str]
"""What a check says: its state, what was found, and what to do about it, or ''."""
_ANSWER_S = 4.0
_SKEW_S = 300.0
"""A clock that is further off than this makes certificates and signatures fail."""


def repository(name: str, kind: Literal["model", "dataset"]) -> Outcome:
    """Whether the hub would give this repository to the account that is logged in."""
    from huggingface_hub import HfApi, errors, get_token
    from huggingface_hub.utils import validate_repo_id

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    who = "the token's account" if get_token() else "an account: nobody is logged in"
    try:
        validate_repo_id(name)
        HfApi().auth_check(name, repo_type=kind)
    except errors.HFValidationError:
        return "fail", "no folder here, and no name that the hub could have", "give a folder, or owner/name"
    except errors.GatedRepoError:
        return "fail", f"gated, and not open to {who}", f"accept the conditions on {page}, and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        return "fail", f"not found on the hub, or not open to {who}", f"if {page} opens in your browser, set HF_TOKEN"
    except Exception as error:  # the hub client's transport errors share no public base class over its versions
        return "warn", f"the hub does not answer ({type(error).__name__})", "check the network; the run asks again"
    return "ok", "open to this machine", ""


def wandb_login(*, wanted: bool) -> Outcome:
    """Whether Weights & Biases would take the run; never says the key."""
    mode = os.environ.get("WANDB_MODE", "")
    if not wanted or mode in ("offline", "disabled"):
        return "ok", "not asked for" if not wanted else f"WANDB_MODE is {mode}", ""
    if os.environ.get("WANDB_API_KEY"):
        return "ok", "logged in by WANDB_API_KEY", ""
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if known:
        return "ok", f"logged in to {host}", ""
    return "warn", "not logged in: the run is kept offline", "wandb login, or --set logging.wandb=false"


def clock() -> Outcome:
    """Whether the time is that of the hub."""
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:  # an answer, with a time
        date = error.headers["Date"]
    except (OSError, ValueError) as error:
        if "certificate is not yet valid" in str(error) or "certificate has expired" in str(error):
            return "fail", f"the hub's certificate is not of this time ({time.ctime()})", "set the clock: timedatectl"
        return "warn", f"not compared: the hub does not answer ({type(error).__name__})", "check the network"
    if not date:
        return "warn", "not compared: the hub gave no time", ""
    skew = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew) > _SKEW_S:
        return (
            "fail",
            f"{abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} the hub's",
            "set the clock: timedatectl",
        )
    return "ok", f"within {max(1, round(abs(skew)))} s of the hub's", ""
