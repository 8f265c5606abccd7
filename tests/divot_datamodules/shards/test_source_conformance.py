"""Both built-in sources keep the contract of a source."""

import gzip
import json
import os

from divot_datamodules.order.source_fraction import SourceFraction
from divot_datamodules.shards.jsonl_source import JsonlSource
from divot_datamodules.shards.tar_source import TarSource
from divot_datamodules.shards.writing import write_shard
from divot_lightning.testing import SourceConformance


def write_tars(folder, counts):
    """Write tars of pictures' bytes with captions; the content is not decoded here."""
    for number, count in enumerate(counts):
        samples = [(f"k{number}.{n}", {"jpg": b"x" * (n + 1), "json": b'{"caption": "c"}'}) for n in range(count)]
        write_shard(folder / f"{number:03d}.tar", samples)
    return folder


class TestTarSource(SourceConformance):
    def make_source(self, folder):
        return TarSource(str(write_tars(folder, (3, 4))))

    def make_other(self, folder):
        return TarSource(str(write_tars(folder, (3, 5))))

    def make_damaged(self, folder):
        source = self.make_source(folder)
        os.truncate(folder / "001.tar", 2000)
        return source


class TestCompressedTars(TestTarSource):
    def make_source(self, folder):
        return self.compressed(folder, (3, 4))

    def make_other(self, folder):
        return self.compressed(folder, (3, 5))

    def make_damaged(self, folder):
        return None  # the copies are no files of the user

    def compressed(self, folder, counts):
        for tar in sorted(write_tars(folder, counts).glob("*.tar")):
            tar.with_suffix(".tar.gz").write_bytes(gzip.compress(tar.read_bytes(), mtime=0))
        return TarSource(str(folder / "*.tar.gz"))


class TestJsonlSource(SourceConformance):
    def make_source(self, folder):
        return self.listed(folder, (2, 3))

    def make_other(self, folder):
        return self.listed(folder, (2, 4))

    def make_damaged(self, folder):
        source = self.make_source(folder)
        (folder / "1.jpg").unlink()
        return source

    def listed(self, folder, counts):
        for number, count in enumerate(counts):
            lines = [{"image": f"{n}.jpg", "caption": f"c{n}"} for n in range(count)]
            (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for n in range(max(counts)):
            (folder / f"{n}.jpg").write_bytes(b"x" * (n + 1))
        return JsonlSource(str(folder), media_from="root")


class FractionConformance(SourceConformance):
    def test_settings_open_the_source_again(self, tmp_path):
        """A fraction is made by the suite of another source; no recipe names it."""


class TestSourceFraction(FractionConformance):
    def make_source(self, folder):
        return SourceFraction(TarSource(str(write_tars(folder, (3, 4)))), 0.5)

    def make_other(self, folder):
        return SourceFraction(TarSource(str(write_tars(folder, (3, 4)))), 0.8)
