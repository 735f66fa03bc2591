# SPDX-License-Identifier: Apache-2.0
"""Guidance toward a few unlabelled images of the target distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from safetensors.torch import load_file, save
from scipy.cluster.vq import kmeans2
from torch import Tensor

from mmgap.feedback.base import Feedback, FeedbackBatch, prepared
from mmgap.feedback.clip_model import ClipModel
from mmgap.feedback.guidance_images import GuidanceImages
from mmgap.files import fingerprint, write_bytes
from mmgap.generators import DiffusionGenerator
from mmgap.registry import TASK_UTILS
from mmgap.typed import checked

DISTANCES = ('cosine', 'l2')


def feature_distance(features: Tensor, targets: Tensor, distance: str) -> Tensor:
    """Distance of features from a set of target features.

    - ``cosine``: 1 - cosine to the targets' mean (arXiv 2403.15309, section 3).
    - ``l2``: squared difference from their mean, each feature in units of the targets' variance,
      averaged over features.

    Args:
        features: ``(B, width)``.
        targets: ``(N, width)``; ``l2`` needs two at least.
        distance: One of the above.

    Returns:
        ``(B,)``.
    """
    mean = targets.mean(dim=0)
    if distance == 'cosine':
        return 1 - F.cosine_similarity(features, mean[None], dim=1)
    variance = targets.var(dim=0)
    return ((features - mean).square() / (variance + 1e-6)).mean(dim=1)


def cluster(features: Tensor, clusters: int) -> list[Tensor]:
    """Split features into clusters: k-means on their directions.

    Starts from the first feature and then, one by one, from the one that is farthest from all
    starts, so that nothing is drawn at random.

    Args:
        features: ``(N, width)``.
        clusters: How many.

    Returns:
        The features of each cluster, ``(n, width)``; clusters that k-means empties are left out.

    Raises:
        ValueError: If there are fewer different features than clusters.
    """
    unit = F.normalize(features.detach().cpu(), dim=1)
    different = len(unit.unique(dim=0))
    if different < clusters:
        raise ValueError(
            f'clusters={clusters} needs as many different guidance images, there are {different}'
        )
    starts = unit[:1]
    while len(starts) < clusters:
        nearest = (unit @ starts.T).amax(dim=1)
        starts = torch.cat([starts, unit[nearest.argmin()][None]])
    _, members = kmeans2(unit.numpy(), starts.numpy(), iter=50, minit='matrix')
    parts = [features[torch.from_numpy(members == i)] for i in range(clusters)]
    return [part for part in parts if len(part)]


@TASK_UTILS.register_module()
class ImageGuidance(Feedback):
    """Pull generated images toward guidance images, in CLIP's space.

    Args:
        images: Folder or dataset config, see :class:`~mmgap.feedback.GuidanceImages`.
        clip: Arguments of :class:`~mmgap.feedback.clip_model.ClipModel`.
        distance: ``'cosine'`` or ``'l2'``, see :func:`feature_distance`.
        clusters: Into how many clusters to split the guidance images; prompts get them in turn, by
            their turn, see :class:`~mmgap.prompts.SoftPrompt`. 1 pulls every prompt toward the
            mean of all, as the paper does; where the target has several looks, their mean is none
            of them.
        limit: Take only the first so many images.
        skip_corrupt: Leave images out that cannot be read.
        **kwargs: As for :class:`~mmgap.feedback.base.Feedback`.

    Raises:
        ValueError: If the distance is unknown or ``clusters`` is not positive.
    """

    needs = 'image'

    def __init__(
        self,
        images: str | Mapping[str, Any],
        clip: Mapping[str, Any],
        distance: str = 'cosine',
        clusters: int = 1,
        limit: int | None = None,
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if distance not in DISTANCES:
            raise ValueError(f'distance must be one of {DISTANCES}, got {distance!r}')
        if clusters < 1:
            raise ValueError(f'clusters must be at least 1, got {clusters}')
        self.images = images
        self.clip = dict(clip)
        self.distance = distance
        self.clusters = clusters
        self.limit = limit
        self.skip_corrupt = skip_corrupt
        self._model: ClipModel | None = None
        self.contents: str | None = None
        self._clusters: list[Tensor] | None = None
        self._paths: list[str] = []

    def prepare(
        self, generator: DiffusionGenerator, classes: Sequence[str], cache: Path | None = None
    ) -> None:
        """Compute the guidance images' features, or read them from ``cache``.

        Raises:
            ValueError: If there are no images, one cannot be read, or they are labelled.
        """
        if self._clusters is not None:
            return
        targets = GuidanceImages(self.images, self.limit, self.skip_corrupt)
        if self.distance == 'l2' and len(targets) < 2:
            raise ValueError(
                f"distance='l2' needs the variance of several images, {self.images!r} holds one"
            )
        self._paths = targets.paths
        self.contents = targets.fingerprint()  # a setting: a search with others is another one
        self._model = ClipModel(**checked(ClipModel, self.clip))
        key = fingerprint([self._model.fingerprint(), targets.fingerprint()])
        path = cache / f'{key}.safetensors' if cache else None
        if path is not None and path.is_file():
            features = load_file(path)['features']
        else:
            with torch.no_grad():
                rows = [
                    self._model.encode_images(targets.load(i)[None]) for i in range(len(targets))
                ]
            features = torch.cat(rows).cpu()
            if path is not None:
                write_bytes(path, save(dict(features=features)))
        found = cluster(features, self.clusters)
        if self.distance == 'l2' and min(map(len, found)) < 2:
            raise ValueError(
                f"distance='l2' needs two images in each of {self.clusters} clusters; take fewer "
                "clusters or distance='cosine'"
            )
        self._clusters = [part.to(self._model.device) for part in found]
        sizes = ', '.join(str(len(part)) for part in found)
        MMLogger.get_current_instance().info(
            f'[gap] {len(targets)} guidance images guide the search, in clusters of {sizes}'
        )

    def guidance_images(self) -> list[str]:
        """Paths of the guidance images."""
        return self._paths

    def __call__(self, batch: FeedbackBatch) -> Tensor:
        """``(B,)``: distance of each image from the guidance images of its prompt's cluster."""
        features = prepared(self._model).encode_images(batch.drawn)
        clusters = prepared(self._clusters)
        turns = torch.tensor([turn % len(clusters) for turn in batch.turns])
        loss = features.new_zeros(len(batch))
        for turn in turns.unique().tolist():
            own = (turns == turn).nonzero()[:, 0].to(features.device)
            part = feature_distance(features[own], clusters[turn], self.distance)
            loss = loss.index_add(0, own, part)
        return loss
