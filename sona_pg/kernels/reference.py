"""The kernels in NumPy: what they must give, and the rival in the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def dot_rows(rows: Floats, x: Floats) -> Floats:
    """``rows @ x`` for rows (n, d) and x (d,)."""
    return rows @ x


def add_rows(rows: Floats, weight: Floats, out: Floats) -> None:
    """``out += weight @ rows`` for rows (n, d), weight (n,), out (d,)."""
    out += weight @ rows


def forward(weights: Floats, scale: float, x: Floats, out: Floats) -> None:
    """``out += scale (x A) B`` for weights (2 rank, dim): the columns of A, then the rows of B."""
    rank = len(weights) // 2
    out += np.float32(scale) * (weights[:rank] @ x) @ weights[rank:]


def backward(weights: Floats, scale: float, x: Floats, gradient: Floats) -> Floats:
    """Gradient of the weights (2 rank, dim), given that of the output: ``s (B_k·g) x`` over ``s (x·A_k) g``."""
    rank = len(weights) // 2
    down, up = weights[:rank], weights[rank:]
    return np.float32(scale) * np.vstack([np.outer(up @ gradient, x), np.outer(down @ x, gradient)])


def backward_batch(weights: Floats, scale: float, x: Floats, gradient: Floats) -> Floats:
    """`backward` summed over samples, x and gradient (n, dim): ``s (G Bᵀ)ᵀ X`` over ``s (X A)ᵀ G``."""
    rank = len(weights) // 2
    down, up = weights[:rank], weights[rank:]
    both = np.vstack([(gradient @ up.T).T @ x, (x @ down.T).T @ gradient])
    return np.asarray(np.float32(scale) * both, dtype=np.float32)


def fisher_batch(weights: Floats, scale: float, x: Floats, gradient: Floats) -> Floats:
    """The squares of `backward`, summed over samples: ``s² ((G Bᵀ)²)ᵀ X²`` over ``s² ((X A)²)ᵀ G²``."""
    rank = len(weights) // 2
    down, up = weights[:rank], weights[rank:]
    both = np.vstack([((gradient @ up.T) ** 2).T @ x**2, ((x @ down.T) ** 2).T @ gradient**2])
    return np.asarray(np.float32(scale) ** 2 * both, dtype=np.float32)


def draw(seed: int, size: int, n: int, skip: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to n distinct rows of a pool of `size`, none in `skip`, by splitmix64 (Steele et al. 2014)."""
    drawn: list[int] = []
    excluded = {int(row) for row in skip}
    for _ in range(n if size else 0):
        seed, row = _below(seed, size)
        if row not in excluded:
            excluded.add(row)
            drawn.append(row)
    return np.array(drawn, dtype=np.int64)


def _below(seed: int, size: int) -> tuple[int, int]:
    """The next seed, and a number below `size`."""
    seed = (seed + 0x9E37_79B9_7F4A_7C15) & _MASK
    z = ((seed ^ (seed >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    z ^= z >> 31
    return seed, ((z >> 32) * size) >> 32


@dataclass
class ListwiseState:
    """Weights of a low-rank map while the listwise step trains it; every block is (2 rank, dim)."""

    weights: Floats
    moment1: Floats
    moment2: Floats
    served: Floats
    steps: int = 0


def listwise_step(
    state: ListwiseState,
    x: Floats,
    candidates: Floats,
    target: Floats,
    *,
    scale: float,
    temperature: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    average: float,
    extra: Floats | None = None,
) -> float:
    """One Adam step on ``-Σ t log softmax(C û / τ)`` with ``û = u / |u|``, ``u = x + s (x A) B``; returns the loss.

    Parameters
    ----------
    candidates, target
        (n, dim), and (n,) summing to 1.
    extra
        Gradient of what else is part of the loss, (2 rank, dim).
    """
    u = x.copy()
    forward(state.weights, scale, x, u)
    norm = np.linalg.norm(u)
    u /= norm
    score = candidates @ u / np.float32(temperature)
    score -= score.max()
    p = np.exp(score)
    total = p.sum()
    loss = float(np.log(total) - target @ score)
    g = ((p / total - target) / np.float32(temperature)) @ candidates
    g = (g - (g @ u) * u) / norm
    gradient = backward(state.weights, scale, x, g)
    if extra is not None:
        gradient = gradient + extra
    state.steps += 1
    state.moment1 *= beta1
    state.moment1 += (1 - beta1) * gradient
    state.moment2 *= beta2
    state.moment2 += (1 - beta2) * gradient**2
    step = learning_rate / (1 - beta1**state.steps)
    state.weights -= step * state.moment1 / (np.sqrt(state.moment2 / (1 - beta2**state.steps)) + epsilon)
    state.served += (1 - average) * (state.weights - state.served)
    return loss


def fisher_average(fisher: Floats, gradients: Floats, weight: float) -> None:
    """``F += weight (mean g² - F)`` for per-sample gradients (n, p)."""
    mean = np.square(gradients).mean(axis=0)
    np.subtract(mean, fisher, out=mean)
    np.multiply(mean, np.float32(weight), out=mean)
    np.add(fisher, mean, out=fisher)


def constrain(
    gradient: Floats, theta: Floats, stiffness: Floats, pull: Floats, learning_rate: float, out: Floats
) -> None:
    """``out = (g + S θ - T) / (1 + η S)``."""
    numerator = stiffness * theta
    np.add(numerator, gradient, out=numerator)
    np.subtract(numerator, pull, out=numerator)
    np.multiply(stiffness, np.float32(learning_rate), out=out)
    np.add(out, np.float32(1), out=out)
    np.divide(numerator, out, out=out)


def proximal(theta: Floats, stiffness: Floats, pull: Floats, step: float, steps: Floats | None, out: Floats) -> None:
    """``out = (θ + η T) / (1 + η S)``, with one step size for all parameters, or one for each."""
    rate = np.float32(step) if steps is None else steps
    np.divide(theta + rate * pull, np.float32(1) + rate * stiffness, out=out)


def add_drift(fisher: Floats, theta: Floats, anchor: Floats, weight: float, out: Floats) -> None:
    """``out += weight F (θ - θ*)²``."""
    out += np.float32(weight) * fisher * np.square(theta - anchor)


@dataclass(frozen=True)
class OutcomeNeighbours:
    """The events nearest to a query, nearest first; items are rows of a table, -1 where they are not in it.

    Parameters
    ----------
    similarities
        (e,).
    help_ends, help_items, help_rewards
        (e,), by event where its items end; which helped, and by how much.
    miss_ends, miss_items
        The same of those that were shown and did not help.
    """

    similarities: Doubles
    help_ends: Rows
    help_items: Rows
    help_rewards: Doubles
    miss_ends: Rows
    miss_items: Rows

    def visible(self, hidden: NDArray[np.uint8] | None, neighbours: int) -> Rows:
        """Positions of the first `neighbours` events in which no item helped that is flagged in `hidden` (m,)."""
        shown = np.ones(len(self.similarities), dtype=bool)
        if hidden is not None:
            event, item = _events(self.help_ends), self.help_items
            inside = item >= 0
            shown[event[inside][hidden[item[inside]] > 0]] = False
        return np.flatnonzero(shown)[:neighbours]


def _events(ends: Rows) -> Rows:
    """By item, which event it is of."""
    return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))


def _nearest(m: int, similarities: Doubles, items: Rows, events: Rows, among: Rows) -> Doubles:
    """By item (m,), the similarity of the first of these events that names it, 0 where none does."""
    first = np.zeros(m)
    kept = np.isin(events, among) & (items >= 0)
    # Of equal indices the last is assigned.
    first[items[kept][::-1]] = similarities[events[kept]][::-1]
    return first


def fusion_features(
    frozen: Floats,
    adapted: Floats,
    query_dot: float,
    rows: Rows,
    near: OutcomeNeighbours,
    counts: Rows,
    hidden: NDArray[np.uint8] | None = None,
    *,
    neighbours: int,
    misses_near: int,
    vote_kernel: float,
    familiar_from: float,
    familiar_width: float,
) -> tuple[Doubles, float, float]:
    """Features (n, 18) of the candidates `rows` of a table, how near the nearest event is, and how familiar that is."""
    m, visible = len(frozen), near.visible(hidden, neighbours)
    events = _events(near.help_ends)
    helped = _nearest(m, near.similarities, near.help_items, events, visible)[rows]
    missed = _nearest(m, near.similarities, near.miss_items, _events(near.miss_ends), visible[:misses_near])[rows]
    kept = np.isin(events, visible)
    given = np.exp((near.similarities[events[kept]] - 1.0) / vote_kernel) * near.help_rewards[kept]
    # What is not in the table is counted behind it.
    vote = np.bincount(np.where(near.help_items[kept] < 0, m, near.help_items[kept]), given, m + 1)[rows]
    total = given.sum()
    familiarity = max(float(near.similarities[visible[0]]), 0.0) if len(visible) else 0.0
    gate = min(max((familiarity - familiar_from) / familiar_width, 0.0), 1.0)

    cosine, to_adapted = frozen[rows].astype(np.float64), adapted[rows].astype(np.float64)
    norm = np.sqrt(max((1 - gate) ** 2 + gate**2 + 2 * gate * (1 - gate) * query_dot, 0.0))
    familiar = ((1 - gate) * cosine + gate * to_adapted) / (norm if norm >= 1e-12 else 1.0)
    times = (counts if hidden is None else np.where(hidden > 0, 0, counts))[rows].astype(np.float64)
    ever = (times > 0).astype(np.float64)
    hinges = [np.maximum(helped - edge, 0.0) for edge in (0.5, 0.7, 0.85)]
    below = cosine - cosine.max(initial=-np.inf)
    columns = [
        20.0 * cosine,
        20.0 * (familiar - cosine),
        20.0 * (to_adapted - cosine),
        *hinges,
        2.0 * np.log1p(vote),
        vote / total if total > 0 else vote,
        *(hinge * below for hinge in hinges),
        *(np.maximum(missed - edge, 0.0) for edge in (0.5, 0.8)),
        np.log1p(times),
        ever,
        *(ever * max(familiarity - edge, 0.0) for edge in (0.5, 0.7, 0.85)),
    ]
    return np.stack(columns, axis=1), familiarity, gate


def listwise_gradient(features: Doubles, weights: Doubles, targets: Doubles, weight: float, out: Doubles) -> float:
    """``out += weight (softmax(X w) - t) X`` for X (n, f), w, out (f,), t (n,); returns the cross-entropy in nats."""
    score = features @ weights
    score -= score.max()
    p = np.exp(score)
    total = p.sum()
    out += weight * ((p / total - targets) @ features)
    return float(targets.sum() * np.log(total) - targets @ score)


def adam_step(
    weights: Doubles,
    served: Doubles,
    moment1: Doubles,
    moment2: Doubles,
    gradient: Doubles,
    steps: int,
    learning_rate: float,
    average: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> None:
    """Step number `steps` of Adam (Kingma & Ba 2015), in place, and of the average that is served; all (f,)."""
    moment1 += (1 - beta1) * (gradient - moment1)
    moment2 += (1 - beta2) * (gradient * gradient - moment2)
    mean, square = moment1 / (1 - beta1**steps), moment2 / (1 - beta2**steps)
    weights -= learning_rate * mean / (np.sqrt(square) + epsilon)
    served += (1 - min(average, (1 + steps) / (10 + steps))) * (weights - served)


def order_by_score(scores: Doubles, k: int) -> Rows:
    """Rows of the k highest scores (n,), best first, equal ones in the order of rows."""
    return np.argsort(-scores, kind="stable")[:k]


def shuffled_sums(given: Doubles, heights: Doubles, seed: int, orders: int) -> Doubles:
    """``heights[:, π] @ given`` for random orders π (Durstenfeld 1964), each made of the last; (kinds, orders)."""
    order = np.arange(len(given))
    sums = np.empty((len(heights), orders))
    for o in range(orders):
        for i in range(len(given) - 1, 0, -1):
            seed, j = _below(seed, i + 1)
            order[[i, j]] = order[[j, i]]
        sums[:, o] = heights[:, order] @ given
    return sums


def _directions(rows: Floats) -> Doubles:
    """Rows (n, d) at unit length."""
    return np.asarray(rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True), dtype=np.float64)


def assign(rows: Floats, centroids: Floats) -> tuple[Rows, Doubles]:
    """The nearest centroid (k, d) of each row (n, d) by cosine, and the cosine."""
    cosines = _directions(rows) @ _directions(centroids).T
    labels = np.argmax(cosines, axis=1)
    return labels, cosines[np.arange(len(rows)), labels]


def cluster_sums(rows: Floats, labels: Rows, k: int) -> tuple[Doubles, Rows]:
    """Sums (k, d) of the unit rows (n, d) of each cluster, by label (n,), and how many these are."""
    sums = np.zeros((k, rows.shape[1]))
    np.add.at(sums, labels, _directions(rows))
    return sums, np.bincount(labels, minlength=k)


def top_k(rows: Floats, query: Floats, k: int) -> tuple[Rows, Doubles]:
    """Places and cosines of the k rows (n, d) nearest to a query (d,), equal ones in the order of rows."""
    cosines = _directions(rows) @ _directions(query[np.newaxis])[0]
    best = order_by_score(cosines, k)
    return best, cosines[best]


def _uniform(seed: int) -> tuple[int, float]:
    """The next seed, and a number from 0 to below 1."""
    seed = (seed + 0x9E37_79B9_7F4A_7C15) & _MASK
    z = ((seed ^ (seed >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    z ^= z >> 31
    return seed, (z >> 11) * 2.0**-53


def _square_distances(rows: Doubles, centroids: Doubles) -> Doubles:
    squares = 2 - 2 * rows @ centroids.T
    return np.asarray(np.where(squares > 1e-5, squares, 0))


def _seeds(rows: Doubles, given: Doubles, k: int, seed: int) -> tuple[Doubles, int]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): up to k centroids, the given ones among them, and the seed."""
    found = list(given)
    if not found:
        seed, u = _uniform(seed)
        found.append(rows[int(u * len(rows))])
    closest = _square_distances(rows, np.array(found)).min(axis=1)
    while len(found) < k and closest.sum() > 0:
        sums = np.cumsum(closest)
        drawn = []
        for _ in range(2 + int(np.log(k))):
            seed, u = _uniform(seed)
            drawn.append(min(int(np.searchsorted(sums, u * sums[-1], side="right")), len(rows) - 1))
        left = np.minimum(closest[:, np.newaxis], _square_distances(rows, rows[drawn]))
        best = int(np.argmin(left.sum(axis=0)))
        closest = left[:, best]
        found.append(rows[drawn[best]])
    return np.array(found), seed


def kmeans(
    rows: Floats,
    k: int,
    *,
    seed: int = 0,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
    start: Floats | None = None,
    batch_rows: int = 20_000,
) -> tuple[Doubles, Rows, float, int]:
    """Spherical k-means: centroids (up to k, d), labels (n,), objective ``Σ (1 - cosine)``, steps.

    Samples of `batch_rows` · 4^i rows come before all of them where there are more than twice as many.
    """
    every = _directions(rows)
    n = len(every)
    sizes, order = [n], np.arange(n)
    if n > 2 * batch_rows:
        sizes = [batch_rows]
        while 2 * 4 * sizes[-1] < n:
            sizes.append(4 * sizes[-1])
        sizes.append(n)
        for i in range(n - 1, 0, -1):
            seed, u = _uniform(seed)
            j = int(u * (i + 1))
            order[[i, j]] = order[[j, i]]
    centroids = np.empty((0, every.shape[1])) if start is None else _directions(start)
    steps = 0
    for size in sizes:
        x = every[np.sort(order[:size])]
        if size == sizes[0]:
            centroids, seed = _seeds(x, centroids, max(len(centroids), min(k, n)), seed)
        labels, objective, taken = _lloyd(x, centroids, max_iterations, tolerance)
        steps += taken
    kept = np.bincount(labels, minlength=len(centroids)) > 0
    return centroids[kept], (np.cumsum(kept) - 1)[labels], objective, steps


def _lloyd(x: Doubles, centroids: Doubles, max_iterations: int, tolerance: float) -> tuple[Rows, float, int]:
    """Lloyd's steps (1982) on unit rows (n, d); the centroids are changed in place."""
    before, last, step = np.full(len(x), -1), -1.0, 0
    while True:
        cosines = x @ centroids.T
        labels = np.argmax(cosines, axis=1)
        scores = cosines[np.arange(len(x)), labels]
        objective = float((1 - scores).sum())
        is_still = np.array_equal(labels, before) or (last >= 0 and last - objective <= tolerance * last)
        if step == max_iterations or is_still:
            return labels, objective, step
        before, last = labels.copy(), objective
        for c in range(len(centroids)):
            counts = np.bincount(before, minlength=len(centroids))
            movable = (counts[before] > 1) & (2 - 2 * scores > 1e-5)
            if counts[c] == 0 and movable.any():
                furthest = int(np.argmin(np.where(movable, scores, 2)))
                before[furthest], scores[furthest] = c, 1
        for c in range(len(centroids)):
            total = x[before == c].sum(axis=0)
            if np.square(total).sum() > 1e-10 * (before == c).sum():
                centroids[c] = total / np.linalg.norm(total)
        step += 1


def subset_log_determinants(matrix: Doubles, block: int = 1) -> Doubles:
    """``ln |matrix[S, S]|`` of every subset S of the blocks, by bit mask; 0 for none. One batch for each size."""
    n = len(matrix) // block
    is_kept = (np.arange(1 << n)[:, np.newaxis] >> np.arange(n) & 1).astype(bool)
    found = np.zeros(1 << n)
    for size in range(1, n + 1):
        masks = np.flatnonzero(is_kept.sum(axis=1) == size)
        blocks = np.nonzero(is_kept[masks])[1].reshape(-1, size, 1)
        rows = (blocks * block + np.arange(block)).reshape(len(masks), -1)
        found[masks] = np.linalg.slogdet(matrix[rows[:, :, np.newaxis], rows[:, np.newaxis, :]])[1]
    return found
