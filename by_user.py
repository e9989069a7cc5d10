"""Batches by user: some users with all their interactions, at one row of scores a user.

The softmax over the catalogue then costs one matrix product a user, not one row an interaction,
and an interaction can be left out of the histories while it is predicted. The joint recipe
(recipes/best.txt) trains like this; the report's does not.

Shapes: R runs, B users of a batch, P their interactions, padded to the run with the most.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models import random_stream
from multitask import Stack, require_equal_shapes


def user_softmax_loss(scores: Tensor, place: Tensor, item_ids: Tensor, real: Tensor) -> Tensor:
    """The softmax loss of all interactions of a batch of users, at one row of scores a user.

    The mean over a run's P interactions of −log( exp p_ij / Σ_k exp p_ik ): (R, B, n_items)
    scores; (R, P) each: the user's place in the batch, the item's id, and False for padding,
    which doesn't count -> (R,). Raises ValueError when shapes differ.
    """
    require_equal_shapes(place=place, item_ids=item_ids, real=real)
    picked = scores.flatten(1).gather(1, place * scores.shape[-1] + item_ids)
    return mean_of_real((scores.logsumexp(-1).gather(1, place) - picked), real)


def mean_of_real(values: Tensor, real: Tensor) -> Tensor:
    """(R, P) -> (R,), over the values that are no padding."""
    return (values * real).sum(1) / real.sum(1).clamp(min=1)


class UserStack(Stack):
    """A Stack whose batches are of ``batch_size`` users; its loss is the softmax.

    Args:
        leave_one_out: in training an interaction is predicted as if it weren't in the histories,
            as it isn't at test; for the dot product. Source: the zero diagonal of Steck, EASE,
            WWW 2019.
        The others are Stack's.

    Raises ValueError for another loss than softmax.
    """

    def __init__(self, *arguments, leave_one_out: bool = False, **settings):
        super().__init__(*arguments, **settings)
        if self.loss != "softmax":
            raise ValueError(f"batches by user need the softmax loss, not {self.loss!r}")
        self.leave_one_out = leave_one_out
        self.replayable = False  # batches differ in size

    def rows_to_batch(self) -> int:
        return self.net.n_users

    @staticmethod
    def interactions_in(batch: tuple[Tensor | None, ...]) -> Tensor:
        return batch[-1].sum(1)

    def batches(self, epoch: int):
        """The epoch's batches as `losses` takes them: the users, shuffled, in (R, B)."""
        n_users, size = self.net.n_users, self.batch_size
        bounds = torch.arange(self.steps + 1) * size
        shuffled, parts = [], []
        for seed, train in zip(self.seeds, self.train, strict=True):
            order = torch.randperm(n_users, generator=random_stream(seed, "order", epoch))
            place, rows = order.argsort()[self.users[train].cpu()].sort(stable=True)
            ends = torch.searchsorted(place, bounds)
            shuffled.append(order)
            parts.append([x.split(ends.diff().tolist()) for x in (place, train[rows])])
        shuffled = torch.stack(shuffled).to(self.device)
        for k in range(self.steps):
            places = [place[k] - k * size for place, _ in parts]
            rows = pad_sequence([rows[k] for _, rows in parts], batch_first=True).to(self.device)
            place = pad_sequence(places, batch_first=True, padding_value=-1).to(self.device)
            real, place = place >= 0, place.clamp(min=0)
            users = shuffled[:, k * size : (k + 1) * size]
            yield users, place, self.items[rows], self.ratings[rows], real

    def losses(
        self, users: Tensor, place: Tensor, items: Tensor, ratings: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """L_F and L_R, (R,) each, of a batch of users with all their interactions.

        Args:
            users: (R, B).
            place, items, ratings, real: (R, P) of the interactions: the user's place in the
                batch, item, rating, and False for padding.
        """
        net, item_bias = self.net, self.net.item_bias.transpose(1, 2)
        at = place * net.n_items + items  # of each interaction in (R, B · n_items)
        u, q = net.user_rows(users, self.thin), net.catalogue(self.thin)

        u_f, q_f = net.ranking_window(u), net.ranking_window(q)
        keep_u = self.mask(u_f, self.ranking_dropout)
        u_f = u_f * keep_u
        scores = torch.baddbmm(item_bias, u_f, q_f.transpose(1, 2))
        if self.leave_one_out:
            size = len(at), scores[0].numel() + 1  # the last for padding
            picked = torch.zeros(size, dtype=torch.bool, device=at.device)
            picked.scatter_(1, at.where(real, size[1] - 1), True)
            part = self._part_of_itself(users, u_f, q_f, keep_u, None, net.ranking_window)
            scores = torch.where(picked[:, :-1].view_as(scores), scores - part, scores)
        factorization = user_softmax_loss(scores, place, items, real)

        u_r, q_r = net.rating_window(u), net.rating_window(q)
        keep_u, keep_q = (self.mask(rows, self.rating_dropout) for rows in (u_r, q_r))
        u_r, q_r = u_r * keep_u, q_r * keep_q
        who = users.gather(1, place)
        if net.rating_head == "dot":  # one product for all pairs beats gathering a row for each
            u_r, q_r = u_r + net.user_shift, q_r + net.item_shift
            products = torch.bmm(u_r, q_r.transpose(1, 2))
            if self.leave_one_out:
                keep = keep_u, keep_q
                products -= self._part_of_itself(users, u_r, q_r, *keep, net.rating_window)
            predicted = net.biased(who, items, products.flatten(1).gather(1, at))
        else:
            predicted = net.rating(who, items, net.rows(u_r, place), net.rows(q_r, items))
        return factorization, mean_of_real((predicted - ratings).square(), real)

    def _part_of_itself(self, users, u, q, keep_u, keep_q, window) -> Tensor:
        """What each pair's own interaction adds to its u_i · q_j by the two histories.

        With h_j and g_i what j adds to a user and i to an item, k and k' the dropout factors, and
        a = k_i ∘ h_j / √n_i, b = k'_j ∘ g_i / √n_j: left out, (u_i − a) · (q_j − b) would remain.
        The difference a · q_j + u_i · b − a · b is one product of all users with all items.

        Args:
            users: (R, B); u: (R, B, D) and q: (R, n_items, D), in the window, dropped out.
            keep_u, keep_q: k (R, B, D) and k' (R, n_items, D), or None if all are 1.
        """
        net, (of_users, of_items) = self.net, self.net.histories()
        left, right = [], []
        if of_users:
            h = window(net.history_items)
            k = keep_u * net.by_user.weights.view(len(u), -1).gather(1, users).unsqueeze(-1)
            left.append(k), right.append(h * q)
        if of_items:
            g = window(net.rows(net.history_users, users))
            k_items = net.by_item.weights.view(len(u), -1, 1)
            if keep_q is None:  # u_i · b is a number of the user times one of the item
                left.append((u * g).sum(-1, keepdim=True)), right.append(k_items)
            else:
                k_items = keep_q * k_items
                left.append(u * g), right.append(k_items)
        if of_users and of_items:
            left.append(-k * g), right.append(h * k_items)
        return torch.bmm(torch.cat(left, -1), torch.cat(right, -1).transpose(1, 2))
