"""
A federated round: 200 clients of three ranks, merged as they come
==================================================================

In federated fine-tuning each client trains an adapter on its own data and sends it to a server, which merges all of
them. Clients differ: a phone trains at rank 4, a workstation at rank 16, and some have many more samples than others.
The server should not have to keep 200 adapters.

This example makes up such a round on one layer, so that what is right is known: all clients learn one common update,
each from samples of its own, and fit it by least squares with noise that falls with the number of samples.
:meth:`lorakit.SVDMerger.partial_fit` adds the clients to a running sum, weighted by their numbers of samples.

It runs in a few seconds::

    python examples/plot_federated_round.py
"""

# %%
# The clients
# -----------
#
# The common update has rank 8. What a client finds is that update, a part that only its own data has, and noise. It
# sends the best approximation of the rank that it can train.

import matplotlib.pyplot as plt
import numpy as np
import torch

from lorakit import Adapter, AdapterSet, LoraFactors, SVDMerger
from lorakit.metrics import relative_error

WIDTH, COMMON, CLIENTS, PER_CALL, K, KEEP = 128, 8, 200, 10, 8, 48
rng = np.random.default_rng(0)
common = rng.standard_normal((WIDTH, COMMON)) @ rng.standard_normal((COMMON, WIDTH)) / WIDTH
target = Adapter({"layer": LoraFactors(*(torch.tensor(x) for x in (np.eye(WIDTH), common)))}, name="common")
samples = rng.pareto(1.5, CLIENTS) * 100 + 20  # few clients have most of the samples
ranks = rng.choice([4, 8, 16], CLIENTS)


def client(i):
    """Train one client: least squares on samples whose outputs are noisy."""
    own = rng.standard_normal((WIDTH, 2)) @ rng.standard_normal((2, WIDTH)) / WIDTH
    inputs = rng.standard_normal((int(samples[i]) + WIDTH, WIDTH))
    outputs = inputs @ (common + own).T + 0.5 * rng.standard_normal((len(inputs), WIDTH))
    found = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    u, s, vh = np.linalg.svd(found)
    r = ranks[i]
    b, a = u[:, :r] * np.sqrt(s[:r]), np.sqrt(s[:r])[:, None] * vh[:r]
    return Adapter({"layer": LoraFactors(a, b)}, name=f"client{i}")


clients = AdapterSet(client(i) for i in range(CLIENTS))
counts = {int(r): int((ranks == r).sum()) for r in np.unique(ranks)}
print(f"clients by rank: {counts}; samples from {samples.min():.0f} to {samples.max():.0f}")

# %%
# The round
# ---------
#
# Ten clients arrive at a time. After each call ``merged_`` is the weighted mean of all clients until now, cut to rank
# 8. ``sum_error_`` bounds how far the running mean is from the mean of all, before that cut.
#
# Beside it stands what averaging A with A and B with B gives, padded with zeros to one rank: the product of two means
# also holds products of A of one client with B of another.


def mean_of_factors(n):
    """Average the factors of the first n clients, padded to the largest rank."""
    a, b = np.zeros((16, WIDTH)), np.zeros((WIDTH, 16))
    for adapter, w in zip(clients[:n], samples[:n] / samples[:n].sum(), strict=True):
        factors = adapter["layer"]
        a[: factors.rank] += w * factors.A.numpy()
        b[:, : factors.rank] += w * factors.B.numpy()
    return Adapter({"layer": LoraFactors(a, b)}, name="factors")


merger, rows = SVDMerger(k=K), []
for start in range(0, CLIENTS, PER_CALL):
    part = slice(start, start + PER_CALL)
    merger = merger.partial_fit(clients[part], weights=samples[part], keep=KEEP)
    n = start + PER_CALL
    whole = SVDMerger(k=K, weights=samples[:n].tolist()).fit(clients[:n])
    norm = np.linalg.norm(whole.singular_values_["layer"])
    rows.append(
        (
            n,
            relative_error(merger.merged_, target),
            relative_error(whole.merged_, target),
            relative_error(mean_of_factors(n), target),
            relative_error(merger.merged_, whole.merged_),
            merger.sum_error_["layer"] / norm,
        )
    )
n_seen, running, at_once, factors, differs, bound = np.array(rows).T
print("clients  as they come  all at once  mean of factors  as they come / at once  bound")
for row in rows[::4] + rows[-1:]:
    print("{:7d}  {:12.3f}  {:11.3f}  {:15.3f}  {:22.4f}  {:.3f}".format(*row))

# %%
# The merge comes nearer to the common update as clients arrive. The running merge differs from the merge of all at
# once by less than a hundredth, though it never held more than ten clients and a sum of rank 48. The bound is far
# above what was lost: it adds the norms of all cuts, as if they pointed the same way. A third of the distance to the
# common update stays, because clients of rank 4 cannot send all of a common update of rank 8; if all train at rank
# 16, it is a tenth. The mean of factors has hardly anything of it: each client has its factors in an order and with
# signs of its own.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(n_seen, factors, color="0.6", label="mean of A and mean of B")
left.plot(n_seen, at_once, color="C1", linewidth=4, alpha=0.5, label="SVD, all at once")
left.plot(n_seen, running, color="C0", label="SVD, as they come")
left.set(xlabel="clients", ylabel="distance to the common update\nover its norm", ylim=(0, None))
left.legend()
right.semilogy(n_seen, bound, color="0.6", label="bound, before the cut to rank 8")
right.semilogy(n_seen[1:], differs[1:], color="C0", label="difference to all at once")  # zero in the first call
right.set(xlabel="clients", ylabel="over the norm of the merge")
right.legend()
plt.show()
