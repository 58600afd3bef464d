"""Adapters from a web server that lists its folders: `adapters add httpdir:http://HOST/contracts/`."""

import re
from urllib.request import Request, urlopen

from router import hookimpl
from router.sources import FolderSource, Listing, RemoteFile, state_of


class HttpFolder(FolderSource):
    def listing(self):
        with self.ask() as page:
            names = set(re.findall(r'href="([\w.-]+)"', page.read(1 << 20).decode()))
        files, marks = [], {}
        for name in sorted(names):
            with self.ask(name, "HEAD") as answer:
                files.append(RemoteFile(name, int(answer.headers.get("Content-Length", 0))))
                marks[name] = f"{answer.headers['Last-Modified']} {answer.headers['ETag']}"
        return Listing(tuple(files), pin=state_of(marks))

    def read(self, file):
        with self.ask(file.name) as answer:
            yield from iter(lambda: answer.read(1 << 20), b"")

    def ask(self, name="", method="GET"):
        return urlopen(Request(self.address + name, method=method), timeout=30)


@hookimpl
def register_adapter_sources(register):
    register("httpdir", HttpFolder)
