"""A base model for trying classifiers where there is none: numbers of the texts' bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class StandInBase:
    """`router.routing.BaseModel` as the fake engine has it: like texts get like numbers."""

    def hidden(
        self,
        texts: Sequence[str],
        *,
        context: str = "",
        depth: float = 0.5,
        ends: int = 0,
        background: bool = False,
    ) -> NDArray[np.float32]:
        """[texts, 64] unit vectors, [texts, 192] with `ends`."""
        import numpy as np

        from router.engine.fake_reading import WIDTH, states

        rows = [states(_bytes(text), ends) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)

    def likelihood(
        self, prompt: str, continuations: Sequence[str], *, background: bool = False
    ) -> list[NDArray[np.float32]]:
        """High for what the prompt says too."""
        from router.engine.fake_reading import log_probabilities

        return [log_probabilities(_bytes(prompt), _bytes(text)) for text in continuations]


def _bytes(text: str) -> bytes:
    if not text:
        raise ValueError("an empty text cannot be read: decline such requests")
    return text.encode(errors="replace")
