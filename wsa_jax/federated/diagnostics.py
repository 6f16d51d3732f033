"""Diagnostics of a round."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from wsa_jax.scope.scope import STD_FLOOR, WeightScope


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RoundInfo:
    """Diagnostics of a round; divergences are in nats, one number per layer.

    A client that was not accepted has its numbers here, NaN included, but enters no mean.

    Attributes:
      loss: mean training loss of each participant over its local steps, ``[participants]``.
      participants: which clients took part, ``[participants]``.
      accepted: whether each one's update was used, ``[participants]``; False without examples.
      dropped: number of participants left out because they sent NaN, infinity or an update too
        large to be squared.
      refused: whether the round changed nothing because the sums of what was sent, the parameters
        or the server state would no longer have been finite.
      clients: weight scopes after local training, ``[participants, layers]``.
      client_divergence: mean KL between two different participants, ``[layers]``; 0 for one client.
      target_divergence: mean KL of a participant from the target it was held to, ``[layers]``.
      average: weight scope of the averaged model, ``[layers]``.
      fused: scope fused from the participants (Eq. 4), ``[layers]``.
      update_norm: norm of each participant's update, ``[participants]``.
      mean_update_norm: norm of the aggregated update.
      stability: share of the explicit step's stable range in use, ``[layers]``; 0 without WSA.
    """

    loss: Float[Array, " participants"]
    participants: Integer[Array, " participants"]
    accepted: Bool[Array, " participants"]
    dropped: Integer[Array, ""]
    refused: Bool[Array, ""]
    clients: WeightScope
    client_divergence: Float[Array, " layers"]
    target_divergence: Float[Array, " layers"]
    average: WeightScope
    fused: WeightScope
    update_norm: Float[Array, " participants"]
    mean_update_norm: Float[Array, ""]
    stability: Float[Array, " layers"]


class ClientRow(NamedTuple):
    """One participant's part of the info: small float32 arrays, so that a row is cheap to send."""

    loss: Array
    mean: Array
    std: Array
    target_divergence: Array
    stability: Array
    update_norm: Array
    accepted: Array
    finite: Array


def mean_divergence(
    scopes: WeightScope, keep: Bool[Array, " participants"]
) -> Float[Array, " layers"]:
    r"""Mean KL over ordered pairs of different clients that ``keep`` marks, from sums.

    With d = log std and m = mean, each minus its mean over the clients,

    .. math::
        \sum_{ij} \mathrm{KL}_{ij} = \tfrac12 \Bigl[ 4 n \sum_i \sinh^2 d_i + A B
        + \sum_i m_i^2 \sum_j \sigma_j^{-2} + n \sum_j m_j^2 \sigma_j^{-2} \Bigr]

    with A = sum expm1(2 d) and B = sum expm1(-2 d). Memory is linear in the clients, where the
    pairs of 10,000 of them would not fit, and no nearly equal terms cancel.
    """
    column = keep[:, None]
    count = keep.sum().astype(jnp.float32)  # its square is beyond int32 from 46,341 clients

    def total(values: Array) -> Array:
        return jnp.where(column, values, 0.0).sum(axis=0)

    def centred(values: Array) -> Array:
        return jnp.where(column, values - total(values)[None] / jnp.maximum(count, 1), 0.0)

    # The scopes of other clients may be NaN: a finite stand-in keeps the sums clean.
    std = jnp.where(column, jnp.maximum(scopes.std, STD_FLOOR), 1.0)
    log_std, mean = centred(jnp.log(std)), centred(jnp.where(column, scopes.mean, 0.0))
    precision = jnp.square(1.0 / std)
    stds = 4 * count * total(jnp.square(jnp.sinh(log_std))) + total(jnp.expm1(2 * log_std)) * total(
        jnp.expm1(-2 * log_std)
    )
    squares = jnp.square(mean)
    means = total(squares) * total(precision) + count * total(squares * precision)
    return 0.5 * (stds + means) / jnp.maximum(count * (count - 1), 1)


def mean_over(values: Array, keep: Bool[Array, " participants"]) -> Array:
    """Mean over the participants that ``keep`` marks; 0 if it marks none."""
    column = keep.reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(column, values, 0.0).sum(axis=0) / jnp.maximum(keep.sum(), 1)


def round_info(
    rows: ClientRow,
    chosen: Integer[Array, " participants"],
    fused: WeightScope,
    average: WeightScope,
    mean_update_norm: Float[Array, ""],
    refused: Bool[Array, ""],
) -> RoundInfo:
    """Combine the participants' rows."""
    accepted = rows.accepted > 0
    scopes = dataclasses.replace(fused, mean=rows.mean, std=rows.std)
    return RoundInfo(
        loss=rows.loss,
        participants=chosen,
        accepted=accepted,
        dropped=(rows.finite == 0).sum(),
        refused=refused,
        clients=scopes,
        client_divergence=mean_divergence(scopes, accepted),
        target_divergence=mean_over(rows.target_divergence, accepted),
        average=average,
        fused=fused,
        update_norm=rows.update_norm,
        mean_update_norm=mean_update_norm,
        stability=jnp.where(accepted[:, None], rows.stability, 0.0).max(axis=0),
    )
