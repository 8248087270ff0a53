"""An object store on a local folder, which fsspec and etils take for gs://."""

import io
import os
import pathlib
import urllib.parse

import fsspec


class Upload(io.BytesIO):
    """An object under way: it is there once it is closed, and as it was until then."""

    def __init__(self, file: pathlib.Path):
        super().__init__()
        self.file = file

    def close(self):
        if not self.closed:
            self.file.write_bytes(self.getvalue())
        super().close()


class Bucket(fsspec.AbstractFileSystem):
    """What gcsfs does, as far as this project asks for it: whole objects, by keys without folders.

    Every object is one file of `home`. Nothing can be appended to, renamed or locked.
    """

    protocol = ("gs", "gcs")
    cachable = False
    home: pathlib.Path | None = None
    broken: Exception | None = None  # what every access raises

    def __init__(self, finalize_on_close: bool = False, **options):
        super().__init__(**options)

    @classmethod
    def object(cls, path) -> pathlib.Path:
        if cls.broken:
            raise cls.broken
        return cls.home / urllib.parse.quote(cls._strip_protocol(os.fspath(path)), safe="")

    @classmethod
    def names(cls) -> list[str]:
        return sorted(urllib.parse.unquote(file.name) for file in cls.home.iterdir())

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            return open(self.object(path), "rb")
        if mode == "wb":
            return Upload(self.object(path))
        raise NotImplementedError(f"an object of a bucket cannot be opened to {mode}")

    def info(self, path, **options):
        name, file = self._strip_protocol(path), self.object(path)
        if file.is_file():
            return {"name": name, "size": file.stat().st_size, "type": "file"}
        if any(key.startswith(f"{name}/") for key in self.names()):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **options):
        start = self._strip_protocol(path) + "/"
        below = (key.removeprefix(start) for key in self.names() if key.startswith(start))
        found = [self.info(start + name) for name in sorted({key.split("/")[0] for key in below})]
        return found if detail else [entry["name"] for entry in found]

    def rm_file(self, path):
        self.object(path).unlink()
