"""What a recipe says of where the pool's images come from: shards that are there, or a web that is to be downloaded."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from components.base.addresses import parse_address
from components.base.version import version
from components.recipe.types import Address, Count, Model, Name, Seed, Text, Whole, worded

INDEX = "https://index.commoncrawl.org"  # where Common Crawl lists its dumps
BASE = "https://data.commoncrawl.org"  # and where their files are
AGENT = "recaption"
"""The product token, by which robots.txt and X-Robots-Tag name us."""
TABLES = (".parquet", ".parq", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
"""Ends of the names of tables that are read, in capitals as well."""
ROUNDS = 8


def is_table(path: str) -> bool:
    """Return whether a file of this name is read as a table: hidden files, and those in hidden folders, are not."""
    return path.lower().endswith(TABLES) and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Return whether a part of the path begins with a dot, as in `.ipynb_checkpoints/a.csv`; `.` and `..` don't."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


Seconds = Annotated[float, Field(gt=0, le=600)]
Retry = Literal["transient", "all"]


def _source(value: str) -> str:
    if not re.match(r"https?://[^/]", value):
        parse_address(value)
    return value


def _network(value: str) -> str:
    ip_network(value)  # its ValueError says what is wrong
    return value


def _contact(value: str) -> str:
    if not re.fullmatch(r"[!-'*-~]+", value):  # printable ASCII without spaces and parentheses
        raise ValueError("expected an address of a page or a mailbox, without spaces and parentheses")
    return value


Network = Annotated[str, Field(max_length=49), AfterValidator(_network)]


class Subset(Model):
    """Some of a pool's shards."""

    shards: Count
    """How many shards to take."""
    seed: Seed = 0
    """Chooses the shards: those with the lowest hash of (seed, name), so a growing pool keeps most of a subset."""


class CommonCrawl(Model):
    """A dump of Common Crawl, or a sample of it."""

    dump: Annotated[
        str, worded(r"^(latest|(CC-MAIN|cc-main)-[0-9]{4}-[0-9]{2})$", 15, "an id such as CC-MAIN-2026-43, or latest")
    ]
    """An id such as CC-MAIN-2026-43; latest: the newest dump at the time when the run is planned."""
    files: Literal["wat", "warc"] = "wat"
    """wat: Common Crawl's digest of each page's links and images; warc: the pages themselves, several times as large,
    for the alt texts of lazily loaded images and of <picture>."""
    sample: Count | None = None
    """Number of the dump's files to take; left out: all."""
    seed: Seed = 0
    """Chooses the files: those with the lowest hash of (seed, path), so a larger sample contains a smaller one."""
    base: Annotated[Text, AfterValidator(_source)] = BASE
    """Where the dump's files lie: http(s)://…, s3://commoncrawl, or a mirror with the same paths."""
    index: Text = INDEX
    """Where the dumps are listed, for latest: base address of collinfo.json, or a folder with it."""


class Pool(Model):
    """The candidate image-text pairs, cut into shards."""

    name: Name
    """Name under which the pool's columns are kept and shared between recipes."""
    shards: Address | None = None
    """Folder, gs:// or s3:// prefix of webdataset tars in DataComp's (img2dataset's) layout, used where they are."""
    urls: Address | None = None
    """Instead of shards: a .parquet, .csv or .tsv (also .gz), or a folder of them, with the fields url and text
    (DataComp's metadata, say), whose images are downloaded first."""
    common_crawl: CommonCrawl | None = None
    """Instead of shards: a dump of Common Crawl, whose images with a text are downloaded first."""
    subset: Subset | None = None
    """Use only some shards; left out: all."""

    @model_validator(mode="after")
    def _one_source(self) -> Pool:
        if [self.shards, self.urls, self.common_crawl].count(None) != 2:
            raise ValueError("give exactly one of `shards`, `urls` and `commonCrawl`")
        if self.subset and self.shards is None:
            raise ValueError("`subset` takes some of `shards`; of what is downloaded take fewer files")
        return self


class Download(Model):
    """How images are fetched from the web: limits are of all workers together."""

    contact: Annotated[str, Field(max_length=200), AfterValidator(_contact)] | None = None
    """A page or mailbox where whoever runs a web server reaches you; it is part of the user agent."""
    connections: Count = 512
    """Images on their way at once in one worker, over all hosts."""
    per_host_connections: Count = 4
    """Connections to one host, of all workers together; each worker has at least one."""
    per_host_rate: Annotated[float, Field(gt=0, le=10_000)] = 10.0
    """Requests per second to one host."""
    connect_timeout: Seconds = 5.0
    """Seconds to look a name up, connect and agree on TLS."""
    read_timeout: Seconds = 10.0
    """Seconds between two packets."""
    timeout: Seconds = 30.0
    """Seconds for one image: all its requests, redirects, further attempts and pauses, and its host's robots.txt where
    it is the first to ask for it. Waiting for a turn at a host doesn't count."""
    retries: Annotated[int, Field(ge=0, le=10), Whole] = 2
    """Further attempts after a failure that may pass at once, such as HTTP 503."""
    max_bytes: Annotated[int, Field(ge=1024, le=1 << 30), Whole] = 32 << 20
    """Bytes of one image, as sent and unpacked."""
    robots: bool = False
    """Ask each host's robots.txt."""
    retry: Annotated[list[Retry], Field(max_length=ROUNDS)] = []
    """Rounds over what failed, each into shards of its own behind the others; add one, days later, to the same recipe.
    transient: failures that may have passed, such as a timeout; all: also the others, such as HTTP 404."""
    allow_networks: Annotated[list[Network], Field(max_length=64)] = []
    """CIDRs of private networks that may be connected to, on any port: a local mirror's, of images or of Common Crawl.
    Not in a cluster."""

    @property
    def user_agent(self) -> str:
        return f"{AGENT}/{version()}" + (f" (+{self.contact})" if self.contact else "")

    def shared_by(self, workers: int) -> Download:
        """Return these options for one of several workers: the limits per host are divided."""
        cut = {
            "per_host_connections": max(1, self.per_host_connections // workers),
            "per_host_rate": self.per_host_rate / workers,
        }
        return self.model_copy(update=cut)
