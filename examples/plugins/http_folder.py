"""Adapters from a web server that lists its folders: `adapters add httpdir:http://HOST/contracts/`."""

import re
from urllib.request import Request, urlopen

from router import hookimpl
from router.sources import FolderSource, Listing, RemoteFile, StartOver, state_of


class HttpFolder(FolderSource):
    def listing(self):
        with self.ask() as page:
            names = set(re.findall(r'href="([\w.-]+)"', page.read(1 << 20).decode()))
        files, marks = [], {}
        for name in sorted(names):
            with self.ask(name, "HEAD") as answer:
                files.append(RemoteFile(name, int(answer.headers.get("Content-Length", 0))))
                marks[name] = f"{answer.headers['Last-Modified']} {answer.headers['ETag']}"
        return Listing(tuple(files), state=state_of(marks))

    def read(self, file, start):
        with self.ask(file.name, **({"Range": f"bytes={start}-"} if start else {})) as answer:
            if start and answer.status != 206:  # the whole file instead of the rest
                raise StartOver
            yield from iter(lambda: answer.read(1 << 20), b"")

    def ask(self, name="", method="GET", **headers):
        return urlopen(Request(self.address + name, method=method, headers=headers), timeout=30)


@hookimpl
def register_adapter_sources(register):
    register("httpdir", HttpFolder)
