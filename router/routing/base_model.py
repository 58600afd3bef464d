"""What a classifier may ask of the base model that the server holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BaseModel(Protocol):
    """The resident base, without any adapter. Its work goes into the steps that answer requests.

    Calls block, so they belong into `fit` and `classify_batch`, never on an event loop. They raise
    TimeoutError at the classifier's own timeout (calls in the `background` after ten minutes), and
    RouterError where the engine refuses. Texts and continuations of more than 512 tokens lose their middle.
    """

    def hidden(
        self,
        texts: Sequence[str],
        *,
        context: str = "",
        depth: float = 0.5,
        ends: int = 0,
        background: bool = False,
    ) -> NDArray[np.float32]:
        """[texts, hidden size] mean hidden state of each text's tokens after `depth` of the layers.

        Each text is read behind `context`, whose own tokens do not count. With `ends`, [texts, 3 * hidden
        size]: the means over all tokens, over the first and over the last so many. Raises ValueError for an
        empty text.
        """
        ...

    def likelihood(
        self, prompt: str, continuations: Sequence[str], *, background: bool = False
    ) -> list[NDArray[np.float32]]:
        """Log-probability of every token of each continuation, as the answer to the user's turn `prompt`.

        The prompt is computed once for all of them and never cut: PromptTooLong where it does not fit.
        ValueError for an empty continuation.
        """
        ...


__all__ = ["BaseModel"]
