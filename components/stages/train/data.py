"""The training set as batches, in place of open_clip's own loader, which goes on when a tar can't be read.

What it keeps: tars drawn with replacement (--dataset-resampled), samples mixed in a buffer of open_clip's size,
images and texts through open_clip's own transforms and tokenizer. What it changes: a tar that is missing, cut or short
ends the training; every sample is equally likely, whatever its tar's size; order and augmentation follow from (seed,
checkpoint, rank, worker) alone, so that a resumed training sees what an undisturbed one sees.
"""

from __future__ import annotations

import json
import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
from open_clip_train.data import _SAMPLE_SHUFFLE_INITIAL, _SAMPLE_SHUFFLE_SIZE, DataInfo, SharedEpoch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import _shuffle
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from components.base.errors import PermanentError, TemporaryError
from components.engine.images import ImageError, open_rgb
from components.stages.train.marks import UNDECODABLE
from components.storage.interface import Storage
from components.storage.opening import open_storage

log = logging.getLogger(__name__)

SILENCE = 900.0  # seconds for a batch: a bucket that is away raises after 120; a batch that is lost never does
LONGEST_TEMP = 107 - len("/pymp-12345678/listener-12345678")  # of a Unix socket's path, what Python adds to it
IMAGES = ("jpg", "png", "jpeg", "webp")

Sample = dict[str, Any]


class TrainingSet(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """One rank's batches: (images, tokens), (B, 3, H, W) float32 and (B, context) int64."""

    def __init__(
        self,
        uri: str,
        batches: int,
        batch_size: int,
        seed: tuple[int, int],
        epoch: SharedEpoch,
        transform: Callable[[Any], torch.Tensor],
        tokenizer: Callable[[str], torch.Tensor],
    ) -> None:
        """Load the list of tars. `seed`: the training's and the rank; `batches`: per epoch, of all this rank's
        workers."""
        super().__init__()
        self.uri, self.batches, self.batch_size, self.seed, self.epoch = uri, batches, batch_size, seed, epoch
        self.transform, self.tokenizer = transform, tokenizer
        tars = json.loads(open_storage(uri).read("dataset.json"))["shards"]
        self.sizes = {tar["name"]: int(tar["samples"]) for tar in tars}
        self.reported: set[str] = set()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rng = random.Random(repr((*self.seed, self.epoch.get_value(), worker)))
        for seed_library in (torch.manual_seed, lambda seed: np.random.seed(seed % 2**32), random.seed):
            seed_library(rng.getrandbits(63))
        shuffled = _shuffle(self._raw(rng), _SAMPLE_SHUFFLE_SIZE, _SAMPLE_SHUFFLE_INITIAL, rng)
        pairs = filter(None, map(self._pair, shuffled))
        for _ in range(self.batches // workers + (worker < self.batches % workers)):
            images, texts = zip(*islice(pairs, self.batch_size), strict=True)
            yield torch.stack(images), torch.stack(texts)

    def _raw(self, rng: random.Random) -> Iterator[Sample]:
        """Yield samples without end, from tars drawn by their number of samples."""
        storage = open_storage(self.uri)
        names, cumulative = list(self.sizes), list(accumulate(self.sizes.values()))
        while True:
            yield from self._tar(storage, rng.choices(names, cum_weights=cumulative)[0])

    def _tar(self, storage: Storage, name: str) -> Iterator[Sample]:
        found = 0
        with storage.open(name) as stream:
            files = tar_file_expander([{"url": name, "stream": stream}], handler=reraise_exception)
            try:
                for sample in group_by_keys(files, handler=reraise_exception):
                    found += 1
                    yield sample
            except TemporaryError as error:  # raised by the bucket; webdataset has added to its arguments
                raise TemporaryError(
                    f"training set {self.uri}/{name} after {found} samples: {error.args[0]}"
                ) from error
            except Exception as error:  # tarfile's, gzip's, ours: whatever it is, the tar can't be read
                raise PermanentError(f"{self._where(name)} can't be read after {found} samples ({error})") from error
        if found != self.sizes[name]:  # tarfile takes a damaged header for the end
            raise PermanentError(
                f"{self._where(name)} has {found} readable samples, dataset.json says {self.sizes[name]}"
            )

    def _where(self, name: str) -> str:
        return f"training set {self.uri}/{name} (delete that tar and run reshard again):"

    def _pair(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Decode a sample; return None for an image that can't be decoded, which is counted and logged once."""
        data = next((sample[name] for name in IMAGES if name in sample), b"")
        try:
            image = open_rgb(data)
        except ImageError as error:
            if sample["__key__"] not in self.reported:
                self.reported.add(sample["__key__"])
                log.warning("%s %s %s: %s", UNDECODABLE, sample["__url__"], sample["__key__"], error)
            if len(self.reported) == sum(self.sizes.values()):
                raise PermanentError(f"training set {self.uri}: not one image can be decoded") from error
            return None
        return self.transform(image), self.tokenizer(sample["txt"].decode())[0]


class WholeLoader(DataLoader[tuple[torch.Tensor, torch.Tensor]]):
    """Loads whole epochs: an epoch ends with its last batch, not when the loading processes say so. A process that
    can't hand a batch over (no room for a socket or shared memory) prints a traceback and goes on with the next batch.
    """

    num_batches: int
    num_samples: int

    def __iter__(self) -> Any:
        found = 0
        for batch in super().__iter__():
            found += 1
            yield batch
        if found != self.num_batches:
            raise TemporaryError(
                f"{found} of {self.num_batches} batches arrived from the loading processes; their error is above"
            )


def get_data(args: Any, transforms: tuple[Any, Any], epoch: int = 0, tokenizer: Any = None) -> dict[str, DataInfo]:
    """Return the training data; open_clip's trainer calls this with its parsed arguments."""
    shared = SharedEpoch(epoch)
    batches, rest = divmod(args.train_num_samples, args.batch_size * args.world_size)
    if rest:
        raise PermanentError(f"{args.train_num_samples} samples are no whole number of batches; a bug in recaption")
    dataset = TrainingSet(
        args.train_data, batches, args.batch_size, (args.seed, args.rank), shared, transforms[0], tokenizer
    )
    # fork: workers inherit the tokenizer and transforms; they use no GPU.
    if args.workers and len(tempfile.gettempdir()) > LONGEST_TEMP:
        raise PermanentError(
            f"TMPDIR {tempfile.gettempdir()}: has more than {LONGEST_TEMP} characters, too many for the sockets by "
            "which loading processes hand batches over; set a shorter one"
        )
    loader: Any = WholeLoader(
        dataset,
        batch_size=None,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        timeout=SILENCE if args.workers else 0,
        multiprocessing_context="fork" if args.workers else None,
    )
    loader.num_batches, loader.num_samples = batches, args.train_num_samples
    return {"train": DataInfo(loader, shared_epoch=shared)}
