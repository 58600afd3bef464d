"""What experiments do beside a plain split: shadow arms, other routers, and bandits."""

from __future__ import annotations

from router.experiments.live.epochs import Epochs
from router.experiments.live.routers import Routers, VariantRouter
from router.experiments.live.runtime import Experiments
from router.experiments.live.shadow import AskJudge, Shadows, Understudy


class Modes:
    """Hooks all of them into `live`. `start` and `close` on the event loop, `close` before that of `live`."""

    def __init__(
        self, live: Experiments, router: VariantRouter, understudy: Understudy, judge: AskJudge
    ) -> None:
        self._shadows = Shadows(live, understudy, judge)
        self._routers = Routers(live, router)
        self._epochs = Epochs(live)
        live.routers = self._routers.choose
        live.beside += [self._routers.beside, self._shadows]

    def start(self) -> None:
        """Follow the clock of bandits."""
        self._epochs.start()

    async def close(self) -> None:
        """Drop what is under way."""
        await self._epochs.close()
        await self._routers.close()
        await self._shadows.close()
