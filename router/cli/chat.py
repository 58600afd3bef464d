"""`lora-router chat`: a conversation in the terminal, with who answers each turn and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import connect, flags
from router.cli.ask import MaxTokens, Temperature, Unit
from router.cli.connect import connected, decision_line, explain_call, usage_line
from router.cli.output import clean, print_pairs

if TYPE_CHECKING:
    from router.client import Client
    from router.types import Decision, Turn

PROMPT, MORE = "> ", "… "
CONTINUES = "\\"  # at the end of a line: the next one belongs to it
HELP = {
    "/adapter [NAME]": "name who answers: NAME, NAME@VERSION, base, or auto; without a name, list adapters",
    "/why": "show the votes for the last answer, and its id for `lora-router feedback`",
    "/system [TEXT]": "give an instruction for all turns; without a text, none",
    "/clear": "begin a new conversation",
    "/help": "show this",
    "/quit": "end; Ctrl-D does, too",
}
TOO_LONG = "PROMPT_TOO_LONG"
Adapter = Annotated[
    str, typer.Option("--adapter", "-a", metavar="NAME[@VERSION]", help="Who answers; base: no adapter.")
]
System = Annotated[str, typer.Option("--system", metavar="TEXT", help="An instruction for all turns.")]


def chat(
    adapter: Adapter = "",
    system: System = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    unit: Unit = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 120.0,
) -> None:
    """Chat in the terminal; each answer shows which adapter answers, and why.

    Each turn goes to the server with all turns before it. Ctrl-C ends an answer. A line
    that ends with a backslash goes on in the next. /help lists the commands.

    \b
    Examples:
      lora-router chat
      lora-router chat --adapter medical --system "Be brief."
    """
    options: dict[str, Any] = {"unit": unit, "max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in options.items() if value not in ("", None)}
    with connected(server, timeout) as client:
        Conversation(client, connect.target_of(server), adapter, system, given).run()


class Conversation:
    """The turns so far, and what the next one is asked with."""

    def __init__(
        self, client: Client, target: str, adapter: str, system: str, options: Mapping[str, Any]
    ) -> None:
        self._client, self._target, self._options = client, target, options
        self._adapter, self._system = "" if adapter == "auto" else adapter, system
        self._turns: list[Turn] = []
        self._decision: Decision | None = None  # of the last answer
        self._response_id = ""
        self._on_terminal = sys.stdin.isatty()
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/adapter": self._choose,
            "/why": self._explain,
            "/system": self._instruct,
            "/clear": self._clear,
            "/help": lambda _: print_help(),
        }

    def run(self) -> None:
        """Read turns until the end of the input."""
        if self._on_terminal:
            with suppress(ImportError):  # not on every system; without it lines cannot be edited
                import readline  # noqa: F401
            _note(f"{self._target}: /help lists commands, Ctrl-D ends")
        while (text := self._read()) is not None:
            if text in ("/quit", "/exit", "/bye"):
                return
            if text:
                self._take(text)

    def _read(self) -> str | None:
        """The next turn or command; None at the end of the input, '' for a line that was given up."""
        lines: list[str] = []
        while True:
            try:
                prompt = (MORE if lines else PROMPT) if self._on_terminal else ""
                line = input(prompt)
            except EOFError:
                if self._on_terminal:
                    print()
                return "\n".join(lines).strip() or None
            except KeyboardInterrupt:
                print()
                if not lines:
                    _note("Ctrl-D ends")
                return ""
            except UnicodeDecodeError as error:
                _note(f"the line is not UTF-8: byte {error.start}")
                return ""
            lines.append(line.removesuffix(CONTINUES))
            if not line.endswith(CONTINUES):
                return "\n".join(lines).strip()

    def _take(self, text: str) -> None:
        """Carry out a command, or ask. An error ends neither the conversation nor the turns before."""
        from router.cli.command import CliError
        from router.client import ClientError

        name, _, rest = text.partition(" ")
        try:
            if name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/") and name[1:].isalpha():
                _note(f"there is no command {name}: /help lists them")
            else:
                self._ask(text)
        except ClientError as error:
            _note(f"error: {explain_call(error, self._target)}")
            if error.reason == TOO_LONG and self._turns:
                _note("/clear begins a new conversation")
        except CliError as error:
            _note(f"error: {error}")

    def _ask(self, text: str) -> None:
        """Stream one answer. What came before Ctrl-C stays a turn of the conversation."""
        from router.client import Delta, Started
        from router.types import Turn

        options: dict[str, Any] = {**self._options, "explain": True}
        if self._adapter:
            options["adapter"] = self._adapter
        asked = [*self._turns, Turn("user", text)]
        system = [Turn("system", self._system)] if self._system else []
        answer, end = "", ""
        on_terminal = sys.stdout.isatty()
        try:
            for event in self._client.stream([*system, *asked], **options):
                if isinstance(event, Started):
                    self._decision, self._response_id = event.decision, event.response_id
                    _note(decision_line(event.decision))
                elif isinstance(event, Delta):
                    answer += event.text
                    print(clean(event.text) if on_terminal else event.text, end="", flush=True)
                else:
                    end = usage_line(event.usage, event.reason.value)
        except KeyboardInterrupt:
            end = "ended by Ctrl-C"
        finally:
            if answer:
                print(end="" if answer.endswith("\n") else "\n", flush=True)
                self._turns = [*asked, Turn("assistant", answer)]
        _note(end)

    # -- Commands

    def _choose(self, name: str) -> None:
        if name:
            self._adapter = "" if name == "auto" else name
            _note(f"{name} answers from now on" if self._adapter else "routing chooses from now on")
            return
        found = sorted({one.ref.name for one in self._client.adapters.list()})
        _note(f"answers: {self._adapter or 'auto'}; adapters: {', '.join(found) or 'none'}, base, auto")

    def _explain(self, _: str) -> None:
        from router.cli.route import print_decision

        if self._decision is None:
            _note("nothing was answered yet")
        else:
            print_decision(self._decision)
            print(f"response {self._response_id}")

    def _instruct(self, text: str) -> None:
        self._system = text
        _note("kept for all turns" if text else "no instruction from now on")

    def _clear(self, _: str) -> None:
        self._turns, self._decision, self._response_id = [], None, ""
        _note("a new conversation")


def print_help() -> None:
    """Every command."""
    print_pairs(list(HELP.items()))


def _note(text: str) -> None:
    """A line that is no part of an answer."""
    if text:
        print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
