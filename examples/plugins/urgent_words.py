"""Route what sounds urgent to one adapter, domain or task: `serve --set urgent_words.label=legal`."""

from pydantic import BaseModel

from router import hookimpl
from router.routing import Classifier, Scores


class Settings(BaseModel):
    label: str = "legal"  # an adapter's name, a domain or a task
    words: list[str] = ["urgent", "immediately", "asap"]


class UrgentWords(Classifier):
    name = "urgent_words"

    def __init__(self, settings: Settings) -> None:
        self.label, self.words = settings.label, {word.lower() for word in settings.words}

    def classify_batch(self, requests):
        return [self.scores(request.text.lower().split()) for request in requests]

    def scores(self, words):
        found = self.words.intersection(word.strip(".,;:!?") for word in words)
        return Scores({self.label: 0.95}, evidence=", ".join(sorted(found))) if found else None


@hookimpl
def register_settings(register):
    register(Settings)


@hookimpl
def register_classifiers(register, settings):
    register(UrgentWords(settings), priority=1, timeout_ms=20)
