# SPDX-License-Identifier: Apache-2.0
"""Text, image and inversion guidance on tiny models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn import functional as F

from mmgap.feedback import (
    ClipModel,
    FeedbackBatch,
    GuidanceImages,
    ImageGuidance,
    InversionGuidance,
    TextGuidance,
    cluster,
    feature_distance,
    hidden_state_distance,
)
from mmgap.generators import InpaintingGenerator

CLIP = dict(model='mmgap://toybirds-clip')
CLASSES = ('a', 'b')


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return InpaintingGenerator(str(tiny_sd), dtype='float64')


@pytest.fixture
def folder(tmp_path):
    """Five noise pictures, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    for name in ('0.png', '1.PNG', '2.jpg', '3.png', 'sub/4.png'):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    return str(tmp_path / 'images')


def batch(generator, texts, labels=None, images=None, seeds=None):
    hidden = generator.prompts.encode_text(texts)
    labels = torch.tensor(labels or [0] * len(texts))
    numbers = range(len(texts))
    return FeedbackBatch(hidden, labels, seeds or list(numbers), numbers, images)


@pytest.mark.parametrize('distance', ['l2', 'cosine'])
def test_hidden_state_distance(distance):
    torch.manual_seed(0)
    hidden = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(4, 6, dtype=torch.float64)
    found = hidden_state_distance(hidden, towards, distance)
    for row, value in zip(hidden.detach().numpy(), found.tolist(), strict=True):
        other = towards.numpy()
        if distance == 'l2':
            expected = ((row - other) ** 2).mean()
        else:  # per token, over its features
            norms = np.linalg.norm(row, axis=1) * np.linalg.norm(other, axis=1)
            expected = (1 - (row * other).sum(1) / norms).mean()
        assert value == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda h: hidden_state_distance(h, towards, distance), hidden)


def test_text_guidance_is_zero_at_the_description(generator):
    term = TextGuidance(['a b'])
    term.prepare(generator, CLASSES)
    here, there = term(batch(generator, ['a b', 'c d'])).tolist()
    assert here == pytest.approx(0, abs=1e-8) and there > 1e-3


def test_mean_of_descriptions_keeps_their_length(generator):
    term = TextGuidance(['a b', 'c d'])
    term.prepare(generator, CLASSES)
    states = generator.prompts.encode_text(['a b', 'c d']).float().flatten(1)
    towards = term._towards[0].flatten()
    assert float(towards.norm()) == pytest.approx(states.norm(dim=1).mean().item(), rel=1e-5)
    direction = F.cosine_similarity(towards, states.mean(0), dim=0)
    assert float(direction) == pytest.approx(1, abs=1e-6)


def test_descriptions_in_turn(generator):
    term = TextGuidance(['a b', 'c d'], assign='turn')
    term.prepare(generator, CLASSES)
    right = term(batch(generator, ['a b', 'c d', 'a b'])).tolist()
    wrong = term(batch(generator, ['c d', 'a b', 'c d'])).tolist()
    assert max(right) < 1e-8 and min(wrong) > 1e-3


def test_descriptions_in_a_file(tmp_path):
    (tmp_path / 'texts.txt').write_text('# where\na b\n\n c d \n')
    assert TextGuidance(str(tmp_path / 'texts.txt')).descriptions == ['a b', 'c d']


def test_descriptions_by_class(generator):
    term = TextGuidance(dict(b=['c d'], a=['a b']))
    term.prepare(generator, CLASSES)
    values = term(batch(generator, ['a b', 'a b', 'c d'], [0, 1, 1])).tolist()
    assert values[0] == pytest.approx(0, abs=1e-8) == values[2] and values[1] > 1e-3
    with pytest.raises(ValueError, match=r"descriptions are for \['a'\], the classes are"):
        TextGuidance(dict(a=['a'])).prepare(generator, CLASSES)


def test_clip_space_compares_image_and_text(generator, device):
    term = TextGuidance(['a lake', 'an ocean'], space='clip', distance='cosine', clip=CLIP)
    term.prepare(generator, CLASSES)
    assert term.needs == 'image'
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        image = term._model.model.encode_image(2 * images.to(device) - 1, normalize=True)
        text = term._model.encode_texts(['a lake', 'an ocean']).mean(0)
        expected = 1 - F.cosine_similarity(image, text[None])
    torch.testing.assert_close(term(batch(generator, ['a', 'b'], images=images)), expected)
    with pytest.raises(ValueError, match="this batch has no images; .* needs = 'image'"):
        term(batch(generator, ['a', 'b']))


@pytest.mark.parametrize('distance', ['cosine', 'l2'])
def test_feature_distance(distance):
    torch.manual_seed(0)
    features = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(7, 5, dtype=torch.float64)
    found = feature_distance(features, targets, distance)
    mean, variance = targets.numpy().mean(0), targets.numpy().var(0, ddof=1)
    for row, value in zip(features.detach().numpy(), found.tolist(), strict=True):
        if distance == 'cosine':
            expected = 1 - row @ mean / np.linalg.norm(row) / np.linalg.norm(mean)
        else:
            expected = np.mean((row - mean) ** 2 / (variance + 1e-6))
        assert value == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(lambda f: feature_distance(f, targets, distance), features)


def test_clusters_are_the_bundles():
    """Three bundles of directions, of different lengths and in any order."""
    torch.manual_seed(0)
    bundles = F.normalize(torch.randn(3, 16, dtype=torch.float64), dim=1)
    where = torch.tensor([0, 1, 1, 2, 0, 2, 2, 2, 1, 0, 2])
    features = bundles[where] + 0.05 * torch.randn(11, 16, dtype=torch.float64)
    features = features * torch.rand(11, 1, dtype=torch.float64).add(0.5)
    found = {tuple(part[:, 0].tolist()) for part in cluster(features, 3)}
    assert found == {tuple(features[where == i, 0].tolist()) for i in range(3)}
    assert torch.equal(cluster(features, 1)[0], features)
    with pytest.raises(ValueError, match='clusters=3 .* there are 2'):
        cluster(features[[0, 1, 0]], 3)


def test_prompts_get_the_clusters_in_turn(generator, folder):
    every = ImageGuidance(folder, CLIP)
    split = ImageGuidance(folder, CLIP, clusters=2)
    images = torch.rand(3, 3, 24, 24)
    given = batch(generator, ['a', 'b', 'c'], labels=[0, 1, 1], images=images)
    for term in (every, split):
        term.prepare(generator, CLASSES)
    model, features = ClipModel(**CLIP), GuidanceImages(folder)
    with torch.no_grad():
        targets = torch.cat([model.encode_images(features.load(i)[None]) for i in range(5)])
        own = model.encode_images(images)
    parts = cluster(targets, 2)
    expected = [feature_distance(own[[i]], parts[i % 2], 'cosine') for i in range(3)]
    assert torch.allclose(split(given), torch.cat(expected), atol=1e-6)
    assert torch.allclose(every(given), feature_distance(own, targets, 'cosine'), atol=1e-6)
    assert not torch.allclose(split(given), every(given), atol=1e-3)
    with pytest.raises(ValueError, match='clusters must be at least 1'):
        ImageGuidance(folder, CLIP, clusters=0)


def test_image_features_are_computed_once(generator, folder, tmp_path, monkeypatch):
    term = ImageGuidance(folder, CLIP)
    term.prepare(generator, CLASSES, tmp_path / 'cache')
    (file,) = (tmp_path / 'cache').iterdir()
    again, other = ImageGuidance(folder, CLIP), ImageGuidance(folder, CLIP, limit=3)
    monkeypatch.setattr('mmgap.feedback.image_guidance.write_bytes', lambda *_: pytest.fail('new'))
    again.prepare(generator, CLASSES, tmp_path / 'cache')
    assert torch.equal(again._clusters[0], term._clusters[0]) and len(term._clusters[0]) == 5
    with pytest.raises(pytest.fail.Exception):  # other images have another file
        other.prepare(generator, CLASSES, tmp_path / 'cache')
    assert again.settings() == term.settings()  # which name the pictures, not the folder alone
    other.limit = None
    assert other.settings() != term.settings()
    assert again.guidance_images() == GuidanceImages(folder).paths and file.suffix == '.safetensors'
    image = GuidanceImages(folder).load(0)[None]
    assert term(batch(generator, ['a'], images=image)) < term(
        batch(generator, ['a'], images=torch.zeros_like(image))
    )


@pytest.mark.parametrize('channels', [4, 9])
@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction', 'sample'])
def test_inversion_gradient_equals_finite_differences(channels, kind, tiny_sd, tiny_sd_9, folder):
    path = tiny_sd if channels == 4 else tiny_sd_9
    generator = InpaintingGenerator(
        str(path), dtype='float64', scheduler=dict(prediction_type=kind)
    )
    term = InversionGuidance(folder)
    term.prepare(generator, CLASSES)
    prompt = generator.prompts.random_prompt(2, 0, 'x').double()

    def loss() -> torch.Tensor:
        hidden = generator.prompts.encode([prompt, prompt])
        return term(FeedbackBatch(hidden, torch.tensor([0, 1]), [5, 6], [0, 1]))

    assert torch.equal(loss(), loss()) and loss()[0] != loss()[1]
    (grad,) = torch.autograd.grad(loss().sum(), prompt.embeddings)
    step = 1e-3 * torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)).to(grad)
    with torch.no_grad():
        prompt.embeddings += step
        up = loss().sum()
        prompt.embeddings -= 2 * step
        down = loss().sum()
    assert (up - down).item() / 2 == pytest.approx((grad * step).sum().item(), rel=2e-2)


def test_denoising_loss_of_a_perfect_model_is_zero(generator, folder, monkeypatch):
    """A UNet that gives the noise back is right at every timestep and seed."""
    kept = {}
    original = DDPMScheduler.add_noise

    def noted(self, latent, noise, time):
        kept['noise'] = noise
        return original(self, latent, noise, time)

    class Answer:
        @property
        def sample(self):
            return kept['noise']

    monkeypatch.setattr(DDPMScheduler, 'add_noise', noted)
    monkeypatch.setattr(generator.pipeline.unet, 'forward', lambda *_, **__: Answer())
    images = GuidanceImages(folder).load(0, generator.size)[None]
    hidden = generator.prompts.encode_text(['a'])
    assert generator.denoising_loss(images, hidden, [3]).tolist() == [0.0]


def test_bad_target_images(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='is no folder'):
        GuidanceImages(str(tmp_path / 'nowhere'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no image'):
        GuidanceImages(str(tmp_path / 'empty'))
    broken = tmp_path / 'images' / '1.PNG'
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r'guidance image .*1\.PNG cannot be read'):
        GuidanceImages(folder)
    assert len(GuidanceImages(folder, skip_corrupt=True)) == 4
    with pytest.raises(ValueError, match='limit must be at least 1'):
        GuidanceImages(folder, limit=0)


def test_labelled_splits_cannot_guide():
    """The split API makes the leak impossible: a guidance split has no labels to be scored with."""
    for split in ('train', 'val_id', 'val', 'test', 'test_shift', 'test_final'):
        with pytest.raises(ValueError, match='labelled split'):
            GuidanceImages(dict(type='mmgap.ToyBirds', split=split, size=4))
    for split in ('train', 'val', 'test_night'):
        with pytest.raises(ValueError, match='labelled split'):
            GuidanceImages(dict(type='mmgap.ToyDepth', split=split, size=4))
    assert len(GuidanceImages(dict(type='mmgap.ToyDepth', split='guidance', size=4))) == 4
    found = GuidanceImages(dict(type='mmgap.ToyBirds', split='guidance_shift', size=4))
    assert len(found) == 4 and found.load(0).shape == (3, 64, 64)


def test_bad_settings(generator):
    with pytest.raises(ValueError, match="space must be one of .* got 'image'"):
        TextGuidance(['a'], space='image')
    with pytest.raises(ValueError, match="assign must be one of .* got 'each'"):
        TextGuidance(['a'], assign='each')
    with pytest.raises(ValueError, match="distance must be one of .* got 'l1'"):
        TextGuidance(['a'], distance='l1')
    with pytest.raises(ValueError, match='needs clip='):
        TextGuidance(['a'], space='clip', distance='cosine')
    with pytest.raises(ValueError, match="has no use with space='text_encoder'"):
        TextGuidance(['a'], clip=dict(model='mmgap://toybirds-clip'))
    with pytest.raises(FileNotFoundError, match="'a sentence' is no text file"):
        TextGuidance('a sentence')
    for nothing in ([], dict(a=[])):
        with pytest.raises(ValueError, match='descriptions must be'):
            TextGuidance(nothing)
    with pytest.raises(ValueError, match='weight must be at least 0'):
        TextGuidance(['a'], weight=-1)
    with pytest.raises(ValueError, match='0 <= start < end, got start=3, end=3'):
        TextGuidance(['a'], start=3, end=3)
    with pytest.raises(ValueError, match='has 25 tokens, the text encoder takes 18'):
        TextGuidance([' '.join('a' * 25)]).prepare(generator, CLASSES)
