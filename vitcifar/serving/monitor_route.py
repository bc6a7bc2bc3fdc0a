"""`GET /v1/monitor`: what the last predictions say of the versions that made them, and of the challenger."""

import dataclasses
from typing import Any

from fastapi import APIRouter

from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.shadow import Shadow


def monitor_route(pool: ModelPool, shadow: Shadow | None) -> APIRouter:
    """The route of the monitor."""
    router = APIRouter(tags=["monitor"])

    @router.get("/v1/monitor")
    def monitor() -> dict[str, Any]:
        """Estimated accuracy, share of not-confident predictions and drift of each version, without any label."""
        return monitored(pool, shadow)

    return router


def monitored(pool: ModelPool, shadow: Shadow | None) -> dict[str, Any]:
    """What the route answers, the page shows and `vitcifar monitor` prints."""
    state = pool.state
    return {
        "model": state.current.model_name,
        "serves": state.current.version,
        "versions": [dataclasses.asdict(report) for report in pool.monitor.reports()],
        "shadow": shadow
        and {
            "spec": shadow.spec,
            "version": shadow.number(),
            "problem": shadow.problem,
            "pairs": [one.to_dict() for one in shadow.agreements()],
        },
    }
